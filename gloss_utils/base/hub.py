"""What holds for every model that comes from outside: no network is waited for, and no pickle is read."""

import re
from pathlib import Path

import httpx
import huggingface_hub
from huggingface_hub import constants, errors, file_download

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import free_space


def only_local(name: str | Path) -> bool:
    """Whether a model can only come from a folder or the cache: it is a folder, or the hub does not answer.

    The hub is asked once and briefly; its client's own retries would take minutes before they say the same.
    """
    if Path(name).is_dir():
        return True
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=10)
    except (httpx.HTTPError, OSError):  # no network, a proxy that refuses, offline mode
        return True
    return False


def resolve(name: str | Path, revision: str | None = None) -> str | None:
    """The commit hash of a hub model at a revision (a branch, a tag, a hash; by default `main`); None for a folder.

    The hub is asked; where it does not answer, its cache on this machine is. Raises `GlossError` where neither knows
    the revision, and for a revision of a folder, which has none.
    """
    name, at = str(name), f" at revision {revision!r}" if revision else ""
    if Path(name).is_dir():
        if revision:
            raise GlossError(f"{name} is a local folder, which has no revisions; leave out revision {revision!r}")
        return None
    try:
        cached = _cached(name, revision or "main")
        if cached and cached == revision:
            return cached
        if not only_local(name):
            return huggingface_hub.HfApi().model_info(name, revision=revision, timeout=10).sha
    except errors.RevisionNotFoundError:
        raise GlossError(f"model {name!r} has no revision {revision!r} on the Hugging Face hub") from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise GlossError(
            f"model {name!r} is neither a local folder nor on the Hugging Face hub; give the folder of a model, or its "
            "name on the hub (for a private or gated one, run `hf auth login`)"
        ) from None
    except (httpx.HTTPError, OSError):
        pass  # the hub answers, but not to this
    if cached is None:
        raise GlossError(
            f"model {name!r}{at} is neither a local folder nor in the cache of this machine, and the Hugging Face hub "
            "does not answer; give the folder of a model, or go online"
        )
    return cached


def _cached(name: str, revision: str) -> str | None:
    """The hash of a revision whose snapshot is in the hub's cache on this machine."""
    folder = _folder(name)
    reference = folder / "refs" / revision
    found = reference.read_text().strip() if reference.is_file() else revision
    is_hash = re.fullmatch("[0-9a-f]{40}", found)
    return found if is_hash and (folder / "snapshots" / found).is_dir() else None


def in_cache(name: str | Path, revision: str | None = None) -> Path:
    """The folder of a hub model in the cache of this machine; a local folder stays itself.

    For packages that ask the hub though they are told not to: of a folder they ask nothing. Raises
    `huggingface_hub.errors.LocalEntryNotFoundError` where the cache does not have it.
    """
    if Path(name).is_dir():
        return Path(name)
    return Path(huggingface_hub.snapshot_download(str(name), revision=revision, local_files_only=True))


def check_room(name: str | Path, revision: str | None, size: int):
    """Raise `GlossError` where the weights of a hub model, of about `size` bytes, are still to be downloaded, and the
    disk of the cache has no room for them."""
    if Path(name).is_dir() or _has_weights(str(name), revision):
        return
    cache = Path(constants.HF_HUB_CACHE).absolute()
    free = free_space(cache)
    if free < size:
        raise GlossError(
            f"the weights of {name} are about {size / 2**30:.1f} GiB to download to {cache}, where {free / 2**30:.1f} "
            "are free; make room, or set HF_HOME to a folder on another disk"
        )


def _has_weights(name: str, revision: str | None) -> bool:
    commit = _cached(name, revision or "main")
    return bool(commit) and any((_folder(name) / "snapshots" / commit).glob("*.safetensors"))


def _folder(name: str) -> Path:
    """Where the hub's cache on this machine has a model, if it does."""
    return Path(constants.HF_HUB_CACHE) / file_download.repo_folder_name(repo_id=name, repo_type="model")


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
