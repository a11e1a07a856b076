"""What `hybrid` counts, and how much: its parts and features, and the file that weighs them."""

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from gloss_utils.base.errors import GlossError

PARTS = {
    "generated texts": ("texts_dense", "texts_bm25"),
    "co-occurrence": ("cooccurrence",),
    "last item": ("last_dense", "last_bm25"),
    "popularity": ("popularity",),
}
FEATURES = tuple(feature for features in PARTS.values() for feature in features)
VOTES = ("texts_dense", "texts_bm25", "last_dense", "last_bm25")

# Strict: a bool is no number, and a number no whole one. The descriptions end the error texts.
Whole = Annotated[int, Field(ge=1, strict=True, description="a whole number from 1 up")]
Number = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False, description="a number from 0 up")]
Temperature = Annotated[float, Field(ge=0.001, strict=True, allow_inf_nan=False, description="a number from 0.001 up")]


class HybridSettings(BaseModel):
    """What `params/ranking/weights.yaml` holds.

    top_k: items that a text votes for. neighbours: items that co-occurrence proposes. temperature_dense, temperature_
    bm25: how fast a vote falls with similarity. window, decay, backward, damping, recency: see `cooccurrence`.
    weights: of each feature. fitted_on: sha256 of the files that the weights were fitted on, and their names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    top_k: Whole
    neighbours: Whole
    temperature_dense: Temperature
    temperature_bm25: Temperature
    window: Whole
    decay: Number
    backward: Number
    damping: Number
    recency: Number
    weights: dict[str, Number]
    fitted_on: dict[str, str]

    @field_validator("weights")
    @classmethod
    def _all_features(cls, weights: dict[str, float]) -> dict[str, float]:
        if set(weights) != set(FEATURES):
            raise ValueError
        return weights

    @classmethod
    def read(cls, path: str | Path) -> "HybridSettings":
        """Raises `GlossError` where the file is missing or does not hold just these values."""
        try:
            return cls.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            wrong = f"cannot be read ({error.strerror})"
        except (yaml.YAMLError, UnicodeDecodeError):
            wrong = "is not YAML"
        except ValidationError as error:
            wrong = _wrong(error)
        raise GlossError(f"parameter ranking_weights: {path} {wrong}; give a file like params/ranking/weights.yaml")


def _wrong(error: ValidationError) -> str:
    """What is wrong first, in one line."""
    first = error.errors()[0]
    place, fields = first["loc"], HybridSettings.model_fields
    if not place or place[0] not in fields or first["type"] == "missing":
        return f"has to hold {', '.join(fields)}, and nothing else"
    if place[0] == "fitted_on":
        return "has to hold fitted_on as sha256: name"
    if place == ("weights",) or place[-1] == "[key]":
        return f"has to hold weights for {', '.join(FEATURES)}, and nothing else"
    allowed = "a number from 0 up" if place[0] == "weights" else fields[place[0]].description
    return f"has {place[-1]}: {first['input']!r}; allowed is {allowed}"
