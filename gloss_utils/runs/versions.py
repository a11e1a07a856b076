"""What a run was made with: the repository's commit, and the versions of the libraries that decide results."""

import importlib.metadata
import platform
import subprocess

from gloss_utils.runs.parameters import ROOT

VERSIONS_OF = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "sentence-transformers",
    "faiss-cpu",
    "bm25s",
    "ir-measures",
    "pandas",
    "numpy",
)


def versions() -> dict[str, str]:
    """The versions of this package, of Python and of the libraries that decide results."""
    ours = {"gloss-utils": importlib.metadata.version("gloss-utils"), "commit": commit()}
    libraries = {name: importlib.metadata.version(name) for name in VERSIONS_OF}
    return ours | {"python": platform.python_version()} | libraries


def commit() -> str:
    """The repository's commit, with a + where files differ from it; "unknown" where git cannot say."""
    head, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no", "--", ":!figures")
    return "unknown" if head is None or changes is None else head[:12] + "+" * bool(changes)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    except OSError:
        return None
    return None if done.returncode else done.stdout.strip()
