"""A run's model for other programs (`merge`), and texts of a server of it, as a queries file (`fetch_texts`)."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import httpx

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import digest, write_json
from gloss_utils.base.seals import read_seal
from gloss_utils.data import prompts, server, splits
from gloss_utils.data import queries as query_files
from gloss_utils.data.dataset import Dataset
from gloss_utils.runs import asking
from gloss_utils.runs.folder import RunFolder
from gloss_utils.runs.journal import Journal
from gloss_utils.runs.parameters import FINE_TUNE, texts_per_user

SETTINGS = ("max_new_tokens", "length_penalty", "temperature", "top_p", "seed")  # of what a server is asked for


def merge(folder: RunFolder, to: Path) -> str:
    """Write the fine-tuned model of a finished stage 2 to a folder, in 16 bits; returns a line on it.

    Raises `GlossError` where stage 2 is not finished, and where `to` exists.
    """
    entry = folder.stages().get(FINE_TUNE)
    if entry is None or not folder.adapter.exists():
        raise GlossError(f"{folder.root} holds no finished {FINE_TUNE}; run it first")
    if to.exists():
        raise GlossError(f"{to} is there already; name a folder that is not")
    from gloss_utils.language import TINY, export  # loads torch and transformers

    how = entry["parameters"]
    base = folder.base if how["base_model"] == TINY else how["base_model"]
    export.save_merged(base, folder.adapter, to, how["load_in_4bit"], entry["revisions"].get("base_model"))
    return f"{to}: vllm serve {to} --generation-config vllm (not tried here; see docs/gpu.md)"


def fetch_texts(
    folder: RunFolder, parameters: dict, address: str, model: str | None, to: Path, at_once: int
) -> Iterator[str]:
    """Let a server of a run's merged model write texts for the users of its split; yields lines on it.

    parameters: those of all stages. at_once: users that are asked for together, 1 or more. `to` becomes a file for
    `queries_file`; `to` with `.settings.json` at its end says how it was made. What is written is kept at once, and the
    same command goes on from there. Raises `GlossError` where stages 1 and 2 are not finished, for `decoding:
    catalogue`, for fewer texts than beams, where what is kept was asked for in another way or of another adapter, and
    as `server.complete` does.
    """
    if parameters["decoding"] == "catalogue":
        raise GlossError("a server cannot be bound to the catalogue; give -p decoding free (beams) or sample")
    adapter = folder.record("adapter")
    if adapter is None or not folder.adapter.exists():
        raise GlossError(f"{folder.root} holds no finished {FINE_TUNE}; run it first")
    if (found := read_seal(folder.adapter)) and found != adapter:
        raise GlossError(f"{folder.root}: {FINE_TUNE} was not finished after its last training; run it again")
    if at_once < 1:
        raise GlossError(f"--at-once is {at_once}; allowed is 1 or more")
    if texts_per_user(parameters) != parameters["num_beams"]:
        raise GlossError("a server is asked for as many beams as texts; give -p num_return_sequences null")
    from gloss_utils.language import load_tokenizer  # loads torch and transformers

    data = Dataset.load(folder.data)
    examples = splits.evaluation_examples(data, parameters["split"]).reset_index(drop=True)
    titles, room = data.titles(), parameters["max_length"] - parameters["max_new_tokens"]
    named = [[titles[item] for item in history] for history in examples["history"]]
    inputs = prompts.encode_prompts(load_tokenizer(folder.adapter), named, room)
    with httpx.Client(base_url=address.rstrip("/").removesuffix("/v1")) as client:
        how = {name: parameters[name] for name in SETTINGS}
        request = server.Request(
            model or server.first_model(client), parameters["num_beams"], beams=parameters["decoding"] == "free", **how
        )
        plan = digest([asdict(request), adapter.get("content", adapter["sha256"]), inputs, examples["user"].tolist()])
        journal = Journal(to.with_name(f".{to.name}.journal"), plan, [1] * len(inputs))
        yield from journal.notes
        if journal.done:
            yield f"{len(journal.done)} of {len(inputs)} users are those of an earlier start"
        _fill(journal, inputs, request, client, at_once)
    rows = [journal.done[place][0] for place in range(len(inputs))]
    write_json(to.with_name(f"{to.name}.settings.json"), _settings(adapter, parameters, address, request))
    query_files.write(to, asking.with_texts(examples, rows))
    journal.path.unlink()
    yield f"{to} has the texts of {len(inputs):,} users; rank them with -p queries_file {to}"


def _fill(journal: Journal, inputs: list[list[int]], request: server.Request, client: httpx.Client, at_once: int):
    """Ask for the users that the journal does not have; what is there when an error comes is kept."""
    left = [place for place in range(len(inputs)) if place not in journal.done]
    with ThreadPoolExecutor(at_once) as pool:
        waiting = {pool.submit(server.complete, client, request, inputs[place], place): place for place in left}
        try:
            for answer in as_completed(waiting):
                journal.add(waiting[answer], [list(answer.result())])
        except BaseException:
            for each in waiting:
                each.cancel()
            raise


def _settings(adapter: dict, parameters: dict, address: str, request: server.Request) -> dict:
    """What the texts of a server were made with."""
    return {
        "server": address,
        "asked": asdict(request),
        "request": request.body([], 0) | {"prompt": "token ids", "seed": "of each prompt, by seed and place"},
        "prompt": prompts.prompt(["TITLE", "…"]),
        "prompts_cut_to_tokens": parameters["max_length"] - parameters["max_new_tokens"],
        "split": parameters["split"],
        "base_model": parameters["base_model"],
        "adapter": adapter,
    }
