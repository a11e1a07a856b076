"""Texts from a server that speaks OpenAI's protocol of completions, as vLLM, SGLang and llama.cpp do."""

import time
from dataclasses import dataclass

import httpx

from gloss_utils.base.errors import GlossError

WAITS = (1, 4, 15)  # seconds before a request is sent again
TIMEOUT = 600  # seconds for an answer
Row = tuple[list[str], list[float | None], list[int | None]]  # texts, best first, their log-probabilities and lengths


@dataclass(frozen=True)
class Request:
    """How a server is asked to write: `count` texts for each prompt, as beams or as samples."""

    model: str
    count: int
    max_new_tokens: int
    beams: bool
    length_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def body(self, prompt: list[int], number: int) -> dict:
        """The request for a prompt (token ids). number: the prompt's place, which seeds its draws.

        All that a server would else take from the model's own settings is neutral. The words for beams are vLLM's
        (`tests/vllm_facts.py` reads them there): without `include_stop_str_in_output` a beam's log-probabilities would
        lack that of its end token, and texts would be put in another order than they were found in.
        """
        common = {
            "model": self.model,
            "prompt": prompt,
            "n": self.count,
            "max_tokens": self.max_new_tokens,
            "logprobs": 1,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "add_special_tokens": False,
        }
        if self.beams:
            words = {"use_beam_search": True, "length_penalty": self.length_penalty, "include_stop_str_in_output": True}
            return common | words | {"temperature": 0.0}
        # vLLM draws a prompt's first text with this seed and the others with those that come after it.
        seed = (self.seed * 1_000_003 + number * self.count) % 2**31
        return common | {"temperature": self.temperature, "top_p": self.top_p, "seed": seed}


def first_model(client: httpx.Client) -> str:
    """The name of the first model of a server. Errors as of `complete`."""
    answer = _send(client, "GET", "/v1/models", None)
    try:
        return answer["data"][0]["id"]
    except (LookupError, TypeError):
        raise GlossError(f"the server at {client.base_url} names no model; give --model") from None


def complete(client: httpx.Client, request: Request, prompt: list[int], number: int) -> Row:
    """The texts that a server writes after a prompt (token ids), best first by log-probability over length to the power
    of `request.length_penalty`, where known.

    A request that fails for the moment is sent again some times. Raises `GlossError` where the server cannot be
    reached, refuses, gives other than `request.count` texts, or writes one text many times where beams were asked for.
    """
    answer = _send(client, "POST", "/v1/completions", request.body(prompt, number))
    try:
        found = [(choice["text"].strip(), *_scores(choice.get("logprobs"))) for choice in answer["choices"]]
    except (LookupError, TypeError, AttributeError):
        raise GlossError(f"the server at {client.base_url} gave no texts, but {str(answer)[:200]}") from None
    same = request.beams and len(found) == request.count > 1 and len({text for text, *_ in found}) == 1
    if len(found) != request.count or same:  # a server that does not know of beams overlooks the word, and is greedy
        way = "beams (-p decoding sample draws texts)" if request.beams else "so many samples (lower num_beams)"
        gave = f"one text {len(found)} times" if same else f"{len(found)} of {request.count} texts"
        raise GlossError(f"the server gave {gave}; it may not write {way}")
    if all(total is not None for _, total, _ in found):
        found.sort(key=lambda row: -row[1] / row[2] ** request.length_penalty)
    return tuple(map(list, zip(*found, strict=True)))


def _scores(logprobs: dict | None) -> tuple[float | None, int | None]:
    """The sum of a text's log-probabilities and its tokens, as far as the server says them."""
    each = (logprobs or {}).get("token_logprobs")
    return (sum(each), len(each)) if each and all(isinstance(one, int | float) for one in each) else (None, None)


def _send(client: httpx.Client, method: str, path: str, body: dict | None) -> dict:
    reason = ""
    for wait in (0, *WAITS):
        time.sleep(wait)
        try:
            answer = client.request(method, path, json=body, timeout=TIMEOUT)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            continue
        if answer.status_code == 200:
            try:
                return answer.json()
            except ValueError:
                raise GlossError(f"{client.base_url} is no server of completions: its answer is no JSON") from None
        reason = f"status {answer.status_code}, {' '.join(answer.text.split())[:200]}"
        if answer.status_code != 429 and answer.status_code < 500:
            raise GlossError(f"the server at {client.base_url} refuses {path}: {reason}")
    raise GlossError(
        f"the server at {client.base_url} does not answer ({reason}); the same command goes on where it stopped"
    )
