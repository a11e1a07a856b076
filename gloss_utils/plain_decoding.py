"""Decoding by transformers' own `generate`: for models that `decoding` does not fit, and to measure it against."""

import torch

from gloss_utils.decoding import Decoded
from gloss_utils.trie import ROOT, Trie


@torch.inference_mode()
def beam_search(
    model,
    prompts: list[list[int]],
    num_beams: int,
    max_new_tokens: int,
    end: int,
    trie: Trie | None = None,
) -> list[Decoded]:
    """What `decoding.beam_search` does, by `generate` on left-padded prompts."""
    ids, mask = _padded(prompts, end, model.device)
    found = model.generate(
        ids,
        attention_mask=mask,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=max_new_tokens if trie is None else trie.depth,
        prefix_allowed_tokens_fn=_allowed(trie, ids.shape[1], end) if trie else None,
        output_logits=num_beams == 1,
        **_settings(end),
    )
    return _decoded(found, len(prompts), ids.shape[1], end)


def _settings(end: int) -> dict:
    return {
        "do_sample": False,
        "temperature": None,
        "top_p": None,
        "top_k": None,
        "length_penalty": 1.0,
        "early_stopping": False,
        "output_scores": True,
        "return_dict_in_generate": True,
        "eos_token_id": end,
        "pad_token_id": end,
    }


def _padded(prompts: list[list[int]], end: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[end] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    at = torch.arange(width, device=device)
    return ids, (at >= width - torch.tensor([[len(prompt)] for prompt in prompts], device=device)).long()


def _allowed(trie: Trie, width: int, end: int):
    def allowed(row: int, ids: torch.Tensor) -> list[int]:
        node = ROOT
        for token in ids[width:].tolist():
            children = trie.child_token[trie.first[node] : trie.first[node] + trie.count[node]].tolist()
            if token not in children:  # a beam that transformers carries along though it is none
                return [end]
            node = int(trie.child_node[trie.first[node] + children.index(token)])
        return trie.child_token[trie.first[node] : trie.first[node] + trie.count[node]].tolist() or [end]

    return allowed


def _decoded(found, users: int, width: int, end: int) -> list[Decoded]:
    new = found.sequences[:, width:]
    ended = new == end
    lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, new.shape[1])
    if "sequences_scores" in found:  # with length penalty 1, the mean log-probability of the tokens
        sums = found.sequences_scores.double() * lengths
    else:  # one beam: greedy search, which returns no scores
        logprobs = torch.stack(found.logits, 1).double().log_softmax(-1).gather(2, new[..., None]).squeeze(-1)
        sums = (logprobs * (torch.arange(new.shape[1], device=new.device) < lengths[:, None])).sum(1)
    texts = [row[:length] for row, length in zip(new.tolist(), lengths.tolist(), strict=True)]
    each = len(texts) // users
    return [Decoded(texts[at : at + each], sums[at : at + each].tolist()) for at in range(0, len(texts), each)]
