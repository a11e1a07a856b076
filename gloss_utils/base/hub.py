"""What holds for every model that comes from outside: no network is waited for, and no pickle is read."""

from pathlib import Path

import httpx
import huggingface_hub

from gloss_utils.base.errors import GlossError


def only_local(name: str | Path) -> bool:
    """Whether a model can only come from a folder or the cache: it is a folder, or the hub does not answer.

    The hub is asked once and briefly; its client's own retries would take minutes before they say the same.
    """
    if Path(name).is_dir():
        return True
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=10)
    except (httpx.HTTPError, OSError):  # no network, a proxy that refuses, offline mode
        return True
    return False


def only_safetensors(folder: str | Path):
    """Raise `GlossError` where a local model folder has weights as a pickle, which may hold code, for safetensors.

    What is named instead, for the hub, is asked for as safetensors where it is loaded.
    """
    for pickled, safe in (
        ("pytorch_model*.bin", "model*.safetensors"),
        ("adapter_model*.bin", "adapter_model*.safetensors"),
    ):
        for file in sorted(Path(folder).rglob(pickled)) if Path(folder).is_dir() else ():
            if not list(file.parent.glob(safe)):
                raise GlossError(
                    f"{file} is a pickle, which may hold code, and is not read; save the model as safetensors"
                )
