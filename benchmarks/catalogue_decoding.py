"""What does it cost to write only catalogue titles, and what does it save, against writing freely and searching?

`python -m benchmarks.catalogue_decoding`: users of the demo, and its tiny base model, which has read the titles but no
history (it is trained first). `--data-dir FOLDER --dataset beauty` takes a real catalogue and its users, `--run FOLDER`
a finished run's and the model that it fine-tuned.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import pandas as pd

from benchmarks import timing
from benchmarks.baselines import load
from gloss_utils import fine_tune
from gloss_utils.data import prompts, splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.language import models
from gloss_utils.language.generation import Decoding, TitleTrie, Writer, plan_batches
from gloss_utils.rank import ExactTitles, nearest_items
from gloss_utils.runs import parameters
from gloss_utils.runs.folder import RunFolder
from gloss_utils.runs.parameters import STAGES
from gloss_utils.runs.run import Run
from gloss_utils.search import DenseIndex


class Contest:
    """One model, users and catalogue; each rival goes from prompts to items."""

    def __init__(self, run: Run, data: Dataset, model, tokenizer, users: int):
        self.data, self.texts = data, [prompts.item_text(title) for title in data.items["title"]]
        self.examples = splits.evaluation_examples(data, "test").head(users)
        titles = data.titles()
        histories = [[titles[item] for item in history] for history in self.examples["history"]]
        self.inputs = prompts.encode_prompts(tokenizer, histories, run["max_length"] - run["max_new_tokens"])
        columns = run["num_beams"] * run["max_new_tokens"]
        self.batches = plan_batches(list(map(len, self.inputs)), columns, run["generation_batch_tokens"])
        self.index = DenseIndex.build(self.texts, run["encoder"])
        bound = {"free": None, "catalogue": TitleTrie(tokenizer, data.items["title"])}
        self.writers = {
            decoding: Writer(model, tokenizer, run.settings(Decoding, decoding=decoding), title_trie)
            for decoding, title_trie in bound.items()
        }

    def write(self, decoding: str) -> pd.DataFrame:
        """Every user's texts."""
        rows = {}
        for places in self.batches:
            written = self.writers[decoding].write([self.inputs[place] for place in places], places)
            rows |= {place: texts for place, (texts, _, _) in zip(places, written, strict=True)}
        texts = [rows[place] for place in range(len(self.inputs))]
        return pd.DataFrame({"user": self.examples["user"].tolist(), "texts": texts})

    def free(self, run: int) -> dict:
        """Write freely, then search for the nearest item of each text."""
        queries = self.write("free")
        return {"queries": queries, "found": nearest_items(queries, self.index, self.data.items["item"])}

    def catalogue(self, run: int) -> dict:
        """Write titles, and look up their items."""
        queries = self.write("catalogue")
        return {"queries": queries, "found": ExactTitles(self.data.titles()).find(queries)}

    def shares(self, answer: dict) -> dict:
        """Of all texts: the exact ones of an item, those of them that are distinct, and the distinct items found."""
        texts = answer["queries"].explode("texts")
        exact = texts[texts["texts"].isin(set(self.texts))]
        return {
            "exact_titles": round(len(exact) / len(texts), 4),
            "distinct_exact_titles": round(len(exact.drop_duplicates()) / len(texts), 4),
            "distinct_items_found": round(len(answer["found"][["user", "item"]].drop_duplicates()) / len(texts), 4),
        }


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="a run whose stages 01 and 02 are finished")
    parser.add_argument("--data-dir", help="folder of raw files; by default the demo's are made")
    parser.add_argument("--dataset", choices=("beauty", "toys", "sports"), default="beauty", help="of --data-dir")
    parser.add_argument("--steps", type=int, default=100, help="of training the tiny base model")
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        contest = _of_run(options) if options.run else _of_titles(Path(folder), options)
        seconds, answers = timing.alternate({"free": contest.free, "catalogue": contest.catalogue}, options.runs)
        result = {
            "speedup": round(timing.ratio(seconds, "catalogue", "free"), 2),
            "seconds": {rival: round(statistics.median(values), 3) for rival, values in seconds.items()},
            "share_of_texts": {rival: contest.shares(answers[0][rival]) for rival in seconds},
            "users": len(contest.inputs),
            "titles": contest.writers["catalogue"].title_trie.trie.texts,
            "num_beams": contest.writers["free"].settings.num_beams,
            "runs": options.runs,
            "model": str(options.run or f"the tiny base model after {options.steps} steps"),
            "dataset": "the run's" if options.run else options.dataset if options.data_dir else "demo",
            "device": timing.device(),
        }
    print(json.dumps(result))


def _of_run(options: argparse.Namespace) -> Contest:
    run = opened(RunFolder(options.run))
    found = models.load_finetuned(run.base_model, run.folder.adapter, run["load_in_4bit"])
    return Contest(run, Dataset.load(run.folder.data), *found, options.users)


def _of_titles(folder: Path, options: argparse.Namespace) -> Contest:
    data = load(options.dataset if options.data_dir else "demo", options.data_dir or folder)
    run = opened(RunFolder(folder / "run"))
    run.parameters |= {"tiny_steps": options.steps, "tiny_vocabulary": 8000 if options.data_dir else 2000}
    model, tokenizer = models.load_base(fine_tune.tiny_base(run, data), load_in_4bit=False)
    return Contest(run, data, models.pack(model.eval()), tokenizer, options.users)


def opened(folder: RunFolder) -> Run:
    """A finished run for a benchmark, with its parameters; those that it was not given are as by default."""
    values, stages = {}, folder.stages()
    for stage in STAGES:
        values |= parameters.defaults(stage) | stages.get(stage, {}).get("parameters", {})
    return Run(folder, "benchmark", {}, values)


if __name__ == "__main__":
    main()
