"""Decoding by transformers' own `generate`: for models that `cache_tree` does not fit, and to compare with.

`beam_search` and `sample` return what those of `beam_search.py` do, but other random draws.
"""

from contextlib import contextmanager

import torch
from transformers import GenerationConfig

from gloss_utils.language.beam_search import Decoded, by_score, until_end
from gloss_utils.language.trie import ROOT, Trie


@torch.inference_mode()
def generate(model, prompts: list[list[int]], end: int, **options):
    """Call the model's `generate` on left-padded prompts (token ids) with these options and otherwise none."""
    width = max(map(len, prompts))
    ids = torch.tensor([[end] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    filled = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    neutral = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "eos_token_id": end}
    with _neutral(model):
        return model.generate(
            ids, attention_mask=torch.tensor(filled, device=model.device), pad_token_id=end, **(neutral | options)
        )


@contextmanager
def _neutral(model):
    """Set the model's own `generation_config` aside: `generate` takes from it all that it is not told (a penalty for
    repetitions or length, forbidden or forced tokens, a least length), which `beam_search.py` knows nothing of."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of peft, which sets both
    own = [(each, each.generation_config) for each in (model, inner)]
    try:
        for each, _ in own:
            each.generation_config = GenerationConfig()
        yield
    finally:
        for each, config in own:
            each.generation_config = config


def beam_search(
    model,
    prompts: list[list[int]],
    num_beams: int,
    max_new_tokens: int,
    end: int,
    trie: Trie | None = None,
    length_penalty: float = 1.0,
    **options,
) -> list[Decoded]:
    """What `beam_search.beam_search` returns."""
    beams = {"length_penalty": length_penalty} if num_beams > 1 else {}  # greedy search compares nothing
    return _decoded(
        model,
        prompts,
        end,
        length_penalty,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=max_new_tokens if trie is None else trie.depth,
        prefix_allowed_tokens_fn=_allowed(trie, max(map(len, prompts)), end) if trie else None,
        output_scores=num_beams > 1,
        output_logits=num_beams == 1,  # greedy search returns no sums
        **beams,
        **options,
    )


def sample(
    model,
    prompts: list[list[int]],
    uniforms: torch.Tensor,
    end: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    length_penalty: float = 1.0,
) -> list[Decoded]:
    """What `beam_search.sample` returns, but drawn by torch's generator, seeded from `uniforms`."""
    torch.manual_seed(int(uniforms[0, 0, 0] * 2**53))
    return _decoded(
        model,
        prompts,
        end,
        length_penalty,
        do_sample=True,
        temperature=temperature,
        top_p=top_p,
        top_k=0,
        num_return_sequences=uniforms.shape[1],
        max_new_tokens=uniforms.shape[2],
        output_logits=True,
    )


def _allowed(trie: Trie, width: int, end: int):
    def allowed(row: int, ids: torch.Tensor) -> list[int]:
        node = ROOT
        for token in ids[width:].tolist():
            node = trie.below(node).get(token)
            if node is None:  # transformers also runs places that hold no beam
                return [end]
        return list(trie.below(node)) or [end]

    return allowed


def _decoded(model, prompts: list[list[int]], end: int, penalty: float, **options) -> list[Decoded]:
    found = generate(model, prompts, end, return_dict_in_generate=True, **options)
    new = found.sequences[:, max(map(len, prompts)) :]
    texts = until_end(new.tolist(), end)
    lengths = torch.tensor([len(text) for text in texts], device=new.device)
    if "sequences_scores" in found:
        sums = found.sequences_scores.double() * lengths**penalty
    else:
        logprobs = torch.stack(found.logits, 1).double().log_softmax(-1).gather(2, new[..., None]).squeeze(-1)
        sums = (logprobs * (torch.arange(new.shape[1], device=new.device) < lengths[:, None])).sum(1)
    each = len(texts) // len(prompts)
    parts = (slice(at, at + each) for at in range(0, len(texts), each))
    return [by_score(texts[part], sums[part].tolist(), penalty) for part in parts]
