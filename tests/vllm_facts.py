"""What vLLM's server takes and answers for beams and samples, as its own source says, in `vllm_facts.json`.

`python -m tests.vllm_facts WHEEL_OR_FOLDER` records it from a wheel (get it with `pip download --no-deps vllm`); no
import and no GPU is needed. `fetch-texts` is tested against a small server that answers by these facts.
"""

import ast
import re
import sys
from pathlib import Path

from tests.unsloth_facts import function, read, record

RECORDED = Path(__file__).with_name("vllm_facts.json")
PROTOCOL, SERVING = (f"vllm/entrypoints/openai/completion/{name}.py" for name in ("protocol", "serving"))
BEAMS, RANKING = (f"vllm/entrypoints/generate/beam_search/{name}.py" for name in ("online", "utils"))
PARALLEL, PARAMETERS, MODEL = "vllm/v1/engine/parallel_sampling.py", "vllm/sampling_params.py", "vllm/config/model.py"


def facts(source: Path) -> dict:
    """The facts of a vLLM wheel, or of the folder that holds the package `vllm`."""
    trees = {name: ast.parse(read(source, name)) for name in (PROTOCOL, BEAMS, SERVING)}
    text = {name: " ".join(read(source, name).split()) for name in (RANKING, PARALLEL, PARAMETERS, MODEL)}
    named = source if source.is_file() else next(source.glob("vllm-*.dist-info"))
    made = ast.unparse(function(trees[PROTOCOL], "CompletionRequest", "to_beam_search_params"))
    search = ast.unparse(function(trees[BEAMS], "BeamSearchOnlineMixin", "beam_search"))
    logprobs = ast.unparse(function(trees[SERVING], "OpenAIServingCompletion", "_create_completion_logprobs"))
    return {
        "version": named.name.removesuffix(".dist-info").split("-")[1],
        "request": _fields(trees[PROTOCOL], "CompletionRequest"),
        "choice": _fields(trees[PROTOCOL], "CompletionResponseChoice"),
        "logprobs": _fields(trees[PROTOCOL], "CompletionLogProbs"),
        "beams_depend_on": sorted(set(re.findall(r"self\.(\w+)", made))),
        "a_beam_has_its_end_token_only_if_asked": "tokens=current_beam.tokens + [token_id] if "
        "include_stop_str_in_output else current_beam.tokens" in search,
        "an_end_token_is_not_in_the_text": "tokens = beam.tokens[tokenized_length:-1]" in search,
        "logprobs_are_those_of_the_tokens_that_a_beam_has": "for i, token_id in enumerate(token_ids)" in logprobs,
        "beams_are_ranked_by_all_their_tokens": "len(x.logprobs), x.cum_logprob, length_penalty" in text[RANKING],
        "beams_ask_for_logprobs_times_beams": int(re.search(r"logprobs_num = (\d+) \* beam_width", search)[1]),
        "max_logprobs": int(re.search(r"max_logprobs: int = Field\(default=(\d+)", text[MODEL])[1]),
        "logprobs_mode": re.search(r'logprobs_mode: LogprobsMode = "(\w+)"', text[MODEL])[1],
        "text_n_is_drawn_with_seed_plus_n": "child_sampling_params.seed = seed + index" in text[PARALLEL],
        "takes_top_k_from": int(re.search(r"if self\.top_k < (-?\d+)", text[PARAMETERS])[1]),
    }


def _fields(tree: ast.Module, owner: str) -> list[str]:
    body = next(node.body for node in tree.body if getattr(node, "name", None) == owner)
    return sorted(node.target.id for node in body if isinstance(node, ast.AnnAssign) and node.target.id[0] != "_")


if __name__ == "__main__":
    sys.exit(record(facts, RECORDED))
