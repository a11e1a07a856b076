"""Writing queries: the fine-tuned model continues each user's prompt with titles of likely next items (METHOD, 3).

Prompts are packed into batches once, from the whole input; batches are the unit of work and of resuming.
"""

import gc
import hashlib
import json
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gloss_utils.base.errors import GlossError
from gloss_utils.base.hub import only_safetensors
from gloss_utils.data import prompts
from gloss_utils.data.dataset import Dataset
from gloss_utils.language import beam_search as decoding
from gloss_utils.language import cache_tree as tree
from gloss_utils.language import hf_generate as plain_decoding
from gloss_utils.language.models import TINY, load_base, pack, with_padding
from gloss_utils.language.trie import Trie
from gloss_utils.runs.journal import Journal
from gloss_utils.runs.run import Run

Row = tuple[list[str], list[float], list[int]]  # a prompt's texts, best first, their log-probabilities and lengths


def load_model(run: Run):
    """The base model that stage 2 used, with its adapter, for inference; and the tokenizer.

    Raises `GlossError` where base and adapter do not have the same vocabulary.
    """
    base = run.folder.base if run["base_model"] == TINY else run["base_model"]
    model, tokenizer = load_base(base, run["load_in_4bit"])
    known, size = load_tokenizer(run).get_vocab(), model.get_input_embeddings().num_embeddings
    if known != tokenizer.get_vocab() or max(known.values()) >= size:
        raise GlossError(
            f"base model {base} has another vocabulary ({len(tokenizer):,} tokens, {size:,} embeddings) than the "
            f"adapter in {run.folder.adapter} was trained with ({len(known):,} tokens); run stage 02 again"
        )
    if run["load_in_4bit"] and not torch.cuda.is_available():
        # The same weights, unpacked once rather than at every step: without a GPU, that is what takes the time.
        model = model.dequantize()
    only_safetensors(run.folder.adapter)
    model = PeftModel.from_pretrained(model, run.folder.adapter).eval()
    if not torch.cuda.is_available():
        model = pack(model.merge_and_unload())
    return model, tokenizer


def load_tokenizer(run: Run) -> PreTrainedTokenizerBase:
    """The tokenizer that stage 2 trained with, as it stands beside the adapter."""
    return with_padding(
        AutoTokenizer.from_pretrained(run.folder.adapter, local_files_only=True, trust_remote_code=False)
    )


class Catalogue:
    """What `decoding: catalogue` may write: the trie of all items' texts, and which text its tokens stand for.

    notes: lines about titles that the tokenizer cannot tell apart or write, and that are therefore left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, titles: list[str]):
        texts = list(dict.fromkeys(prompts.item_text(title) for title in titles))
        nothing, *tokens = prompts.encode_texts(tokenizer, [prompts.item_text(""), *texts])
        self.text, left_out = {}, []
        for text, ids in zip(texts, tokens, strict=True):
            if ids == nothing or not ids or self.text.setdefault((*ids, tokenizer.eos_token_id), text) != text:
                left_out.append(text)
        if not self.text:
            raise GlossError("the tokenizer can write no title of the catalogue; choose another base_model")
        self.trie = Trie([list(ids) for ids in self.text])
        self.notes = []
        if left_out:
            self.notes.append(
                f"{len(left_out)} titles are left out of the catalogue's trie, because the tokenizer writes them as "
                f"nothing or as another title; one is {left_out[0]!r}"
            )


class Writer:
    """A model and what it is told, with one verb: `write` a batch of prompts. `notice` says where it falls back."""

    def __init__(self, parameters: Mapping, model, tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue | None):
        """parameters: those of stage 4; catalogue: what may be written, if not anything."""
        self.parameters, self.model, self.tokenizer, self.catalogue = parameters, model, tokenizer, catalogue
        reason = tree.unfit(model)
        self.engine = plain_decoding if reason else decoding
        self.notice = f"Generation falls back to transformers' generate, which is slower: {reason}." if reason else None

    @classmethod
    def load(cls, run: Run, catalogue: Catalogue | None = None) -> "Writer":
        """With the model that stage 2 fine-tuned; the catalogue is made where the run asks for it and none is given."""
        model, tokenizer = load_model(run)
        if run["decoding"] == "catalogue" and catalogue is None:
            catalogue = Catalogue(tokenizer, Dataset.load(run.folder.data).items["title"].tolist())
        return cls(run.parameters, model, tokenizer, catalogue)

    def write(self, inputs: list[list[int]], numbers: list[int]) -> list[Row]:
        """Continue prompts (token ids); `numbers`, their places in the whole input, seed what is drawn at random.

        A batch that does not fit in memory is halved. Raises `GlossError` where a single prompt does not fit.
        """
        try:
            return [self._row(found) for found in self._decode(inputs, numbers)]
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            if len(inputs) == 1:
                raise GlossError(
                    f"one prompt of {len(inputs[0])} tokens with {self.parameters['num_beams']} beams does not fit in "
                    "memory; lower num_beams, max_new_tokens or max_length"
                ) from error
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = len(inputs) // 2
        return self.write(inputs[:half], numbers[:half]) + self.write(inputs[half:], numbers[half:])

    def _decode(self, inputs: list[list[int]], numbers: list[int]) -> list[decoding.Decoded]:
        told, end = self.parameters, self.tokenizer.eos_token_id
        count, most = told["num_beams"], told["max_new_tokens"]
        if told["decoding"] != "sample":
            trie = self.catalogue.trie if self.catalogue else None
            return self.engine.beam_search(self.model, inputs, count, most, end, trie)
        seeds = [[told["seed"], number] for number in numbers]
        uniforms = np.stack([np.random.default_rng(seed).random((count, most)) for seed in seeds])
        drawn = torch.from_numpy(uniforms)
        return self.engine.sample(self.model, inputs, drawn, end, told["temperature"], told["top_p"])

    def _row(self, found: decoding.Decoded) -> Row:
        if self.catalogue:
            texts = [self.catalogue.text[tuple(ids)] for ids in found.tokens]
        else:
            texts = [text.strip() for text in self.tokenizer.batch_decode(found.tokens, skip_special_tokens=True)]
        return texts, found.logprobs, [len(ids) for ids in found.tokens]


def _out_of_memory(error: Exception) -> bool:
    says = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")  # of the CPU, of cuBLAS
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in says)


def plan(lengths: list[int], new_columns: int, budget: int) -> list[list[int]]:
    """Pack prompts into batches by falling length, so that prompts × (longest prompt + new columns) stay in the budget.

    Returns the prompts' places in each batch; a prompt that exceeds the budget alone is a batch of its own.
    """
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * (lengths[batches[-1][0]] + new_columns) > budget:
            batches.append([])
        batches[-1].append(place)
    return batches


def encode(run: Run, tokenizer: PreTrainedTokenizerBase, examples: pd.DataFrame, data: Dataset) -> list[list[int]]:
    """The examples' prompts as token ids, cut from the left to leave room for `max_new_tokens`."""
    titles = data.titles()
    histories = [[titles[item] for item in history] for history in examples["history"]]
    return prompts.encode_prompts(tokenizer, histories, run["max_length"] - run["max_new_tokens"])


def _catalogue(run: Run, tokenizer: PreTrainedTokenizerBase, data: Dataset) -> Catalogue | None:
    """What the run may write, if not anything. Raises `GlossError` where that is fewer texts than it wants."""
    if run["decoding"] != "catalogue":
        return None
    catalogue = Catalogue(tokenizer, data.items["title"].tolist())
    if run["num_beams"] > catalogue.trie.texts:
        raise GlossError(
            f"parameter num_beams is {run['num_beams']}; decoding: catalogue writes each of the catalogue's "
            f"{catalogue.trie.texts} different titles once at most; allowed is a whole number from 1 to as many"
        )
    return catalogue


def queries(run: Run, examples: pd.DataFrame, data: Dataset, notes: list[str]) -> pd.DataFrame:
    """Generate every example's queries: the examples (user, history, target) with texts, logprobs, lengths.

    Goes on from the journal of a run that was cut off, which stays until the stage is finished. Lines about what
    happened are added to `notes`.
    """
    tokenizer = load_tokenizer(run)
    catalogue, inputs = _catalogue(run, tokenizer, data), encode(run, tokenizer, examples, data)
    notes += catalogue.notes if catalogue else []
    columns = run["num_beams"] * run["max_new_tokens"]
    batches = plan([len(ids) for ids in inputs], columns, run["generation_batch_tokens"])
    digest = hashlib.sha256(json.dumps([run.made_from, inputs, batches]).encode()).hexdigest()
    journal = Journal(run.folder.journal(digest), digest, [len(batch) for batch in batches])
    run.temporary.append(journal.path)
    notes += journal.notes
    left = [number for number in range(len(batches)) if number not in journal.done]
    if len(left) < len(batches):
        notes.append(f"{len(batches) - len(left)} of {len(batches)} batches are those of a run that was cut off")
    with tqdm(total=len(inputs), desc="generating", unit="user", mininterval=2) as bar:
        bar.update(sum(len(batches[number]) for number in journal.done))
        for number, rows in _written(run, inputs, {number: batches[number] for number in left}, catalogue, notes):
            journal.add(number, rows)
            bar.update(len(rows))
    found: list[Row | None] = [None] * len(inputs)
    for number, places in enumerate(batches):
        for place, row in zip(places, journal.done[number], strict=True):
            found[place] = row
    written = pd.DataFrame(found, columns=["texts", "logprobs", "lengths"], dtype=object)
    return pd.concat([examples.reset_index(drop=True), written], axis=1)


def _written(run: Run, inputs: list[list[int]], batches: dict[int, list[int]], catalogue, notes: list[str]):
    if not batches:
        return
    if run["engine"] == "ray":
        from gloss_utils.runs import workers as scale_out

        yield from scale_out.write(run, inputs, batches, notes)
        return
    writer = Writer.load(run, catalogue)
    notes += [writer.notice] * bool(writer.notice)
    for number, places in batches.items():
        yield number, writer.write([inputs[place] for place in places], places)
