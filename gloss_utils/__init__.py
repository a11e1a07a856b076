"""GLoSS: generative language models with semantic search for sequential recommendation.

One module a stage, named after what it does; the notebooks call them in order:
`explore_data`, `finetune`, `index`, `retrieve`, `evaluate`, `segments`.
"""

import logging
import os

from gloss_utils.base.errors import GlossError

# A thread that has nothing to do sleeps. By default it spins, and where other programs run, too, it takes the processor
# from the thread that it waits for. OpenMP reads this when it is loaded (by torch, faiss, scikit-learn).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# What the libraries say while loading is noise in a notebook; errors still come through.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
for _name in ("bitsandbytes", "sentence_transformers", "transformers.trainer"):
    logging.getLogger(_name).setLevel(logging.ERROR)

__all__ = ["GlossError"]
