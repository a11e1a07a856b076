"""Which model fits on which card? `python -m benchmarks.fits` writes the table of docs/gpu.md, from shapes alone."""

import re
from pathlib import Path

from gloss_utils.language import memory, shapes
from gloss_utils.runs.parameters import LORA_MODULES, ROOT

PAGE = ROOT / "docs/gpu.md"
PLACE = re.compile(r"(<!-- what fits -->\n).*?(\n<!-- end -->)", re.DOTALL)


def table() -> str:
    """The table, in Markdown, of the paper's models with adapters of rank 16 on all layers."""
    models = {shape: shapes.sizes(shape) for shape in shapes.SHAPES if shape.startswith("llama")}
    return memory.table(models, LORA_MODULES, rank=16)


def page(text: str) -> str:
    """The page with the table in its place."""
    return PLACE.sub(lambda found: found[1] + table() + found[2], text)


def main():
    """Write the table into its page, and print it."""
    Path(PAGE).write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(table())


if __name__ == "__main__":
    main()
