"""The language model: a base model, its fine-tuning with QLoRA, and the texts that it writes.

In: texts as token ids, titles, small frozen dataclasses of settings, paths. Out: model folders in the formats of
transformers and peft, and for each prompt its texts with log-probabilities. Loads torch and transformers.
"""

from gloss_utils.language.generation import CATALOGUE, Decoding, TitleTrie, Writer, plan_batches, write_batches
from gloss_utils.language.models import TINY, load_base, load_finetuned, load_tokenizer
from gloss_utils.language.qlora import QLoRA, save_adapter, with_adapters
from gloss_utils.language.scoring import Scorer, score
from gloss_utils.language.tiny import TinyModel, train_base
from gloss_utils.language.training import Settings, train

__all__ = [
    "CATALOGUE",
    "TINY",
    "Decoding",
    "QLoRA",
    "Scorer",
    "Settings",
    "TinyModel",
    "TitleTrie",
    "Writer",
    "load_base",
    "load_finetuned",
    "load_tokenizer",
    "plan_batches",
    "save_adapter",
    "score",
    "train",
    "train_base",
    "with_adapters",
    "write_batches",
]
