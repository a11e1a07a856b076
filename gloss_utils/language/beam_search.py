"""Beam search and sampling on a `Tree`, where no prompt runs twice and no cache is copied.

The search is transformers' beam search with its default early stopping (a heuristic): same texts, order and scores, for
any length penalty. With a `Trie`, beams can only be texts of the catalogue. Not all models fit: ask `cache_tree.unfit`
first, once per model.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from gloss_utils.language.cache_tree import NO_BEAM, Tree, logprobs_of, take
from gloss_utils.language.catalogue_loss import logprobs_among
from gloss_utils.language.guide import Guide
from gloss_utils.language.trie import ROOT, Trie


@dataclass
class Decoded:
    """The texts of one prompt, best first: token ids, end of sequence included where it was written, and the sum of the
    model's own log-probabilities (natural) over each text's tokens."""

    tokens: list[list[int]]
    logprobs: list[float]


@torch.inference_mode()
def beam_search(
    model,
    prompts: list[list[int]],
    num_beams: int,
    max_new_tokens: int,
    end: int,
    trie: Trie | None = None,
    length_penalty: float = 1.0,
    guide: Guide | None = None,
    among: bool = False,
) -> list[Decoded]:
    """Continue each prompt (token ids, one at least) with `num_beams` texts, by falling `score_of`.

    end: the end-of-sequence token. trie: what may be written; then it bounds the lengths, not `max_new_tokens`, and a
    prompt gets fewer texts where the trie has fewer. among: log-probabilities are among what the trie allows, as
    `catalogue_loss` trains them, not among the whole vocabulary. guide: of these prompts and this trie; beams are
    chosen and ordered by its scores, but what is returned of them are the model's own log-probabilities.
    """
    if not prompts:
        return []
    tree = Tree(model, prompts, num_beams, max_new_tokens if trie is None else trie.depth)
    search = _Search(len(prompts), num_beams, None if trie else max_new_tokens, end, length_penalty, tree.device)
    source = _Free(tree) if trie is None else _InTrie(tree, trie, guide, among)
    while True:
        scores, tokens, parents, *logprobs = source.candidates(search)
        picks = search.advance(scores, tokens, parents, *logprobs)
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
    length_penalty: float = 1.0,
) -> list[Decoded]:
    """Continue each prompt with texts drawn at random, each token from the likeliest that together reach `top_p`.

    uniforms: the numbers in [0, 1) to draw with, [prompts, texts per prompt, most new tokens]. Log-probabilities are
    the model's own, at temperature 1; texts are ordered by falling `score_of`.
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
    logits = tree.read_prompts()
    while True:
        logits = logits.expand(-1, count, -1)
        tokens = _draw(logits, uniforms[rows, :, written.shape[2]], temperature, top_p)
        going = ~(written == end).any(2)
        sums += torch.where(going, logprobs_of(logits, tokens[..., None]).squeeze(-1), 0)
        written = torch.cat([written, tokens[..., None]], 2)
        done = (~going | (tokens == end)).all(1) | (written.shape[2] == most)
        for row in done.nonzero()[:, 0].tolist():
            texts = until_end(written[row].tolist(), end)
            results[int(rows[row])] = by_score(texts, sums[row].tolist(), length_penalty)
        stay = _stay(done)
        if not len(stay):
            return results
        rows, written, sums, parents = (part[stay] for part in (rows, written, sums, parents))
        logits = tree.step(tokens[stay], parents, stay)
        parents = torch.arange(count, device=tree.device).expand(len(stay), -1)


def _draw(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    likely, tokens = (logits.float() / temperature).softmax(-1).double().sort(dim=-1, descending=True, stable=True)
    reach = likely.cumsum(-1)
    kept = reach - likely < top_p
    at = torch.searchsorted(reach, uniforms[..., None] * (likely * kept).sum(-1, keepdim=True), right=True)
    return tokens.gather(-1, torch.minimum(at, kept.sum(-1, keepdim=True) - 1)).squeeze(-1)


def until_end(texts: list[list[int]], end: int) -> list[list[int]]:
    """Texts (token ids) without what comes after their end token."""
    return [text[: text.index(end) + 1] if end in text else text for text in texts]


def score_of(logprobs, length: int, length_penalty: float):
    """What finished texts are compared by: with a length penalty of 1 the mean log-probability of a token, as the paper
    and transformers have it; with 0 the sum, which tokens that are near-certain cannot raise (D3, arXiv 2406.14900)."""
    return logprobs / length**length_penalty


def by_score(texts: list[list[int]], sums: list[float], length_penalty: float) -> Decoded:
    """A prompt's texts (token ids) and log-probabilities, by falling `score_of`."""
    order = sorted(range(len(texts)), key=lambda i: -score_of(sums[i], len(texts[i]), length_penalty))
    return Decoded([texts[i] for i in order], [sums[i] for i in order])


class _Search:
    """The state of a beam search: running beams, finished texts, users that are done. U users, B beams."""

    def __init__(self, users: int, num_beams: int, max_new_tokens: int | None, end: int, length_penalty: float, device):
        self.num_beams, self.most, self.end, self.penalty = num_beams, max_new_tokens, end, length_penalty
        self.users = torch.arange(users, device=device)
        self.scores = torch.zeros(users, 1, device=device)  # of running beams, falling
        self.logprobs = torch.zeros(users, 1, device=device)  # of these the sums: the scores, unless there is a guide
        self.written = torch.zeros(users, 1, 0, dtype=torch.long, device=device)
        self.done = torch.zeros(users, dtype=torch.bool, device=device)
        self.finished = torch.full((users, num_beams), NO_BEAM, device=device)  # `score_of` finished texts, falling
        self.sums = torch.zeros(users, num_beams, device=device)
        self.texts = torch.zeros(users, num_beams, 0, dtype=torch.long, device=device)
        self.results: list[Decoded | None] = [None] * users

    def advance(self, scores, tokens, parents, logprobs: torch.Tensor | None = None) -> torch.Tensor:
        """Take the best continuations, [U, at least B] by falling score; returns which of them go on, [U, B].

        logprobs: the sums of the log-probabilities, where the scores are others.
        """
        logprobs = scores if logprobs is None else logprobs
        length = self.written.shape[2] + 1
        ended = tokens == self.end if length != self.most else torch.ones_like(tokens, dtype=torch.bool)
        written = torch.cat([take(self.written, parents), tokens[..., None]], 2)
        best = slice(0, self.num_beams)
        finished = score_of(scores, length, self.penalty).masked_fill(~ended, NO_BEAM)
        self.finished, order = torch.cat([self.finished, finished[:, best]], 1).topk(self.num_beams)
        self.sums = torch.cat([self.sums, logprobs[:, best]], 1).gather(1, order)
        self.texts = take(torch.cat([pad(self.texts, (0, 1)), written[:, best]], 1), order)
        self.scores, picks = scores.masked_fill(ended, NO_BEAM).topk(self.num_beams)
        self.logprobs, self.written = logprobs.gather(1, picks), take(written, picks)
        # transformers' heuristic: no running beam is better now than the worst of a full set of finished texts.
        hope = score_of(self.scores[:, 0], length, self.penalty)
        hopeless = (self.finished[:, -1] > NO_BEAM) & (hope <= self.finished[:, -1])
        self.done = hopeless | (self.scores[:, 0] == NO_BEAM)
        return picks

    def leave(self) -> torch.Tensor:
        """Note the results of users that are done and drop them; returns the rows that stay, in their new order."""
        for row in self.done.nonzero()[:, 0].tolist():
            found = self.finished[row] > NO_BEAM
            texts = until_end(self.texts[row, found].tolist(), self.end)
            self.results[int(self.users[row])] = Decoded(texts, self.sums[row, found].tolist())
        stay = _stay(self.done)
        if len(stay) < len(self.done):
            for name in ("users", "scores", "logprobs", "written", "done", "finished", "sums", "texts"):
                setattr(self, name, getattr(self, name)[stay])
        return stay


def _stay(done: torch.Tensor) -> torch.Tensor:
    """The rows that are not done; the last ones fill the gaps, so that few rows have to be moved."""
    left = (~done).nonzero()[:, 0]
    stay = torch.arange(len(left), device=done.device)
    stay[done[: len(left)]] = left[left >= len(left)]
    return stay


def _best(scores: torch.Tensor, num_beams: int, *others: torch.Tensor):
    """The best 2B of all continuations [U, beams, n], at most half of which can end: scores, parents, and what `others`
    hold of them, each [U, at least B]; places that hold no beam fill up."""
    best, at = scores.flatten(1).topk(min(2 * num_beams, scores[0].numel()))
    found = at // scores.shape[2], *(other.flatten(1).gather(1, at) for other in others)
    more = max(0, num_beams - best.shape[1])
    return pad(best, (0, more), value=NO_BEAM), *(pad(part, (0, more)) for part in found)


class _Free:
    """Candidates are all tokens of the vocabulary."""

    def __init__(self, tree: Tree):
        self.tree, self.logits = tree, tree.read_prompts()

    def candidates(self, search: _Search):
        """The best 2B continuations of the running beams: scores, tokens, parents, each [U, 2B]."""
        # The best of all are among the best of each beam: no need to normalise and sort the whole vocabulary.
        each, tokens = self.logits.topk(min(2 * self.tree.num_beams, self.logits.shape[-1]))
        each = each.float() - self.logits.float().logsumexp(-1, keepdim=True) + search.scores[..., None]
        best, parents, tokens = _best(each, self.tree.num_beams, tokens)
        return best, tokens, parents

    def follow(self, tokens, parents, picks, stay, scores):
        """Run the model on the chosen tokens."""
        self.logits = self.tree.step(tokens, parents, stay)
        return self


class _InTrie:
    """Candidates are the tokens that the catalogue's texts go on with."""

    def __init__(self, tree: Tree, trie: Trie, guide: Guide | None, among: bool):
        self.tree, self.trie, self.guide, self.logits = tree, trie.to(tree.device), guide, tree.read_prompts()
        self.among = among
        self.nodes = torch.full((tree.rows, 1), ROOT, dtype=torch.long, device=tree.device)

    def candidates(self, search: _Search):
        """The best 2B continuations that are in the trie: scores, tokens, parents, log-probabilities, each [U, 2B]."""
        tokens, nodes, filled = self.trie.children(self.nodes)
        logprobs = logprobs_among(self.logits, tokens, filled) if self.among else logprobs_of(self.logits, tokens)
        logprobs += search.logprobs[..., None]
        filled &= search.scores[..., None] > NO_BEAM
        scores = logprobs if self.guide is None else self.guide.score(logprobs, search.users, nodes, filled)
        scores = scores.masked_fill(~filled, NO_BEAM)
        best, parents, tokens, self.next, logprobs = _best(scores, self.tree.num_beams, tokens, nodes, logprobs)
        return best, tokens, parents, logprobs

    def follow(self, tokens, parents, picks, stay, scores):
        """Run the model on the chosen tokens, or on all that is left where every beam has one continuation."""
        nodes = self.next.gather(1, picks)[stay]
        self.nodes = nodes.where(scores > NO_BEAM, nodes[:, :1])  # where there is no beam, the best one's node
        if bool(self.trie.alone(self.nodes).all()):
            share = 1.0 if self.guide is None else 1 - self.guide.share  # of the model: a tail has one mass
            return _Tails(self.tree, self.trie, tokens, parents, self.nodes, stay, share, self.among)
        self.logits = self.tree.step(tokens, parents, stay)
        return self


class _Tails:
    """Candidates are the only continuations that are left, one per beam, scored in one pass; among what the trie allows
    they are certain."""

    def __init__(self, tree: Tree, trie: Trie, tokens, parents, nodes, stay, share: float, among: bool):
        self.share = share
        self.tokens, filled = trie.tails(nodes)
        certain = torch.zeros(filled.shape, device=filled.device)
        logprobs = certain if among else tree.score(tokens, parents, stay, self.tokens, filled)
        self.logprobs = torch.where(filled, logprobs, NO_BEAM)
        self.step = 0
        self.beams = torch.arange(nodes.shape[1], device=nodes.device).expand(len(nodes), -1)

    def candidates(self, search: _Search):
        """Each beam's next token: scores, tokens, parents, log-probabilities, each [U, B], by falling score."""
        more = self.logprobs[..., self.step].gather(1, self.beams)
        each = torch.where(more > NO_BEAM, search.scores + self.share * more, NO_BEAM)
        best, parents = each.sort(dim=-1, descending=True, stable=True)
        self.beams = self.beams.gather(1, parents)
        logprobs = (search.logprobs + more).gather(1, parents)
        return best, self.tokens[..., self.step].gather(1, self.beams), parents, logprobs

    def follow(self, tokens, parents, picks, stay, scores):
        """Go on to the next token, which is known."""
        self.step += 1
        self.beams = self.beams.gather(1, picks)[stay]
        self.tokens, self.logprobs = self.tokens[stay], self.logprobs[stay]
        return self
