"""What texts are worth by how they are decoded: number of beams, length penalty, and histories that guide the beams.

    python -m benchmarks.decoding RUN... [--users N] [--beams 5 10 20 50] [--penalties 1 0] [--guides 0 0.3 0.5 0.7]

RUN is a folder whose stages 01 to 03 are finished. Its model writes for the validation users, or N of them, drawn:
titles of the catalogue with every combination, and free texts (--free) with every number of beams and penalty. A line a
combination: seconds of processor time a user, for writing alone; Recall@k of the items that the texts name, in the
order of the beams, with seen items left out and kept in; and Recall@5 and @10 under each ranking, seen items left out.
Of hybrid and learned also what the texts add to histories alone, paired over users, with 95 % intervals. Hybrid's
weights are those of `params/ranking/`, which were fitted on other texts of the same users. "histories" is what guides
the beams, without any model.
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.catalogue_decoding import opened
from gloss_utils import language, retrieve
from gloss_utils.data import prompts, splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.rank import as_run, likely_next
from gloss_utils.rank.candidates import as_ranking
from gloss_utils.rank.evidence import without_part
from gloss_utils.rank.ranker import FUSED, HYBRID, LEARNED, PAPER, Ranker
from gloss_utils.report.metrics import SEEN, means, per_user_metrics, targets_of
from gloss_utils.runs.folder import RunFolder
from gloss_utils.runs.parameters import RETRIEVE

SEED, PLACES, METRICS = 3407, (5, 10, 20, 50), ["recall@5", "recall@10"]
FREE, HISTORIES = "free", "histories"
HEAD = ["texts", "beams", "length_penalty", "guide", "s a user"]
HEAD += [f"Recall@{', @'.join(map(str, PLACES))}, seen {seen}" for seen in SEEN]
HEAD += [PAPER, FUSED, HYBRID, "hybrid adds", LEARNED, "learned adds"]


class Study:
    """A run's model, its users and indexes."""

    def __init__(self, folder: Path, users: int | None):
        self.run = opened(RunFolder(folder))
        self.run.stage, self.run.parameters["split"] = RETRIEVE, "validation"
        self.data = Dataset.load(self.run.folder.data)
        self.titles, self.indexes = self.data.titles(), retrieve.load_indexes(self.run)
        self.examples = splits.evaluation_examples(self.data, "validation").reset_index(drop=True)
        if users:
            self.examples = self.examples.sample(min(users, len(self.examples)), random_state=SEED, ignore_index=True)
        self.targets = targets_of(self.examples)
        known = splits.training_sequences(self.data, self.examples)
        self.guided = likely_next(self.examples["history"].tolist(), list(known.values()), list(self.titles))
        where = self.run.base_model, self.run.folder.adapter, self.run["load_in_4bit"]
        self.model, self.tokenizer = language.load_finetuned(*where)
        self.title_trie = language.TitleTrie(self.tokenizer, self.titles.values())
        named = [[self.titles[item] for item in history] for history in self.examples["history"]]
        room = self.run["max_length"] - self.run["max_new_tokens"]
        self.inputs = prompts.encode_prompts(self.tokenizer, named, room)
        without = self.ranker([[] for _ in named])
        self.learned = without.learned
        weights = without_part("generated texts", without.settings.weights)
        self.alone = {HYBRID: without.weighted({"": weights})[""], LEARNED: without.by_learned(0)}
        self.alone = {name: self.metrics(ranking) for name, ranking in self.alone.items()}

    def ranker(self, texts: list[list[str]]) -> Ranker:
        """What ranks from these texts."""
        return retrieve.ranker(self.run, self.examples.assign(texts=texts), self.data, self.indexes, LEARNED)

    def metrics(self, ranking: pd.DataFrame) -> np.ndarray:
        """[users, METRICS]."""
        return per_user_metrics(as_run(ranking), self.targets)[METRICS].to_numpy()

    def recalls(self, found: pd.DataFrame) -> list[str]:
        """Recall at `PLACES` of candidates in their order, with seen items left out, then kept in."""
        histories, cells = dict(zip(self.examples["user"], self.examples["history"], strict=True)), []
        for exclude_seen in (True, False):
            ranked = as_ranking(found.drop_duplicates(["user", "item"]), histories, max(PLACES), exclude_seen)
            hit = ranked[ranked["item"] == ranked["user"].map(self.targets)]["rank"].to_numpy()
            cells.append(" / ".join(f"{(hit <= place).sum() / len(self.examples):.4f}" for place in PLACES))
        return cells

    def histories(self) -> list[str]:
        """The line of what guides the beams, ordered without a model."""
        own, common = self.guided
        order = [np.argsort(-(own[[user]].toarray()[0] + common), kind="stable") for user in range(len(self.examples))]
        items, most = np.array(list(self.titles), dtype=object), 2 * max(PLACES)
        rows = [(user, item) for user, places in zip(self.targets, order, strict=True) for item in items[places[:most]]]
        cells = self.recalls(pd.DataFrame(rows, columns=["user", "item"]).assign(score=0.0))
        alone = ["" if name not in self.alone else self.shown(self.alone[name]) for name in (HYBRID, LEARNED)]
        return [HISTORIES, "", "", "", "", *cells, "", "", alone[0], "", alone[1], ""]

    def line(self, decoding: str, beams: int, penalty: float, guide: float) -> list[str]:
        """The line of one way of decoding."""
        how = {"num_beams": beams, "num_return_sequences": None, "decoding": decoding}
        how |= {"length_penalty": penalty, "guide": guide}
        self.run.parameters |= how
        texts, seconds = self.write()
        ranker = self.ranker(texts)
        ranker.learned = self.learned
        rankings = {PAPER: ranker.paper("dense", exclude_seen=True), HYBRID: ranker.hybrid(), LEARNED: ranker.rank()}
        rankings[FUSED] = replace(ranker, rule=FUSED).rank()
        found = {name: self.metrics(ranking) for name, ranking in rankings.items()}
        cells = self.recalls(ranker.paper_candidates("dense"))
        cells += [self.shown(found[PAPER]), self.shown(found[FUSED])]
        for name in (HYBRID, LEARNED):
            mean, low, high = means(found[name] - self.alone[name], SEED)
            added = [f"{m:+.4f} [{a:+.4f}, {b:+.4f}]" for m, a, b in zip(mean, low, high, strict=True)]
            cells += [self.shown(found[name]), " / ".join(added)]
        return [decoding, f"{beams}", f"{penalty:g}", f"{guide:g}", f"{seconds / len(texts):.4f}", *cells]

    def write(self) -> tuple[list[list[str]], float]:
        """Every user's texts, and the seconds of processor time that writing them took."""
        settings, bound = self.run.settings(language.Decoding), self.run["decoding"] == language.CATALOGUE
        weights = None
        if self.run["guide"]:
            of_items = self.title_trie.of_items(self.titles.values())
            weights = tuple(part @ of_items for part in self.guided)
        writer = language.Writer(self.model, self.tokenizer, settings, self.title_trie if bound else None, weights)
        columns = self.run["num_beams"] * self.run["max_new_tokens"]
        lengths, found = list(map(len, self.inputs)), {}
        batches = dict(enumerate(language.plan_batches(lengths, columns, self.run["generation_batch_tokens"])))
        begun = time.process_time()  # which other work on the machine lengthens less
        for number, rows, _ in language.write_batches(lambda: writer, self.inputs, batches):
            found |= {place: texts for place, (texts, _, _) in zip(batches[number], rows, strict=True)}
        return [found[place] for place in range(len(self.inputs))], time.process_time() - begun

    @staticmethod
    def shown(metrics: np.ndarray) -> str:
        """Recall@5 / Recall@10."""
        return " / ".join(f"{mean:.4f}" for mean in metrics.mean(axis=0))


def lines(study: Study, options: argparse.Namespace) -> Iterator[list[str]]:
    """All lines of a run."""
    yield study.histories()
    for beams, penalty in itertools.product(options.beams, options.penalties):
        if options.free:
            yield study.line(FREE, beams, penalty, 0.0)
        for guide in options.guides:
            yield study.line(language.CATALOGUE, beams, penalty, guide)


def main():
    """Print a Markdown table a run, line by line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--users", type=int)
    parser.add_argument("--beams", nargs="+", type=int, default=PLACES)
    parser.add_argument("--penalties", nargs="+", type=float, default=(1.0, 0.0))
    parser.add_argument("--guides", nargs="+", type=float, default=(0.0, 0.3, 0.5, 0.7))
    parser.add_argument("--free", action="store_true", help="free texts, too")
    options = parser.parse_args()
    for folder in options.runs:
        study = Study(folder, options.users)
        print(f"\n{folder.name}: {len(study.examples):,} validation users; rankings: {' / '.join(METRICS)}\n")
        print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}", flush=True)
        for cells in lines(study, options):
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
