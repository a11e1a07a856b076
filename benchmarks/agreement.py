"""Do two beam searches agree: the same texts in the same order? Where not, how narrow was the choice where they part?

In exact arithmetic both would write the same. In float32 they round differently, so a choice between two beams whose
scores lie closer than `GAP` may fall either way: such a difference is excused, any other is not.
"""

import copy
from unittest import mock

import torch
from transformers import LogitsProcessorList

from gloss_utils.language import beam_search, hf_generate

GAP = 1e-5  # in natural log-probability


def differing(one: list[beam_search.Decoded], two: list[beam_search.Decoded]) -> list[int]:
    """The prompts whose texts, or their order, are not the same."""
    return [user for user, (a, b) in enumerate(zip(one, two, strict=True)) if a.tokens != b.tokens]


def gaps(
    model, prompts: list[list[int]], num_beams: int, max_new_tokens: int, end: int, packed=None
) -> dict[int, float]:
    """For each prompt that `beam_search` and `hf_generate` continue differently: the gap at which they first part.

    Runs both again with their beams noted at every step, and scores in float64 the beams that only one of them kept.
    packed: the model that `beam_search` runs, if another than `model`.
    """
    arguments = (prompts, num_beams, max_new_tokens, end)
    ours, our_beams = _noting_ours(packed or model, *arguments)
    theirs, their_beams = _noting_theirs(model, *arguments)
    exact = copy.deepcopy(model).double()
    found = {}
    for user in differing(ours, theirs):
        kept = [(a.get(user), b.get(user)) for a, b in zip(our_beams, their_beams, strict=False)]
        parted = next(((a, b) for a, b in kept if a and b and a != b), None)
        if parted:
            scores = [_score(exact, prompts[user], beam) for beam in parted[0] ^ parted[1]]
        else:  # the same beams, but finished texts in another order
            pairs = zip(ours[user].tokens, theirs[user].tokens, strict=True)
            texts = {tuple(text) for a, b in pairs if a != b for text in (a, b)}
            scores = [_score(exact, prompts[user], text) / len(text) for text in texts]
        found[user] = max(scores) - min(scores)
    return found


def _noting_ours(*arguments) -> tuple[list[beam_search.Decoded], list[dict[int, set]]]:
    beams, advance = [], beam_search._Search.advance

    def noting(search, *candidates):
        picks = advance(search, *candidates)
        rows = zip(search.users.tolist(), search.written.tolist(), search.done.tolist(), strict=True)
        beams.append({user: set(map(tuple, written)) for user, written, done in rows if not done})
        return picks

    with mock.patch.object(beam_search._Search, "advance", noting):
        return beam_search.beam_search(*arguments), beams


def _noting_theirs(*arguments) -> tuple[list[beam_search.Decoded], list[dict[int, set]]]:
    beams, (_, prompts, num_beams, *_) = [], arguments
    width = max(map(len, prompts))

    def noting(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] > width:
            rows = ids[:, width:].view(-1, num_beams, ids.shape[1] - width).tolist()
            beams.append({user: set(map(tuple, written)) for user, written in enumerate(rows)})
        return scores

    return hf_generate.beam_search(*arguments, logits_processor=LogitsProcessorList([noting])), beams


@torch.inference_mode()
def _score(exact, prompt: list[int], text: tuple[int, ...]) -> float:
    logits = exact(torch.tensor([[*prompt, *text]], device=exact.device)).logits[0, len(prompt) - 1 : -1].double()
    return float(logits.log_softmax(-1).gather(1, torch.tensor(text, device=exact.device)[:, None]).sum())
