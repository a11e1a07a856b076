"""Templates of an item's text, as "{title} by {brand}": filled in, without the words around empty columns."""

import math
import re
from decimal import Decimal
from functools import lru_cache
from string import Formatter

from gloss_utils.base.errors import GlossError
from gloss_utils.data.rejects import Unusable


def whole_characters(text: str) -> str:
    """The text, with what no file can hold replaced: half of a surrogate pair, which an escape in JSON may give."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def columns(template: str) -> list[str]:
    """The columns that a template names. Raises `GlossError` where it is no template."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise GlossError(f"item_text is {template!r}, which is no template ({error}); write as {{title}}") from None
    names = [name for _, name, form, conversion in parts if name and not form and not conversion]
    if not names or len(names) != sum(name is not None for _, name, *_ in parts):
        raise GlossError(f"item_text is {template!r}; name columns in braces and nothing else in them, as {{title}}")
    return names


# Literal text of a template, without brackets; columns in it that are empty, with all such text around them.
_PLAIN = r"[^\0\1(\[“«)\]”»]*"
_GONE = rf"(?:{_PLAIN}\0)+{_PLAIN}"


@lru_cache
def _without(template: str, empty: frozenset[str]) -> tuple[tuple[str, str], ...]:
    """A template without its empty columns: pairs of literal text and the column after it ("" after the last text).

    Brackets around nothing are left out, and so is text between an empty column and a bracket or an end. Of the two
    texts around an empty column one stays: one without words, if there is one.
    """
    parts = [(literal, column or "") for literal, column, *_ in Formatter().parse(template)]
    kept = [column for _, column in parts if column and column not in empty]
    text = "".join(literal + (column and ("\0" if column in empty else "\1")) for literal, column in parts)
    before = None
    while text != before:
        before, text = text, re.sub(rf"[(\[“«]{_GONE}[)\]”»]", "\0", text)
    text = re.sub(rf"(^|[(\[“«]){_GONE}", r"\1", text)
    text = re.sub(rf"{_GONE}($|[)\]”»])", r"\1", text)
    text = re.sub(_GONE, _between, text)
    if empty:
        text = re.sub(r"^[(\[“«]([^(\[“«)\]”»]*)[)\]”»]$", r"\1", text)
    return tuple(zip(text.split("\1"), [*kept, ""], strict=True))


def _between(gone: re.Match) -> str:
    texts = [text for text in gone[0].split("\0") if text]
    return next((text for text in reversed(texts) if not any(map(str.isalnum, text))), "".join(texts[-1:]))


def fill(record: dict, template: str, names: list[str]) -> str | None:
    """The template filled in from a record. names: the columns that it names (see `columns`).

    None where all of them are empty. Raises `Unusable` where a value is neither a text nor a number.
    """
    values = {name: _filling(record.get(name), name) for name in names}
    if not any(values.values()):
        return None
    empty = frozenset(column for column, value in values.items() if not value)
    return whole_characters("".join(literal + values.get(column, "") for literal, column in _without(template, empty)))


def _filling(value, column: str) -> str:
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return str(value) if isinstance(value, int) or math.isfinite(value) else ""
    if value is not None and not isinstance(value, str):
        raise Unusable(f"{column} is not a text")
    return value if value and value.strip() else ""
