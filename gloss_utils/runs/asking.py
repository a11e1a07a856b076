"""What a run's model writes for histories, and how likely it finds given items: in batches that a run which was cut off
does not do again."""

from functools import lru_cache, partial
from pathlib import Path

import pandas as pd

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import digest, write_whole
from gloss_utils.data import queries as query_files
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.prompts import encode_prompts, encode_texts, item_text
from gloss_utils.rank.asked import Asked, features, with_targets
from gloss_utils.rank.candidates import Histories
from gloss_utils.rank.cooccurrence import lists_of
from gloss_utils.rank.examples import cut_back
from gloss_utils.rank.ranker import Ranker
from gloss_utils.rank.signals import likely_next
from gloss_utils.report.metrics import targets_of
from gloss_utils.runs.parameters import texts_per_user
from gloss_utils.runs.resumed import in_batches
from gloss_utils.runs.run import Run

AT_ONCE = 256  # texts of a user that are scored together at most
SCORES, TEXTS_FILE = "scores.parquet", "texts.jsonl"  # in the artefact `asked`
ALONE = ""  # the user of an empty history
HELD = " (held back)"  # after the name of a held user, who may be ranked for, too, then after a longer history


def written(run: Run, data: Dataset, histories: pd.Series, known: Histories | None = None, name: str = "texts") -> list:
    """What the model writes for each history: texts, log-probabilities, lengths.

    known: the sequences that may be learned from, which guide the beams where the parameter `guide` says so. name: of
    the artefact that it is for.
    """
    from gloss_utils import language  # loads torch and transformers, which replaying a file does not need

    titles, may_write, weights = data.titles(), None, None
    settings = run.settings(language.Decoding)
    tokenizer = language.load_tokenizer(run.open("adapter"))
    if run["decoding"] == language.CATALOGUE:
        may_write = title_trie(run, titles)
        for note in may_write.notes:
            print(note)
        if settings.num_beams > may_write.trie.texts:
            raise GlossError(
                f"parameter num_beams is {settings.num_beams}; "
                f"decoding: catalogue writes each of the catalogue's {may_write.trie.texts} different titles once at "
                "most; allowed is a whole number from 1 to as many"
            )
    if run["guide"]:
        texts = may_write.of_items(titles.values())
        weights = tuple(part @ texts for part in likely_next(list(histories), lists_of(known), list(titles)))
    named = [[titles[item] for item in history] for history in histories]
    inputs = encode_prompts(tokenizer, named, run["max_length"] - run["max_new_tokens"])
    columns = settings.num_beams * run["max_new_tokens"]
    batches = language.plan_batches([len(ids) for ids in inputs], columns, run["generation_batch_tokens"])
    model = _model(run)

    def load() -> language.Writer:
        return language.Writer(*language.load_finetuned(*model), settings, may_write, weights)

    work = partial(language.write_batches, load, inputs)
    return in_batches(run, name, inputs, batches, work, "generating")


def title_trie(run: Run, titles: dict[str, str]):
    """What the run's model may write (a `TitleTrie`); built once for texts and for what it is asked."""
    return _built(run.open("adapter"), digest(run.folder.record("adapter")), tuple(titles.values()))


@lru_cache(maxsize=1)
def _built(adapter: Path, seal: str, titles: tuple[str, ...]):
    from gloss_utils import language

    return language.TitleTrie(language.load_tokenizer(adapter), titles)


def _model(run: Run) -> tuple:
    """The arguments with which `language.load_finetuned` loads the run's model."""
    return run.base_model, run.open("adapter"), run["load_in_4bit"], run.revision("base_model")


def scored(run: Run, data: Dataset, pairs: pd.DataFrame, histories: Histories) -> pd.DataFrame:
    """The log-probability of each item's line and its end after the user's prompt: user, item, logprob, tokens."""
    from gloss_utils import language

    tokenizer, titles = language.load_tokenizer(run.open("adapter")), data.titles()
    if run["loss"] == language.CATALOGUE:
        bound = title_trie(run, titles)
        trie, lines = bound.trie, bound.tokens(tokenizer, titles.values())
    else:
        tokens = encode_texts(tokenizer, [item_text(title) for title in titles.values()])
        trie, lines = None, [[*line, tokenizer.eos_token_id] for line in tokens]
    lines = dict(zip(titles, lines, strict=True))
    asked_for = pairs.groupby("user", sort=False)["item"].agg(list)
    named = [[titles[item] for item in histories[user]] for user in asked_for.index]
    prompts = encode_prompts(tokenizer, named, run["max_length"] - run["max_new_tokens"])
    inputs = [
        (prompt, [lines[item] for item in items[start : start + AT_ONCE]])
        for prompt, items in zip(prompts, asked_for, strict=True)
        for start in range(0, len(items), AT_ONCE)
    ]
    batches = language.plan_batches([len(prompt) for prompt, _ in inputs], 0, run["generation_batch_tokens"])
    model = _model(run)

    def load() -> language.Scorer:
        return language.Scorer(language.load_finetuned(*model)[0], trie)

    work = partial(language.write_batches, load, inputs)
    rows = in_batches(run, "asked", inputs, batches, work, "asking")
    tokens = [len(text) for _, texts in inputs for text in texts]
    found = asked_for.explode().reset_index()
    return found.assign(logprob=[score for row in rows for score in row], tokens=tokens)


def with_texts(examples: pd.DataFrame, rows: list) -> pd.DataFrame:
    """Examples with what was written for them, as files of queries hold them."""
    texts = pd.DataFrame(rows, columns=["texts", "logprobs", "lengths"], dtype=object)
    return pd.concat([examples.reset_index(drop=True), texts], axis=1)


def asked(run: Run, data: Dataset, found: Ranker, held: pd.DataFrame) -> Asked:
    """What the model thinks of the items that histories propose to the users of `found`, and to the held ones, from
    whom the ranking learns how far to trust it. Makes the artefact `asked` where it is not there.

    held: user, history, target; where there are none, the evaluated users' own targets teach it.
    """
    both = [found.proposed(run["ask"], exclude_seen) for exclude_seen in (True, False)]
    proposed = pd.concat(both)[["user", "item"]].drop_duplicates(ignore_index=True)
    for_held, after = _apart(found.learned.rank_for_held(run["ask"])), _apart(held)
    pairs = pd.concat([proposed, for_held[["user", "item"]]], ignore_index=True)
    run.known["proposed"] = digest(pairs.to_numpy().tolist())
    if not run.keeps("asked"):
        known = cut_back(found.training_sequences, found.held) if run["guide"] else None
        rows = written(run, data, held["history"], known, "asked")
        alone = pd.DataFrame({"user": ALONE, "item": found.items})
        histories = found.histories | dict(zip(after["user"], after["history"], strict=True)) | {ALONE: []}
        scores = scored(run, data, pd.concat([pairs, alone]), histories)
        with run.writing("asked") as part:
            part.mkdir()
            scores.to_parquet(part / SCORES, index=False)
            query_files.write(part / TEXTS_FILE, with_texts(held, rows))
    if held.empty:
        proposed, named, targets = found.proposed(run["ask"]), found.named(), targets_of(found.queries)
    else:
        texts = _apart(query_files.read(run.open("asked") / TEXTS_FILE, texts_per_user(run), 0))
        proposed, named, targets = for_held, found.of(texts).named(), targets_of(after)
    with write_whole(run.folder.asked_examples) as part:
        with_targets(features(proposed, *_said(run), named), targets).to_parquet(part, index=False)
    run.outputs.append(run.folder.asked_examples)
    return asked_before(run, held)


def asked_before(run: Run, held: pd.DataFrame) -> Asked:
    """What stage 4 found out about the model."""
    examples = pd.read_parquet(run.folder.asked_examples)
    return Asked(*_said(run), examples, run["ask"], of_others=not held.empty)


def _said(run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the model said of items after users' histories, and of all items after an empty one."""
    scores = pd.read_parquet(run.open("asked") / SCORES)
    return scores[scores["user"] != ALONE], scores[scores["user"] == ALONE]


def _apart(held: pd.DataFrame) -> pd.DataFrame:
    return held.assign(user=held["user"].astype(object) + HELD)
