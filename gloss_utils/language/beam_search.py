"""Beam search and sampling on a `Tree`, where no prompt runs twice and no cache is copied.

The search is transformers' beam search with its default length penalty (1) and early stopping (a heuristic): same
texts, order and scores. With a `Trie`, beams can only be texts of the catalogue. Not all models fit: ask
`cache_tree.unfit` first, once per model.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from gloss_utils.language.cache_tree import NO_BEAM, Tree, logprobs_of, take
from gloss_utils.language.trie import ROOT, Trie


@dataclass
class Decoded:
    """The texts of one prompt, best first: token ids, end of sequence included where it was written, and the sum of the
    model's own log-probabilities (natural) over each text's tokens."""

    tokens: list[list[int]]
    logprobs: list[float]


@torch.inference_mode()
def beam_search(
    model, prompts: list[list[int]], num_beams: int, max_new_tokens: int, end: int, trie: Trie | None = None
) -> list[Decoded]:
    """Continue each prompt (token ids, one at least) with `num_beams` texts, by falling mean log-probability.

    end: the end-of-sequence token. trie: what may be written; then it bounds the lengths, not `max_new_tokens`, and a
    prompt gets fewer texts where the trie has fewer.
    """
    if not prompts:
        return []
    tree = Tree(model, prompts, num_beams, max_new_tokens if trie is None else trie.depth)
    search = _Search(len(prompts), num_beams, None if trie else max_new_tokens, end, tree.device)
    source = _Free(tree, num_beams) if trie is None else _InTrie(tree, num_beams, trie)
    while True:
        scores, tokens, parents = source.candidates(search.scores)
        picks = search.advance(scores, tokens, parents)
        stay = search.leave()
        if not len(stay):
            return search.results
        tokens, parents = (part.gather(1, picks)[stay] for part in (tokens, parents))
        source = source.follow(tokens, parents, picks, stay, search.scores)


@torch.inference_mode()
def sample(
    model,
    prompts: list[list[int]],
    uniforms: torch.Tensor,
    end: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[Decoded]:
    """Continue each prompt with texts drawn at random, each token from the likeliest that together reach `top_p`.

    uniforms: the numbers in [0, 1) to draw with, [prompts, texts per prompt, most new tokens]. Log-probabilities are
    the model's own, at temperature 1; texts are ordered by their falling mean.
    """
    if not prompts:
        return []
    count, most = uniforms.shape[1:]
    tree = Tree(model, prompts, count, most)
    uniforms = uniforms.to(tree.device)
    rows, results = torch.arange(len(prompts), device=tree.device), [None] * len(prompts)
    parents = torch.zeros(len(prompts), count, dtype=torch.long, device=tree.device)
    written = parents.new_zeros(len(prompts), count, 0)
    sums = torch.zeros(len(prompts), count, device=tree.device)
    lengths, logits = parents.clone(), tree.read_prompts()
    while True:
        step = written.shape[2]
        logits = logits.expand(-1, count, -1)
        tokens = _draw(logits, uniforms[rows, :, step], temperature, top_p)
        going = lengths == step
        going &= ~(written[..., -1] == end) if step else going
        sums += torch.where(going, logprobs_of(logits, tokens[..., None]).squeeze(-1), 0)
        lengths += going
        written = torch.cat([written, tokens[..., None]], 2)
        over = going & (tokens != end) if step + 1 < most else torch.zeros_like(going)
        done = ~over.any(1)
        for row in done.nonzero()[:, 0].tolist():
            texts = [ids[:n] for ids, n in zip(written[row].tolist(), lengths[row].tolist(), strict=True)]
            results[int(rows[row])] = by_mean(texts, sums[row].tolist())
        stay = _stay(done)
        if not len(stay):
            return results
        rows, written, sums, lengths, tokens, parents = (
            part[stay] for part in (rows, written, sums, lengths, tokens, parents)
        )
        logits = tree.step(tokens, parents, stay)
        parents = torch.arange(count, device=tree.device).expand(len(stay), -1)


def _draw(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    likely, tokens = (logits.float() / temperature).softmax(-1).double().sort(dim=-1, descending=True, stable=True)
    reach = likely.cumsum(-1)
    kept = reach - likely < top_p
    at = torch.searchsorted(reach, uniforms[..., None] * (likely * kept).sum(-1, keepdim=True), right=True)
    return tokens.gather(-1, torch.minimum(at, kept.sum(-1, keepdim=True) - 1)).squeeze(-1)


def by_mean(texts: list[list[int]], sums: list[float]) -> Decoded:
    """A prompt's texts (token ids) and log-probabilities, by falling mean."""
    order = sorted(range(len(texts)), key=lambda i: -sums[i] / len(texts[i]))
    return Decoded([texts[i] for i in order], [sums[i] for i in order])


class _Search:
    """The state of a beam search: running beams, finished texts, users that are done. U users, B beams."""

    def __init__(self, users: int, num_beams: int, max_new_tokens: int | None, end: int, device):
        self.num_beams, self.most, self.end = num_beams, max_new_tokens, end
        self.users = torch.arange(users, device=device)
        self.scores = torch.zeros(users, 1, device=device)  # of running beams: sums of log-probabilities, falling
        self.written = torch.zeros(users, 1, 0, dtype=torch.long, device=device)
        self.done = torch.zeros(users, dtype=torch.bool, device=device)
        self.means = torch.full((users, num_beams), NO_BEAM, device=device)  # of finished texts, falling
        self.sums = torch.zeros(users, num_beams, device=device)
        self.lengths = torch.zeros(users, num_beams, dtype=torch.long, device=device)
        self.texts = torch.zeros(users, num_beams, 0, dtype=torch.long, device=device)
        self.results: list[Decoded | None] = [None] * users

    def advance(self, scores: torch.Tensor, tokens: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        """Take the best continuations, [U, at least B] by falling score; returns which of them go on, [U, B]."""
        length = self.written.shape[2] + 1
        ended = tokens == self.end if length != self.most else torch.ones_like(tokens, dtype=torch.bool)
        written = torch.cat([take(self.written, parents), tokens[..., None]], 2)
        self._finish(scores[:, : self.num_beams], ended[:, : self.num_beams], written[:, : self.num_beams], length)
        self.scores, picks = scores.masked_fill(ended, NO_BEAM).topk(self.num_beams)
        self.written = take(written, picks)
        # transformers' heuristic: no running beam is better now than the worst of a full set of finished texts.
        hopeless = (self.means[:, -1] > NO_BEAM) & (self.scores[:, 0] / length <= self.means[:, -1])
        self.done = hopeless | (self.scores[:, 0] == NO_BEAM)
        return picks

    def _finish(self, scores: torch.Tensor, ended: torch.Tensor, written: torch.Tensor, length: int):
        means = (scores / length).masked_fill(~ended, NO_BEAM)
        self.means, order = torch.cat([self.means, means], 1).topk(self.num_beams)
        self.sums = torch.cat([self.sums, scores], 1).gather(1, order)
        self.lengths = torch.cat([self.lengths, torch.full_like(order, length)], 1).gather(1, order)
        self.texts = take(torch.cat([pad(self.texts, (0, 1)), written], 1), order)

    def leave(self) -> torch.Tensor:
        """Note the results of users that are done and drop them; returns the rows that stay, in their new order."""
        gone = self.done.nonzero()[:, 0]
        if len(gone):
            parts = (part[gone].tolist() for part in (self.users, self.means, self.texts, self.lengths, self.sums))
            for user, means, texts, lengths, sums in zip(*parts, strict=True):
                found = [i for i, mean in enumerate(means) if mean > NO_BEAM]
                self.results[user] = Decoded([texts[i][: lengths[i]] for i in found], [sums[i] for i in found])
        stay = _stay(self.done)
        if len(gone):
            for name in ("users", "scores", "written", "done", "means", "sums", "lengths", "texts"):
                setattr(self, name, getattr(self, name)[stay])
        return stay


def _stay(done: torch.Tensor) -> torch.Tensor:
    """The rows that are not done; the last ones fill the gaps, so that few rows have to be moved."""
    left = (~done).nonzero()[:, 0]
    stay = torch.arange(len(left), device=done.device)
    stay[done[: len(left)]] = left[left >= len(left)]
    return stay


def _fill(scores: torch.Tensor, *others: torch.Tensor, places: int):
    """Pad candidates [U, n] to at least `places` columns with places that hold no beam."""
    more = max(0, places - scores.shape[1])
    return pad(scores, (0, more), value=NO_BEAM), *(pad(other, (0, more)) for other in others)


class _Free:
    """Candidates are all tokens of the vocabulary."""

    def __init__(self, tree: Tree, num_beams: int):
        self.tree, self.num_beams, self.logits = tree, num_beams, tree.read_prompts()

    def candidates(self, scores: torch.Tensor):
        """The best 2B continuations of the running beams: scores, tokens, parents, each [U, 2B]."""
        wanted = 2 * self.num_beams  # at most half of them can end
        # The best of all are among the best of each beam: no need to normalise and sort the whole vocabulary.
        each, tokens = self.logits.topk(min(wanted, self.logits.shape[-1]))
        each = each.float() - self.logits.float().logsumexp(-1, keepdim=True) + scores[..., None]
        best, at = each.flatten(1).topk(min(wanted, each[0].numel()))
        return _fill(best, tokens.flatten(1).gather(1, at), at // each.shape[2], places=self.num_beams)

    def follow(self, tokens, parents, picks, stay, scores):
        """Run the model on the chosen tokens."""
        self.logits = self.tree.step(tokens, parents, stay)
        return self


class _InTrie:
    """Candidates are the tokens that the catalogue's texts go on with."""

    def __init__(self, tree: Tree, num_beams: int, trie: Trie):
        self.tree, self.num_beams, self.trie = tree, num_beams, trie.to(tree.device)
        self.nodes = torch.full((tree.rows, 1), ROOT, dtype=torch.long, device=tree.device)
        self.logits = tree.read_prompts()

    def candidates(self, scores: torch.Tensor):
        """The best 2B continuations that are in the trie: scores, tokens, parents, each [U, 2B]."""
        tokens, nodes, filled = self.trie.children(self.nodes)
        each = (logprobs_of(self.logits, tokens) + scores[..., None]).masked_fill(~filled, NO_BEAM)
        best, at = each.flatten(1).topk(min(2 * self.num_beams, each[0].numel()))
        best, tokens, parents, self.next = _fill(
            best,
            tokens.flatten(1).gather(1, at),
            at // each.shape[2],
            nodes.flatten(1).gather(1, at),
            places=self.num_beams,
        )
        return best, tokens, parents

    def follow(self, tokens, parents, picks, stay, scores):
        """Run the model on the chosen tokens, or on all that is left where every beam has one continuation."""
        nodes = self.next.gather(1, picks)[stay]
        self.nodes = nodes.where(scores > NO_BEAM, nodes[:, :1])  # where there is no beam, the best one's node
        if bool((self.trie.tail[self.nodes] > 0).all()):
            return _Tails(self.tree, self.trie, tokens, parents, self.nodes, stay)
        self.logits = self.tree.step(tokens, parents, stay)
        return self


class _Tails:
    """Candidates are the only continuations that are left, one per beam, scored in one pass."""

    def __init__(self, tree: Tree, trie: Trie, tokens, parents, nodes, stay):
        self.tokens, filled = trie.tails(nodes)
        logprobs = tree.score(tokens, parents, stay, self.tokens, filled)
        self.logprobs = torch.where(filled, logprobs, NO_BEAM)
        self.step = 0
        self.beams = torch.arange(nodes.shape[1], device=nodes.device).expand(len(nodes), -1)

    def candidates(self, scores: torch.Tensor):
        """Each beam's next token: scores, tokens, parents, each [U, B], by falling score."""
        each = scores + self.logprobs[..., self.step].gather(1, self.beams)
        best, parents = each.sort(dim=-1, descending=True, stable=True)
        self.beams = self.beams.gather(1, parents)
        return best, self.tokens[..., self.step].gather(1, self.beams), parents

    def follow(self, tokens, parents, picks, stay, scores):
        """Go on to the next token, which is known."""
        self.step += 1
        self.beams = self.beams.gather(1, picks)[stay]
        self.tokens, self.logprobs = self.tokens[stay], self.logprobs[stay]
        return self
