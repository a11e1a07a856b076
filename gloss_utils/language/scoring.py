"""How likely a model finds given texts after a prompt: nothing is searched, and the log-probabilities are exact.

Each prompt runs once, and all its texts hang on it as one tree, so that what they begin with alike runs once, too.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from gloss_utils.language import cache_tree
from gloss_utils.language.cache_tree import Tree, logprobs_of
from gloss_utils.language.catalogue_loss import logprobs_at
from gloss_utils.language.generation import plan_batches
from gloss_utils.language.memory import BATCH_TOKENS
from gloss_utils.language.trie import ROOT, Trie

PROMPT = -1  # the place of what a text's first token follows
GROUP = 8  # a user's texts at a time: tokens look past those of all texts of their group, which costs time


def score(
    model,
    prompts: list[list[int]],
    texts: list[list[list[int]]],
    batch_tokens: int = BATCH_TOKENS,
    trie: Trie | None = None,
) -> list[list[float]]:
    """The log-probability (natural, summed over tokens) of each text after its prompt, in the order of the texts.

    prompts: token ids, one at least each. texts: of each prompt, those to score, as token ids with the end of sequence
    where it counts; one token at least each. trie: of these texts and all others that may be written, where
    log-probabilities are to be among them (see `catalogue_loss`); null: among the whole vocabulary. A model whose cache
    is of another kind is asked text by text (`plain`).
    """
    scorer, scores = Scorer(model, trie), {}
    for batch in plan_batches([len(prompt) for prompt in prompts], 0, batch_tokens):
        found = scorer.write([(prompts[place], texts[place]) for place in batch], batch)
        scores |= zip(batch, found, strict=True)
    return [scores[place] for place in range(len(prompts))]


class Scorer:
    """A model that is asked how likely texts are. Its verb is a `Writer`'s, so that `write_batches` takes it, too.

    trie: see `score`. notice: none; see `Writer`.
    """

    notice = None

    def __init__(self, model, trie: Trie | None = None):
        self.model, self.trie = model, trie.to(model.device) if trie else None
        self.fits = not cache_tree.unfit(model)

    def write(self, inputs: list[tuple[list[int], list[list[int]]]], numbers: list[int]) -> list[list[float]]:
        """The log-probabilities of each prompt's texts (see `score`), of all prompts at a time. inputs: prompts and
        texts. numbers: of no use."""
        if not self.fits:
            return plain(self.model, *zip(*inputs, strict=True), self.trie)
        if self.trie:
            inputs = [(prompt, [_open_part(text, self.trie) for text in texts]) for prompt, texts in inputs]
        asked = [(prompt, texts) for prompt, texts in inputs if texts]
        found = iter(_score_batch(self.model, *map(list, zip(*asked, strict=True)), self.trie) if asked else [])
        return [next(found) if texts else [] for _, texts in inputs]


def _open_part(text: list[int], trie: Trie) -> list[int]:
    """A text without the tokens at its end that are certain, because no other text goes on so; one token at least."""
    for length, node in enumerate(trie.path(text), 1):
        if trie.alone(node):
            return text[: max(1, length - 1)]
    return text


@torch.inference_mode()
def plain(model, prompts: list[list[int]], texts: list[list[list[int]]], trie: Trie | None = None) -> list[list[float]]:
    """The same as `score` by a whole pass of prompt and text for each text."""
    scores = []
    for prompt, some in zip(prompts, texts, strict=True):
        scores.append([])
        for text in some:
            whole = torch.tensor([[*prompt, *text]], device=model.device)
            logits = model(whole[:, :-1]).logits[0, len(prompt) - 1 :]
            if trie is None:
                found = logprobs_of(logits, whole[0, len(prompt) :, None])
            else:
                nodes = torch.tensor(trie.path(text), device=model.device)
                found = logprobs_at(logits, trie.to(model.device), nodes, whole[0, len(prompt) :])
            scores[-1].append(float(found.double().sum()))
    return scores


@dataclass
class _Branches:
    """The tree of some texts of a prompt. N nodes, each a token that follows another, or the prompt (`PROMPT`); the Q
    tokens that something follows are those that run.

    follows: place among those that run, of what each node follows, [N]. nexts: each node's token, [N]. chosen_at: the
    node of the catalogue's trie at which it is chosen, [N] (0 without a trie). tokens, depths:
    of those that run, [Q], parents first. seen: which of these each sees, [Q, Q]. paths: each text's nodes.
    """

    follows: np.ndarray
    nexts: np.ndarray
    chosen_at: np.ndarray
    tokens: np.ndarray
    depths: np.ndarray
    seen: np.ndarray
    paths: list[list[int]]

    @classmethod
    def of(cls, texts: list[list[int]], trie: Trie | None) -> "_Branches":
        nodes: dict[tuple[int, int], int] = {}  # (the node that it follows, its token) -> its place
        paths, chosen_at = [], {}
        for text in texts:
            node, path = PROMPT, []
            for token in text:
                node = nodes.setdefault((node, token), len(nodes))
                path.append(node)
            paths.append(path)
            chosen_at |= zip(path, trie.path(text) if trie else [ROOT] * len(text), strict=True)
        parents = [parent for parent, _ in nodes]
        running = sorted(set(parents) - {PROMPT})
        place = {PROMPT: PROMPT} | {node: place for place, node in enumerate(running)}
        nexts = np.array([token for _, token in nodes], dtype=np.int64)
        depths = np.zeros(len(running), dtype=np.int64)
        seen = np.eye(len(running), dtype=bool)
        for at, node in enumerate(running):
            if (before := place[parents[node]]) != PROMPT:
                depths[at] = depths[before] + 1
                seen[at] |= seen[before]
        follows = np.array([place[parent] for parent in parents], dtype=np.int64)
        chosen_at = np.array([chosen_at[node] for node in range(len(nodes))], dtype=np.int64)
        return cls(follows, nexts, chosen_at, nexts[running], depths, seen, paths)


@torch.inference_mode()
def _score_batch(model, prompts: list[list[int]], texts: list[list[list[int]]], trie: Trie | None) -> list[list[float]]:
    tree = Tree(model, prompts, GROUP, max(len(text) for some in texts for text in some))
    first = tree.read_prompts().squeeze(1)
    orders = [sorted(range(len(some)), key=some.__getitem__) for some in texts]  # what begins alike stands together
    scores = [[0.0] * len(some) for some in texts]
    for begin in range(0, max(map(len, orders)), GROUP):
        groups = [order[begin : begin + GROUP] for order in orders]
        branches = [_Branches.of([some[at] for at in group], trie) for some, group in zip(texts, groups, strict=True)]
        for row, (group, found) in enumerate(zip(groups, _score_group(tree, first, branches, trie), strict=True)):
            for at, path in zip(group, branches[row].paths, strict=True):
                scores[row][at] = float(found[path].sum())
    return scores


def _score_group(tree: Tree, first: torch.Tensor, branches: list[_Branches], trie: Trie | None) -> np.ndarray:
    """The log-probability of each node of each row, [U, N]. first: the logits after the prompts, [U, vocabulary]."""
    follows, nexts, nodes, tokens, depths = (
        pad_sequence([torch.from_numpy(getattr(found, name)) for found in branches], batch_first=True).to(tree.device)
        for name in ("follows", "nexts", "chosen_at", "tokens", "depths")
    )
    longest = tokens.shape[1]
    if trie is None:
        scores, chosen = logprobs_of(first, nexts), None
    else:
        row, column = (follows == PROMPT).nonzero(as_tuple=True)
        scores = torch.zeros(follows.shape, device=tree.device)
        scores[row, column] = logprobs_at(first[row], trie, nodes[row, column], nexts[row, column])
        chosen = partial(logprobs_at, trie=trie)
    if longest:
        seen = torch.eye(longest, dtype=torch.bool).repeat(len(branches), 1, 1)  # a place that is filled up sees itself
        for row, found in enumerate(branches):
            seen[row, : len(found.tokens), : len(found.tokens)] = torch.from_numpy(found.seen)
        below = tree.score_branches(tokens, depths, seen.to(tree.device), follows.clamp_min(0), nexts, chosen, nodes)
        scores = torch.where(follows == PROMPT, scores, below)
    return scores.double().cpu().numpy()
