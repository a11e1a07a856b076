"""Writing queries: the fine-tuned model continues each user's prompt with titles of likely next items (METHOD, 3)."""

import gc
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from scipy import sparse
from transformers import PreTrainedTokenizerBase

from gloss_utils.base.errors import GlossError
from gloss_utils.base.parts import map_here
from gloss_utils.data import prompts
from gloss_utils.language import beam_search, cache_tree, hf_generate
from gloss_utils.language.guide import Guide
from gloss_utils.language.trie import Trie

Row = tuple[list[str], list[float], list[int]]  # a prompt's texts, best first, their log-probabilities and lengths
CATALOGUE, SAMPLE = "catalogue", "sample"
AT_ONCE = 2**14  # texts that are tokenised together
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")  # of CUDA, the CPU, cuBLAS


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How texts are written. decoding: "free" or "catalogue" (beam search), or "sample" (temperature, top_p, seed).

    loss: "catalogue" for a model that was trained by `catalogue_loss`, which can only be decoded with "catalogue".
    num_beams: beams of the search, or samples. num_return_sequences: how many of their texts are kept, the best ones;
    null: all. length_penalty: see `beam_search.score_of`. guide: how much the weights of "catalogue" count (see
    `guide.Guide`).
    """

    num_beams: int = 5
    num_return_sequences: int | None = None
    max_new_tokens: int = 50
    decoding: str = "free"
    loss: str = "text"
    guide: float = 0.0
    length_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if self.loss == CATALOGUE != self.decoding:
            raise GlossError(
                f"parameter decoding is {self.decoding!r}, but a model of loss: catalogue has learnt nothing but to "
                "choose among the catalogue's titles; set decoding to catalogue"
            )


class TitleTrie:
    """What `decoding: catalogue` may write: `trie`, of all items' texts, and `texts`, these texts in its order.

    notes: lines about titles that are left out, because the tokenizer cannot write them or tell them apart. All is in
    arrays (numpy's, Arrow's), which Ray's workers on a machine share.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, titles: Iterable[str]):
        texts = pc.unique(_arrow(titles))
        [nothing], written = prompts.encode_texts(tokenizer, [prompts.item_text("")]), array("q")
        self.trie = Trie(_tokens(tokenizer, texts, ([], nothing), written))
        kept = np.frombuffer(written, np.int64)[self.trie.first]
        self.texts, self.notes = texts.take(kept), []
        if len(kept) < len(texts):
            left_out = texts[np.setdiff1d(np.arange(len(texts)), kept)[0]].as_py()
            self.notes.append(
                f"{len(texts) - len(kept)} titles are left out of the catalogue's trie, because the tokenizer writes "
                f"them as nothing or as another title; one is {left_out!r}"
            )

    def of_items(self, titles: Iterable[str]) -> sparse.csr_matrix:
        """Which of the trie's texts, in its order, is that of each item, by their titles: 1 there, [items, texts]."""
        found = pc.index_in(_arrow(titles), self.texts).fill_null(-1).to_numpy()
        (rows,) = np.nonzero(found >= 0)
        return sparse.csr_matrix((np.ones(len(rows)), (rows, found[rows])), (len(found), len(self.texts)))

    def tokens(self, tokenizer: PreTrainedTokenizerBase, titles: Iterable[str]) -> list[list[int]]:
        """The tokens of each item's text and the end token. Only texts that are left out of the trie are tokenised."""
        texts = _arrow(titles)
        found = pc.index_in(texts, self.texts).fill_null(-1)
        left_out = texts.filter(pc.less(found, 0)).to_pylist()
        tokenised = iter(prompts.encode_texts(tokenizer, left_out))
        return [
            self.trie.tokens(place) if place >= 0 else [*next(tokenised), tokenizer.eos_token_id]
            for place in found.to_pylist()
        ]


def _arrow(titles: Iterable[str]) -> pa.Array:
    """The items' texts of these titles."""
    return pa.array(map(prompts.item_text, titles), pa.large_string())


def _tokens(tokenizer, texts: pa.Array, nothing: tuple, written: array) -> Iterator[list[int]]:
    """The tokens and the end token of the texts, a portion at a time, without those that are `nothing`; the places of
    the others are added to `written`."""
    for begin in range(0, len(texts), AT_ONCE):
        tokens = prompts.encode_texts(tokenizer, texts[begin : begin + AT_ONCE].to_pylist())
        for place, ids in enumerate(tokens, begin):
            if ids not in nothing:
                written.append(place)
                yield [*ids, tokenizer.eos_token_id]
    if not written:
        raise GlossError("the tokenizer can write no title of the catalogue; choose another base_model")


class Writer:
    """A model and how it writes, with one verb: `write` a batch of prompts.

    notice: why a slower way is taken for this model; None where it is not.
    """

    def __init__(
        self,
        model,
        tokenizer,
        settings: Decoding,
        title_trie: TitleTrie | None = None,
        weights: tuple[sparse.csr_matrix, np.ndarray] | None = None,
    ):
        """title_trie: what may be written; None where any text may. weights: what guides the beams, of each prompt of
        the whole input and for all of them (`own` and `common` of `guide.Guide`); None where nothing does."""
        self.model, self.tokenizer, self.settings, self.title_trie = model, tokenizer, settings, title_trie
        reason, self.weights = cache_tree.unfit(model), weights
        if reason and weights:
            raise GlossError(f"parameter guide is {settings.guide}, but this model cannot be guided: {reason}; give 0")
        self.among = settings.loss == CATALOGUE
        if reason and self.among:
            raise GlossError(
                f"parameter loss is 'catalogue', but this model cannot be decoded so: {reason}; give 'text'"
            )
        self.engine = hf_generate if reason else beam_search
        self.notice = f"Generation falls back to transformers' generate, which is slower: {reason}." if reason else None

    def write(self, inputs: list[list[int]], numbers: list[int]) -> list[Row]:
        """Continue prompts (token ids). numbers: the prompts' places in the whole input, which seed random draws.

        A batch that does not fit in memory is halved. Raises `GlossError` where a single prompt does not fit.
        """
        try:
            return [self._row(found) for found in self._decode(inputs, numbers)]
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(words in str(error) for words in OUT_OF_MEMORY):
                raise
            if len(inputs) == 1:
                raise GlossError(
                    f"one prompt of {len(inputs[0])} tokens with {self.settings.num_beams} beams does not fit in "
                    "memory; lower num_beams, max_new_tokens or max_length"
                ) from error
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = len(inputs) // 2
        return self.write(inputs[:half], numbers[:half]) + self.write(inputs[half:], numbers[half:])

    def _decode(self, inputs: list[list[int]], numbers: list[int]) -> list[beam_search.Decoded]:
        how, end = self.settings, self.tokenizer.eos_token_id
        if how.decoding != SAMPLE:
            trie = self.title_trie.trie if self.title_trie else None
            given = (self.model, inputs, how.num_beams, how.max_new_tokens, end, trie, how.length_penalty)
            if self.weights is None and not self.among:
                return self.engine.beam_search(*given)
            guide = None
            if self.weights is not None:
                own, common = self.weights
                guide = Guide(trie, how.guide, own[numbers], common, self.model.device)
            return beam_search.beam_search(*given, guide, self.among)
        shape, seeds = (how.num_beams, how.max_new_tokens), [[how.seed, number] for number in numbers]
        uniforms = torch.from_numpy(np.stack([np.random.default_rng(seed).random(shape) for seed in seeds]))
        draws = how.temperature, how.top_p
        return self.engine.sample(self.model, inputs, uniforms, end, *draws, how.length_penalty)

    def _row(self, found: beam_search.Decoded) -> Row:
        if self.title_trie:
            texts = [self.title_trie.texts[self.title_trie.trie.place(ids)].as_py() for ids in found.tokens]
        else:
            texts = [text.strip() for text in self.tokenizer.batch_decode(found.tokens, skip_special_tokens=True)]
        kept = slice(0, self.settings.num_return_sequences)
        return texts[kept], found.logprobs[kept], [len(ids) for ids in found.tokens[kept]]


def plan_batches(lengths: list[int], new_columns: int, budget: int) -> list[list[int]]:
    """Pack prompts into batches by falling length, so that prompts × (longest prompt + new columns) stay in the budget.

    Returns the prompts' places in each batch; a prompt that exceeds the budget alone is a batch of its own.
    """
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * (lengths[batches[-1][0]] + new_columns) > budget:
            batches.append([])
        batches[-1].append(place)
    return batches


def write_batches(
    load: Callable[[], Writer],
    inputs: list[list[int]],
    batches: dict[int, list[int]],
    map_parts: Callable | None = None,
) -> Iterator[tuple[int, list[Row], str | None]]:
    """Continue prompts (token ids) in batches: yields each batch's number, rows, and the writer's notice, once it is
    finished.

    load: makes the `Writer`, at the first batch. batches: number -> the prompts' places in `inputs`. map_parts:
    `map_parts(work, load, parts)` yields `(number, work(load(), part))` of each part in any order; None does so here.
    """
    parts = {number: ([inputs[place] for place in places], places) for number, places in batches.items()}
    for number, (rows, notice) in (map_parts or map_here)(_write, load, parts.items()):
        yield number, rows, notice


def _write(writer: Writer, part: tuple[list[list[int]], list[int]]) -> tuple[list[Row], str | None]:
    return writer.write(*part), writer.notice
