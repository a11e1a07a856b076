"""The one door by which unsloth comes in: it patches transformers and peft, so it has to be imported before them."""

import importlib
import importlib.util
import os
import sys

from gloss_utils.base.errors import GlossError

SWITCH = "GLOSS_UNSLOTH"  # the environment variable; `off`: unsloth is not used
PATCHED = ("transformers", "peft", "trl")


def is_wanted() -> bool:
    """Whether unsloth can set models up: in a single process, on a GPU, where it is installed and not switched off."""
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if several or os.environ.get(SWITCH) == "off" or importlib.util.find_spec("unsloth") is None:
        return False
    import torch  # takes seconds to import, and the room `base` loads without it

    return torch.cuda.is_available()


def import_unsloth() -> bool:
    """Import unsloth where it `is_wanted`.

    Returns whether it is imported. Where one of the packages that it patches was there first, it would patch only some
    of their parts: then it is left out, and a line says so. Its statistics, a download at each start, are off. Raises
    `GlossError` where it is installed, but cannot be imported.
    """
    if "unsloth" in sys.modules:
        return True
    if not is_wanted():
        return False
    if too_early := [name for name in PATCHED if name in sys.modules]:
        print(
            f"unsloth is left out: {', '.join(too_early)} came before it, so it would patch only some parts; "
            "import gloss_utils.fine_tune first"
        )
        return False
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # else it asks the hub, and offline waits two minutes
    try:
        importlib.import_module("unsloth")
    except (ImportError, RuntimeError, OSError, AttributeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise GlossError(
            f"unsloth is installed, but cannot be imported ({reason}); repair it, or set {SWITCH}=off in the "
            "environment to train with transformers alone"
        ) from error
    return True
