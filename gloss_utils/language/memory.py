"""What a language model holds in memory, in bytes, roughly, from its shape; and what fits on which card.

Nothing here has been compared with a measured peak on a GPU. `python -m benchmarks.fits` writes the table of
docs/gpu.md, which holds what these formulas say.
"""

from dataclasses import dataclass

from gloss_utils.language.sizes import Sizes

FLOAT = 4  # bytes
GIB = 2**30
RESERVE = GIB  # of CUDA's own context, of memory in pieces, of what is held for a moment
BATCH_TOKENS = 16384  # of generation, by default: users at a time x tokens of each
CARDS = (16, 24, 40, 80)  # GB
USABLE = 0.93  # of a card's memory, which a driver and error correction take some of


def base(model: Sizes, load_in_4bit: bool, weight: int = 2, rest: int | None = None) -> int:
    """A base model's weights. weight: bytes of one that is not in 4 bits. rest: bytes of one of the embeddings, which
    are never in 4 bits, where these are others: peft trains 4-bit models with embeddings in float32."""
    inner = model.parameters - model.embeddings
    return int(inner * (0.55 if load_in_4bit else weight)) + (rest or weight) * model.embeddings


def training(model: Sizes, lora: int, tokens: int, checkpointing: bool, moment: int = FLOAT, weight: int = 2) -> int:
    """What training adapters of `lora` parameters takes beside the base model.

    tokens: of all texts of a batch, padding included. moment: bytes of each of the optimiser's two (1 in 8 bits).
    Activations: 17 values per layer, token and width (Korthikanti et al., arXiv:2205.05198, with fused attention), or
    one, and 17 of a single layer, with gradient checkpointing; and the logits, in float32, with their gradients.
    """
    kept = (model.layers + 17) if checkpointing else 17 * model.layers
    activations = tokens * (kept * model.width * weight + 2 * FLOAT * model.vocabulary)
    return lora * (2 * FLOAT + 2 * moment) + activations


def generation(model: Sizes, sequences: int, tokens: int, weight: int = 2) -> int:
    """The keys and values of sequences (users × beams) of so many tokens (prompt and new ones)."""
    return 2 * model.layers * model.keys * weight * sequences * tokens


def unpacked(model: Sizes) -> int:
    """What it takes to load a model in 4 bits, to unpack it to 16 and to generate with it: the packed weights go once
    the others are there, and leave their room to the keys and values."""
    return base(model, False) + max(base(model, True), generation(model, 1, BATCH_TOKENS)) + RESERVE


@dataclass(frozen=True)
class Fit:
    """How training fits: batch_size, and whether with gradient_checkpointing; `needs` in bytes."""

    batch_size: int
    gradient_checkpointing: bool
    needs: int


def fits(model: Sizes, lora: int, free: int, tokens: int = 1024, load_in_4bit: bool = True) -> Fit | None:
    """The fastest way in which training fits in `free` bytes, or None. tokens: of the longest text (max_length)."""
    for checkpointing in (False, True):
        for batch in (4, 2, 1):
            found = Fit(batch, checkpointing, needed(model, lora, batch * tokens, checkpointing, load_in_4bit))
            if found.needs <= free:
                return found
    return None


def needed(model: Sizes, lora: int, tokens: int, checkpointing: bool, load_in_4bit: bool = True) -> int:
    """What training takes on a GPU in all, with AdamW in 32 bits."""
    held = base(model, load_in_4bit, rest=FLOAT if load_in_4bit else None)
    return held + training(model, lora, tokens, checkpointing) + RESERVE


def writing(model: Sizes, free: int) -> str | None:
    """How generation fits in `free` bytes: "16 bits" (unpacked, the adapter merged), "4 bits", or None."""
    if unpacked(model) <= free:
        return "16 bits"
    return "4 bits" if base(model, True) + generation(model, 1, BATCH_TOKENS) + RESERVE <= free else None


def table(models: dict[str, Sizes], modules: list[str], rank: int) -> str:
    """What fits on which card, in Markdown; training in 4 bits with texts of 1,024 tokens."""
    lines = ["| model | card | training | needs | generation |", "| --- | --- | --- | --- | --- |"]
    for name, model in models.items():
        for card in CARDS:
            free = int(card * GIB * USABLE)
            fit, how = fits(model, model.lora(modules, rank), free), writing(model, free)
            trained = "does not fit"
            if fit:
                trained = f"batch_size {fit.batch_size}" + ", gradient_checkpointing" * fit.gradient_checkpointing
            needs = f"{fit.needs / GIB:.1f} GiB" if fit else ""
            lines.append(f"| {name} | {card} GB | {trained} | {needs} | {how or 'does not fit'} |")
    return "\n".join(lines)
