"""A loss for models that write titles of the catalogue alone: what the catalogue leaves open, and nothing else.

Most tokens of a title follow from those before, because only one title of the catalogue goes on with them. Next-token
loss on the whole text lets a model learn by heart how titles are spelt before it learns which item comes next. Here a
model chooses only where titles part, and only among the tokens with which they go on; so the log-probabilities of all
titles sum up to 1, and a small model's training is spent on histories. It is a hierarchical softmax (Morin and Bengio,
2005) over the trie of titles. A model that was trained so can write nothing else (`decoding: catalogue`).
"""

from collections.abc import Sequence

import torch

from gloss_utils.language.trie import ROOT, Trie

WIDE = 64  # children
NOWHERE, IGNORED = -1, -100  # no node; the label of a token without a loss


class Choices:
    """Finds the titles in training texts, and where in them the catalogue leaves something open."""

    def __init__(self, trie: Trie, end: int):
        """trie: of the titles that may be learnt from. end: the end-of-sequence token, the last of each title."""
        self.trie, self.end = trie, end

    def nodes(self, ids: Sequence[int]) -> list[int]:
        """For each token of a training text the node at which it was chosen, or `NOWHERE` where nothing is chosen.

        Titles of the history end before a token of another kind, and the target with the end of sequence. That a title
        of the history ends is no choice: the model sees another token there.
        """
        found, place = [NOWHERE] * len(ids), 0
        while place < len(ids):
            # A token with which titles begin alike, as "Title", opens a walk; a text that is no title soon leaves it.
            node, at, open_at = ROOT, place, []
            while at < len(ids) and ids[at] in (below := self.trie.below(node)):
                if len(below) > 1:
                    open_at.append((at, node))
                node, at = below[ids[at]], at + 1
            if at > place and (ids[at - 1] == self.end or self.end in self.trie.below(node)):
                for token, parent in open_at:
                    found[token] = parent
                place = at
            else:
                place += 1
        return found


def logprobs_among(logits: torch.Tensor, tokens: torch.Tensor, filled: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of tokens [..., n] among those of them that are `filled`; 0 in places that are not.

    logits: [..., vocabulary].
    """
    known = logits.float().gather(-1, tokens).masked_fill(~filled, float("-inf"))
    return torch.where(filled, known - known.logsumexp(-1, keepdim=True), 0.0)


def logprobs_at(logits: torch.Tensor, trie: Trie, nodes: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The log-probabilities of the tokens `chosen` [n] at nodes [n], among those that the trie goes on with.

    logits: [n, vocabulary]. The few nodes near the root have thousands of children: they are looked at by themselves.
    """
    found, is_wide = torch.zeros(nodes.shape, device=logits.device), trie.count(nodes) > WIDE
    for some in (is_wide.nonzero()[:, 0], (~is_wide).nonzero()[:, 0]):
        if len(some):
            tokens, _, filled = trie.children(nodes[some])
            among = logprobs_among(logits[some], tokens, filled)
            found = found.index_add(0, some, torch.where(tokens == chosen[some, None], among, 0.0).sum(-1))
    return found


def loss(model, batch: dict[str, torch.Tensor], trie: Trie, count: torch.Tensor | int | None = None) -> torch.Tensor:
    """The mean loss (nats) of a batch's choices.

    batch: input_ids, attention_mask, labels (`IGNORED` where nothing is chosen), nodes (see `Choices.nodes`), each
    [texts, tokens]. trie: on the model's device. count: choices to divide by, those of a whole optimiser step (null: of
    this batch).
    """
    labels, nodes = batch["labels"][:, 1:], batch["nodes"][:, 1:]
    (columns,) = (labels != IGNORED).any(0).nonzero(as_tuple=True)  # what no text chooses at needs no logits
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = model(**inputs, logits_to_keep=columns).logits
    row, column = (labels[:, columns] != IGNORED).nonzero(as_tuple=True)
    labels, nodes = labels[row, columns[column]], nodes[row, columns[column]]
    if not len(labels):
        return logits.sum()  # of nothing: 0
    logprobs = logprobs_at(logits[row, column], trie, nodes, labels)
    return -logprobs.sum() / (len(labels) if count is None else count)
