"""What `hybrid` counts, and how much: its parts and features, and the file that weighs them."""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
    weights: dict[Literal[FEATURES], Number] = Field(
        min_length=len(FEATURES), description=f"weights for {', '.join(FEATURES)}, each a number from 0 up"
    )
    fitted_on: dict[str, str] = Field(description="sha256: name")

    def counting(self) -> dict:
        """How `cooccurrence.following` is to count."""
        return self.model_dump(include={"window", "decay", "backward", "damping", "neighbours"})

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
            first = error.errors()[0]
            place, fields = first["loc"], cls.model_fields
            wrong = f"has to hold {', '.join(fields)}, and nothing else"
            if place and place[0] in fields and first["type"] != "missing":
                allowed = fields[place[0]].description
                wrong = f"has {'.'.join(map(str, place))}: {first['input']!r}; allowed is {allowed}"
        raise GlossError(f"parameter ranking_weights: {path} {wrong}; give a file like params/ranking/weights.yaml")
