"""What a language model holds in memory, in bytes, roughly, from its shape; and what fits on which card.

Training in 4 bits was measured on an H100 (torch 2.11.0, transformers 5.17.0, unsloth 2026.10.5), in a few shapes of
Llama: the numbers of `PEFT` and `UNSLOTH` are fitted to these peaks, which tests/test_memory.py holds. The formula of
generation has not been fitted to a GPU's peaks. `python -m benchmarks.fits` writes the table of docs/gpu.md.
"""

from dataclasses import dataclass

from gloss_utils.language.sizes import Sizes

FLOAT, HALF = 4, 2  # bytes
GIB = 2**30
RESERVE = GIB  # of CUDA's own context, of memory in pieces, of what is held for a moment
BATCH_TOKENS = 16384  # of generation, scoring and judging, by default: users at a time x tokens of each
CARDS = (16, 24, 40, 80)  # GB
USABLE = 0.93  # of a card's memory, which a driver and error correction take some of


@dataclass(frozen=True)
class Way:
    """What a way to train holds, in bytes.

    value: for each input and output of a layer's linear layers, and token. hidden: of a value of the hidden states.
    logit: for each token and entry of the vocabulary. at_once: how many of these logits are held together at most, or
    None for all. head: of each weight of the last layer's copy to multiply with. rest: of an embedding, where the other
    weights are in 4 bits.
    """

    value: float
    hidden: int
    logit: int
    at_once: int | None
    head: int
    rest: int


# Logits in bf16, and in float32 they, their log-softmax and its gradient. Embeddings and hidden states are in float32.
PEFT = Way(value=3.6, hidden=FLOAT, logit=14, at_once=None, head=HALF, rest=FLOAT)
# It computes the loss piece by piece: of 4 GiB at most, at 16 bytes a logit (unsloth_zoo, cross_entropy_loss.py), of
# which its compiled code held about 3.
UNSLOTH = Way(value=1.5, hidden=HALF, logit=3, at_once=2**28, head=0, rest=HALF)
CPU = Way(value=4.0, hidden=FLOAT, logit=12, at_once=None, head=0, rest=FLOAT)


def base(model: Sizes, load_in_4bit: bool, weight: int = HALF, rest: int | None = None) -> int:
    """A base model's weights. weight: bytes of one that is not in 4 bits. rest: bytes of one of the embeddings, which
    are never in 4 bits, where these are others: peft trains 4-bit models with embeddings in float32."""
    inner = model.parameters - model.embeddings
    return int(inner * (0.55 if load_in_4bit else weight)) + (rest or weight) * model.embeddings


@dataclass(frozen=True)
class Fit:
    """How training fits: batch_size, and whether with gradient_checkpointing; `needs` in bytes."""

    batch_size: int
    gradient_checkpointing: bool
    needs: int


@dataclass(frozen=True)
class Training:
    """What is trained, and how. trained: parameters of the adapters, or of the whole model, where all weights are.
    moment: bytes of each of the optimiser's two for a parameter (1 in 8 bits)."""

    model: Sizes
    trained: int
    way: Way = PEFT
    load_in_4bit: bool = True
    moment: int = FLOAT

    def weights(self) -> int:
        """The base model, and what is trained, in float32, with gradients and moments; all weights have a copy in 16
        bits besides, to multiply with."""
        states = self.trained * (2 * FLOAT + 2 * self.moment)
        if self.trained == self.model.parameters:
            return states + (0 if self.way == CPU else HALF * self.trained)
        weight = FLOAT if self.way == CPU else HALF
        return states + base(self.model, self.load_in_4bit, weight, self.way.rest if self.load_in_4bit else None)

    def activations(self, tokens: int, checkpointing: bool) -> int:
        """What is kept for the backward pass. tokens: of all texts of a batch, padding included.

        With gradient checkpointing these are the hidden states between the layers, and then either the logits or what
        one layer keeps; without it, what all layers keep, and the logits.
        """
        model, way = self.model, self.way
        logits = tokens * model.vocabulary
        ends = way.logit * min(logits, way.at_once or logits) + way.head * model.width * model.vocabulary
        layers = way.value * tokens * model.inner()
        if checkpointing:
            hidden = way.hidden * tokens * model.width * model.layers
            return int(hidden + max(ends, layers / model.layers))
        return int(layers + ends)

    def needs(self, tokens: int, checkpointing: bool) -> int:
        """All of it, and a reserve."""
        return self.weights() + self.activations(tokens, checkpointing) + RESERVE

    def fits(self, free: int, tokens: int = 1024) -> Fit | None:
        """The fastest way in which it fits in `free` bytes, or None. tokens: of the longest text (max_length)."""
        for checkpointing in (False, True):
            for batch in (4, 2, 1):
                found = Fit(batch, checkpointing, self.needs(batch * tokens, checkpointing))
                if found.needs <= free:
                    return found
        return None


def generation(model: Sizes, sequences: int, tokens: int, weight: int = HALF) -> int:
    """The keys and values of sequences (users × beams) of so many tokens (prompt and new ones)."""
    return 2 * model.layers * model.keys * weight * sequences * tokens


def unpacked(model: Sizes) -> int:
    """What it takes to load a model in 4 bits, to unpack it to 16 and to generate with it: the packed weights go once
    the others are there, and leave their room to the keys and values."""
    return base(model, False) + max(base(model, True), generation(model, 1, BATCH_TOKENS)) + RESERVE


def writing(model: Sizes, free: int) -> str | None:
    """How generation fits in `free` bytes: "16 bits" (unpacked, the adapter merged), "4 bits", or None."""
    if unpacked(model) <= free:
        return "16 bits"
    return "4 bits" if base(model, True) + generation(model, 1, BATCH_TOKENS) + RESERVE <= free else None


def table(models: dict[str, Sizes], modules: list[str], rank: int) -> str:
    """What fits on which card, in Markdown; training in 4 bits with texts of 1,024 tokens."""
    lines = ["| model | card | with unsloth | without unsloth | generation |", "| --- | --- | --- | --- | --- |"]
    for name, model in models.items():
        for card in CARDS:
            free = int(card * GIB * USABLE)
            trained = [_cell(Training(model, model.lora(modules, rank), way).fits(free)) for way in (UNSLOTH, PEFT)]
            lines.append(f"| {name} | {card} GB | {' | '.join(trained)} | {writing(model, free) or 'does not fit'} |")
    return "\n".join(lines)


def _cell(fit: Fit | None) -> str:
    if fit is None:
        return "does not fit"
    checkpointing = ", gradient_checkpointing" * fit.gradient_checkpointing
    return f"batch_size {fit.batch_size}{checkpointing}: {fit.needs / GIB:.1f} GiB"
