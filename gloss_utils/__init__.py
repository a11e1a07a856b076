"""GLoSS: generative language models with semantic search for sequential recommendation.

One module a stage, named as its notebook:
`explore_data`, `fine_tune`, `build_index`, `retrieve`, `evaluate`, `user_segments`, `paper_figures`.
"""

import logging
import os

from gloss_utils.base.errors import GlossError

# A thread that waits for others soon sleeps. By default it spins for long, and where other programs run, too, it takes
# the processor from the thread that it waits for; without any spinning, small models take nearly twice as long
# (`benchmarks.threads`). OpenMP reads this when it is loaded (by torch, faiss, scikit-learn); the second is for GNU's.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "500")

# What the libraries say while loading is noise in a notebook; errors still come through.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
for _name in ("bitsandbytes", "sentence_transformers", "transformers.trainer"):
    logging.getLogger(_name).setLevel(logging.ERROR)

__all__ = ["GlossError"]
