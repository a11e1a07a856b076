"""Notebook 4: each user's queries, written by the model or read from a file, turned into a ranking of items."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd
from IPython.display import HTML
from tqdm import tqdm

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import digest, fingerprint, write_whole
from gloss_utils.data import queries as query_files
from gloss_utils.data import splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.prompts import encode_prompts
from gloss_utils.data.rejects import Rejects
from gloss_utils.rank.candidates import Histories
from gloss_utils.rank.evidence import without_part
from gloss_utils.rank.ranker import HYBRID, LEARNED, PAPER, Ranker
from gloss_utils.rank.signals import likely_next
from gloss_utils.rank.trec import write_qrels, write_trec
from gloss_utils.rank.weights import HybridSettings
from gloss_utils.report import stories
from gloss_utils.report.metrics import GLOSS, GLOSS_HYBRID, GLOSS_PAPER, targets_of
from gloss_utils.runs import workers
from gloss_utils.runs.folder import RunFolder
from gloss_utils.runs.journal import Journal
from gloss_utils.runs.parameters import EVALUATE, RETRIEVE
from gloss_utils.runs.run import Run, is_headless, open_run
from gloss_utils.search.bm25 import BM25Index
from gloss_utils.search.dense import DenseIndex


@dataclass
class Retrieved:
    """queries: user, history, target (null under split next), texts, logprobs, lengths. ranking: user, rank, item,
    score. without_texts: the same without the generated texts, under hybrid, and under learned where they count."""

    data: Dataset
    queries: pd.DataFrame
    ranking: pd.DataFrame
    without_texts: pd.DataFrame | None = None


def start(notebook: dict) -> Run:
    """Start the stage from its notebook's `globals()`."""
    return open_run(RETRIEVE, notebook)


def prepare(run: Run) -> Retrieved:
    """Stage 4's work: get the queries, rank, write `queries.jsonl` and `rankings/`, under learned `trees.txt`, and
    `qrels.trec` or, under split next, `recommendations.parquet`."""
    data, folder, upcoming = Dataset.load(run.open("data")), run.folder, run["split"] == "next"
    if run["ranking"] != PAPER:
        HybridSettings.read(run["ranking_weights"])  # a wrong file is better known before the hours of generation
    queries = _read(run) if run["queries_file"] else _generated(run, data)
    if run["show_user"]:
        _row_of(queries, run["show_user"])
    if unknown := 0 if upcoming else int((~queries["target"].isin(data.items["item"])).sum()):
        print(f"{unknown} targets are not in the catalogue; each counts as a miss")
    found = ranker(run, queries, data)
    run.known["histories"] = digest(sorted(found.histories.items()))
    rankings, without_texts = _rankings(run, found)
    if run["ranking"] == LEARNED:
        with write_whole(folder.trees) as part:
            part.write_text(found.learned.trees_text)
        run.outputs.append(folder.trees)
    if name := in_sample(folder, run.inputs, found):
        print(
            f"IN-SAMPLE: the weights of hybrid were fitted on these texts ({name}), so the metrics of hybrid flatter "
            "it; python -m benchmarks.ranking prints out-of-fold ones"
        )
    for method, ranking in rankings.items():
        write_trec(folder.ranking(method), ranking, method)
    if upcoming:
        titled = rankings[GLOSS].assign(title=rankings[GLOSS]["item"].map(data.titles()))
        with write_whole(folder.recommendations) as part:
            titled[["user", "rank", "item", "title", "score"]].to_parquet(part, index=False)
    else:
        write_qrels(folder.qrels, targets_of(queries))
    run.outputs += map(folder.ranking, rankings)
    run.outputs.append(folder.recommendations if upcoming else folder.qrels)
    return Retrieved(data, queries, rankings[GLOSS], without_texts)


def methods(run: Run, found: Ranker) -> dict[str, Callable[..., pd.DataFrame]]:
    """What ranks from the generated texts, the run's own ranking last; each takes `exclude_seen`."""
    ranks = {GLOSS_PAPER: partial(found.paper, run["retriever"])}
    if found.rule == LEARNED:
        ranks[GLOSS_HYBRID] = found.hybrid
    return ranks | {GLOSS: found.rank}


def _rankings(run: Run, found: Ranker) -> tuple[dict[str, pd.DataFrame], pd.DataFrame | None]:
    """The rankings by method, that of the run last, and this without generated texts, where they count."""
    if found.rule != HYBRID:
        without_texts = found.by_learned(0) if found.rule == LEARNED and found.text_targets else None
        return {method: rank() for method, rank in methods(run, found).items()}, without_texts
    weights = found.settings.weights
    both = found.weighted({GLOSS: weights, "without": without_part("generated texts", weights)})
    return {GLOSS_PAPER: found.paper(run["retriever"]), GLOSS: both[GLOSS]}, both["without"]


def ranker(
    run: Run,
    queries: pd.DataFrame,
    data: Dataset,
    indexes: dict[str, DenseIndex | BM25Index] | None = None,
    rule: str | None = None,
) -> Ranker:
    """What ranks for the users of these queries, by default by the run's rule on the run's indexes."""
    rule, settings = rule or run["ranking"], None
    if rule != PAPER or run.stage == EVALUATE:  # whose item-knn counts as hybrid does
        settings = HybridSettings.read(run["ranking_weights"])
        run.read_from_outside("ranking_weights")
    return run.settings(
        Ranker,
        queries=queries,
        titles=data.titles(),
        indexes=indexes or load_indexes(run),
        training_sequences=_learnable(run, data, queries),
        settings=settings,
        rule=rule,
        depth=run["ranking_depth"],
        exact_titles=run["decoding"] == "catalogue" and not run["queries_file"],
        text_targets=targets_of(queries) if run["split"] == "validation" else None,
        # Fitted once, in stage 4; what later stages add to the catalogue changes no tree.
        trees=run.folder.trees.read_text() if rule == LEARNED and run.stage != RETRIEVE else None,
    )


def _learnable(run: Run, data: Dataset, queries: pd.DataFrame) -> dict[str, list[str]]:
    """The sequences that may be learned from where these queries are made and ranked; next holds nothing out."""
    return data.sequences() if run["split"] == "next" else splits.training_sequences(data, queries)


def load_indexes(run: Run) -> dict[str, DenseIndex | BM25Index]:
    """The indexes by retriever, as stage 3 left them."""
    return {"dense": DenseIndex.load(run.open("dense")), "bm25": BM25Index.load(run.open("bm25"))}


def in_sample(folder: RunFolder, inputs: dict[str, str], found: Ranker) -> str | None:
    """The name of the texts, a run's own or among stage 4's inputs, that the weights of `hybrid` were fitted on, if
    they were and the run ranks by it, or beside it."""
    fitted_on = found.settings.fitted_on if found.rule in (HYBRID, LEARNED) else {}
    digests = (*inputs.values(), fingerprint(folder.queries)) if fitted_on else ()
    return next((fitted_on[digest] for digest in digests if digest in fitted_on), None)


def _read(run: Run) -> pd.DataFrame:
    """Queries that were generated elsewhere, from `queries_file`; they are copied to the run."""
    file, upcoming, rejects = run["queries_file"], run["split"] == "next", Rejects(run.folder.rejected_queries)
    run.read_from_outside("queries_file")
    queries = query_files.read(file, run["num_beams"], run["max_rejected"], not upcoming, rejects)
    rejects.write()
    print(f"{len(queries):,} users are read from {file}; {len(rejects.records)} records cannot be used")
    for kept in rejects.records[:5]:
        print(f"{kept['place']}: {kept['reason']}")
    queries = queries.assign(target=None) if upcoming else queries
    run.put_aside("texts")  # those that this run generated before
    query_files.write(run.folder.queries, queries)
    run.outputs += [run.folder.rejected_queries, run.folder.queries]
    return queries


def _generated(run: Run, data: Dataset) -> pd.DataFrame:
    """Queries by the fine-tuned model; those on the disk where nothing that they are made from has changed."""
    if not run.keeps("texts"):
        examples = splits.evaluation_examples(data, run["split"])
        if run["show_user"]:
            _row_of(examples, run["show_user"])  # a wrong one is better known before the hours of generation
        known = _learnable(run, data, examples) if run["guide"] else {}
        rows = _written(run, data, examples["history"], known)
        texts = pd.DataFrame(rows, columns=["texts", "logprobs", "lengths"], dtype=object)
        with run.writing("texts") as part:
            query_files.write(part, pd.concat([examples.reset_index(drop=True), texts], axis=1))
    return query_files.read(run.open("texts"), run["num_beams"], 0, run["split"] != "next")


def _written(run: Run, data: Dataset, histories: pd.Series, known: Histories | None = None) -> list:
    """What the model writes for each history. A journal of it may be there, of a run that was cut off.

    known: the sequences that may be learned from, which guide the beams where the parameter `guide` says so.
    """
    from gloss_utils import language  # loads torch and transformers, which replaying a file does not need

    base = run.open("base") if run["base_model"] == language.TINY else run["base_model"]
    adapter, titles, title_trie, weights = run.open("adapter"), data.titles(), None, None
    tokenizer = language.load_tokenizer(adapter)
    if run["decoding"] == language.CATALOGUE:
        title_trie = language.TitleTrie(tokenizer, titles.values())
        for note in title_trie.notes:
            print(note)
        if run["num_beams"] > title_trie.trie.texts:
            raise GlossError(
                f"parameter num_beams is {run['num_beams']}; decoding: catalogue writes each of the catalogue's "
                f"{title_trie.trie.texts} different titles once at most; allowed is a whole number from 1 to as many"
            )
    if run["guide"]:
        texts = title_trie.of_items(titles.values())
        weights = tuple(part @ texts for part in likely_next(list(histories), list(known.values()), list(titles)))
    named = [[titles[item] for item in history] for history in histories]
    inputs = encode_prompts(tokenizer, named, run["max_length"] - run["max_new_tokens"])
    columns = run["num_beams"] * run["max_new_tokens"]
    batches = language.plan_batches([len(ids) for ids in inputs], columns, run["generation_batch_tokens"])
    plan = digest([run.made_from("texts"), inputs, batches])
    journal = Journal(run.unfinished("texts", plan), plan, [len(batch) for batch in batches])
    for note in journal.notes:
        print(note)
    if journal.done:
        print(f"{len(journal.done)} of {len(batches)} batches are those of a run that was cut off")
    left = {number: places for number, places in enumerate(batches) if number not in journal.done}
    model, settings = (base, adapter, run["load_in_4bit"], run.revision("base_model")), run.settings(language.Decoding)

    def load() -> language.Writer:
        return language.Writer(*language.load_finetuned(*model), settings, title_trie, weights)

    map_parts = partial(workers.map_parts, workers=run["workers"]) if run["engine"] == "ray" else None
    done, notices = sum(map(len, journal.done.values())), {None}
    with tqdm(total=len(inputs), initial=done, desc="generating", unit="user", mininterval=2) as bar:
        for number, rows, notice in language.write_batches(load, inputs, left, map_parts):
            journal.add(number, rows)
            bar.update(len(rows))
            if notice not in notices:
                notices.add(notice)
                print(notice)
    found = {}
    for number, rows in journal.done.items():
        found |= zip(batches[number], rows, strict=True)
    return [found[place] for place in range(len(inputs))]


def _row_of(queries: pd.DataFrame, user: str) -> pd.Series:
    chosen = queries[queries["user"] == user]
    if chosen.empty:
        raise GlossError(
            f"parameter show_user is {user!r}, which is not among the {len(queries):,} users of this run; "
            f"one that is: {queries['user'].iloc[0]}"
        )
    return chosen.iloc[0]


def summary(results: Retrieved) -> pd.DataFrame:
    """What was generated, in numbers."""
    return stories.texts_summary(results.queries, results.ranking, results.data.titles())


def show(results: Retrieved, user: str | None = None) -> HTML:
    """One user's story; by default that of a user worth showing."""
    user = user or stories.telling_user(results.queries, results.ranking)
    query, titles = _row_of(results.queries, user), results.data.titles()
    return stories.story(query, results.ranking, titles, results.without_texts)


def browse(results: Retrieved, user: str | None = None):
    """In JupyterLab: a box to choose a user in, at first `user`, with that user's story below."""
    first = user or stories.telling_user(results.queries, results.ranking)
    return stories.browse(results.queries["user"].tolist(), first, lambda chosen: show(results, chosen))


def story(results: Retrieved, user: str | None, notebook: dict):
    """`browse`, or `show` where papermill runs the notebook, given its `globals()`."""
    return (show if is_headless(notebook) else browse)(results, user)
