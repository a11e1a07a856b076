"""What every room stands on: the one-line error, files that are written whole, seals, models from outside.

In and out: paths, JSON values. Knows nothing of recommendation.
"""

from gloss_utils.base.errors import GlossError, Interrupted
from gloss_utils.base.files import fingerprint, read_json, write_json, write_whole
from gloss_utils.base.seals import is_sealed, seal, write_sealed

__all__ = [
    "GlossError",
    "Interrupted",
    "fingerprint",
    "is_sealed",
    "read_json",
    "seal",
    "write_json",
    "write_sealed",
    "write_whole",
]
