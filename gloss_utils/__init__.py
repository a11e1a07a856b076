"""GLoSS: generative language models with semantic search for sequential recommendation.

One module a stage, named after what it does; the notebooks call them in order:
`explore_data`, `finetune`, `index`, `retrieve`, `evaluate`, `segments`.
"""

import logging
import os

from gloss_utils.base.errors import GlossError

# What the libraries say while loading is noise in a notebook; errors still come through.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
for _name in ("bitsandbytes", "sentence_transformers", "transformers.trainer"):
    logging.getLogger(_name).setLevel(logging.ERROR)

__all__ = ["GlossError"]
