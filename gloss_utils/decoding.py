"""Decoding without repeated work: each prompt runs once, and a user's beams are queries of one row of a static cache.

The tokens that a step appends, those of all beams of a user, go to that user's row; a 4-D mask lets each beam see the
prompt and its own ancestors. So nothing in the cache is copied or reordered when beams split or are dropped. The search
is transformers' beam search with its default length penalty (1) and early stopping (a heuristic): same sequences, order
and scores. With a `Trie`, beams can only be texts of the catalogue.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

from gloss_utils.trie import ROOT, Trie

NONE = float("-inf")  # the score of a beam that is none, and what the mask adds where a query must not look
RESERVED_STEPS = 64  # the cache has room for so many steps; in a deep trie it grows
PROBE = {True: 1e-2, False: 0.5}  # float32 or not: how far logits in `unfit` may be off, in their standard deviation
TAIL_LOGITS = 2**27  # logits that scoring tails holds at a time: half a gigabyte in float32


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

    end: the end-of-sequence token. trie: what may be written; lengths are then bounded by it, not by `max_new_tokens`,
    and a prompt has as many texts as the trie has where these are fewer. Call `unfit` before, once a model.
    """
    if not prompts:
        return []
    with _attention(model):
        return _beam_search(model, prompts, num_beams, max_new_tokens, end, trie)


def _beam_search(model, prompts, num_beams, max_new_tokens, end, trie):
    tree = _Tree(model, prompts, num_beams, max_new_tokens if trie is None else trie.depth)
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
    """Continue each prompt with texts drawn at random, each token from the likeliest that together hold `top_p`.

    uniforms: the numbers in [0, 1) to draw with, [prompts, texts a prompt, most new tokens]. Log-probabilities are the
    model's own, at temperature 1; texts stand by their falling mean.
    """
    if not prompts:
        return []
    with _attention(model):
        return _sample(model, prompts, uniforms, end, temperature, top_p)


def _sample(model, prompts, uniforms, end, temperature, top_p):
    count, most = uniforms.shape[1:]
    tree = _Tree(model, prompts, count, most)
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
        sums += torch.where(going, _logprobs(logits, tokens[..., None]).squeeze(-1), 0)
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


def unfit(model) -> str | None:
    """Why this module's cache and mask do not fit a model, in words; None where they do.

    What the configuration does not tell is tried: two beams after two short prompts, against the model without a cache.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if config.is_encoder_decoder:
        return "it is an encoder-decoder model"
    if getattr(model, "_is_stateful", False) or not getattr(config, "num_hidden_layers", 0):
        return "its memory is a state, not a cache of keys and values"
    if kinds != {"full_attention"} or (not getattr(config, "layer_types", None) and _slides(config)):
        return "not all its layers attend to everything before"
    try:
        return _tried(model, config.vocab_size)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, AssertionError) as error:
        return f"it does not take this cache ({' '.join(str(error).split())[:100]})"


def _slides(config) -> bool:
    return getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)


@torch.inference_mode()
def _tried(model, vocabulary: int) -> str | None:
    tokens = torch.randint(vocabulary, (2, 12), generator=torch.Generator().manual_seed(0)).tolist()
    starts, beams = [tokens[0][:5], tokens[1][:3]], [tokens[0][8:10], tokens[1][8:10]]
    branches = [[tokens[0][10], tokens[0][11]], [tokens[1][10], tokens[1][11]]]
    with _attention(model):
        tree, stay = _Tree(model, starts, 2, 3), torch.arange(2, device=model.device)
        tree.read_prompts()
        tree.step(torch.tensor(beams, device=model.device), torch.zeros_like(tree.prompts[:, :2]), stay)
        crossed = torch.tensor([[1, 0], [1, 1]], device=model.device)
        found = tree.step(torch.tensor(branches, device=model.device), crossed, stay).float()
    for row, start in enumerate(starts):
        for beam, parent in enumerate(crossed[row].tolist()):
            whole = torch.tensor([[*start, beams[row][parent], branches[row][beam]]], device=model.device)
            expected = model(whole).logits[0, -1].float()
            if (found[row, beam] - expected).abs().max() > PROBE[model.dtype == torch.float32] * expected.std():
                return "its answers depend on more than the positions and the mask that it is given"
    return None


class _Search:
    """Beam search's book-keeping: beams that run, texts that are finished, users that are done. U users, B beams."""

    def __init__(self, users: int, num_beams: int, max_new_tokens: int | None, end: int, device):
        self.num_beams, self.most, self.end = num_beams, max_new_tokens, end
        self.users = torch.arange(users, device=device)
        self.scores = torch.zeros(users, 1, device=device)  # of running beams: sums of log-probabilities, falling
        self.written = torch.zeros(users, 1, 0, dtype=torch.long, device=device)
        self.done = torch.zeros(users, dtype=torch.bool, device=device)
        self.means = torch.full((users, num_beams), NONE, device=device)  # of finished texts, falling
        self.sums = torch.zeros(users, num_beams, device=device)
        self.lengths = torch.zeros(users, num_beams, dtype=torch.long, device=device)
        self.texts = torch.zeros(users, num_beams, 0, dtype=torch.long, device=device)
        self.results: list[Decoded | None] = [None] * users

    def advance(self, scores: torch.Tensor, tokens: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        """Take the best continuations, [U, at least B] by falling score; returns which of them run on, [U, B]."""
        length = self.written.shape[2] + 1
        ended = tokens == self.end if length != self.most else torch.ones_like(tokens, dtype=torch.bool)
        written = torch.cat([_take(self.written, parents), tokens[..., None]], 2)
        self._finish(scores[:, : self.num_beams], ended[:, : self.num_beams], written[:, : self.num_beams], length)
        self.scores, picks = scores.masked_fill(ended, NONE).topk(self.num_beams)
        self.written = _take(written, picks)
        # transformers' heuristic: no running beam is better now than the worst of a full set of finished texts.
        hopeless = (self.means[:, -1] > NONE) & (self.scores[:, 0] / length <= self.means[:, -1])
        self.done = hopeless | (self.scores[:, 0] == NONE)
        return picks

    def _finish(self, scores: torch.Tensor, ended: torch.Tensor, written: torch.Tensor, length: int):
        means = (scores / length).masked_fill(~ended, NONE)
        self.means, order = torch.cat([self.means, means], 1).topk(self.num_beams)
        self.sums = torch.cat([self.sums, scores], 1).gather(1, order)
        self.lengths = torch.cat([self.lengths, torch.full_like(order, length)], 1).gather(1, order)
        self.texts = _take(torch.cat([pad(self.texts, (0, 1)), written], 1), order)

    def leave(self) -> torch.Tensor:
        """Note the results of users that are done, and forget these; returns the rows that stay, in their new order."""
        gone = self.done.nonzero()[:, 0]
        if len(gone):
            parts = (part[gone].tolist() for part in (self.users, self.means, self.texts, self.lengths, self.sums))
            for user, means, texts, lengths, sums in zip(*parts, strict=True):
                found = [i for i, mean in enumerate(means) if mean > NONE]
                self.results[user] = Decoded([texts[i][: lengths[i]] for i in found], [sums[i] for i in found])
        stay = _stay(self.done)
        if len(gone):
            for name in ("users", "scores", "written", "done", "means", "sums", "lengths", "texts"):
                setattr(self, name, getattr(self, name)[stay])
        return stay


def _take(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """values [U, n, ...] at places [U, m]: [U, m, ...]."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[2]))


def _stay(done: torch.Tensor) -> torch.Tensor:
    """The rows that are not done; those from the end fill the holes, so that few have to be moved."""
    left = (~done).nonzero()[:, 0]
    stay = torch.arange(len(left), device=done.device)
    stay[done[: len(left)]] = left[left >= len(left)]
    return stay


def _logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    logits = logits.float()
    return logits.gather(-1, tokens) - logits.logsumexp(-1, keepdim=True)


def _fill(scores: torch.Tensor, *others: torch.Tensor, places: int):
    """Give candidates [U, n] `places` columns at least; those added are no beams."""
    more = max(0, places - scores.shape[1])
    return pad(scores, (0, more), value=NONE), *(pad(other, (0, more)) for other in others)


class _Free:
    """Candidates are all tokens of the vocabulary."""

    def __init__(self, tree: "_Tree", num_beams: int):
        self.tree, self.num_beams, self.logits = tree, num_beams, tree.read_prompts()

    def candidates(self, scores: torch.Tensor):
        """The best 2B continuations of the running beams: scores, tokens, parents, each [U, 2B]."""
        wanted = 2 * self.num_beams  # half of them at most can end
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
    """Candidates are what the catalogue's texts go on with."""

    def __init__(self, tree: "_Tree", num_beams: int, trie: Trie):
        self.tree, self.num_beams, self.trie = tree, num_beams, trie.to(tree.device)
        self.nodes = torch.full((tree.rows, 1), ROOT, dtype=torch.long, device=tree.device)
        self.logits = tree.read_prompts()

    def candidates(self, scores: torch.Tensor):
        """The best 2B continuations that are in the trie: scores, tokens, parents, each [U, 2B]."""
        tokens, nodes, filled = self.trie.children(self.nodes)
        each = (_logprobs(self.logits, tokens) + scores[..., None]).masked_fill(~filled, NONE)
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
        self.nodes = nodes.where(scores > NONE, nodes[:, :1])  # a beam that is none goes along with the best one
        if bool((self.trie.tail[self.nodes] > 0).all()):
            return _Tails(self.tree, self.trie, tokens, parents, self.nodes, stay)
        self.logits = self.tree.step(tokens, parents, stay)
        return self


class _Tails:
    """The only continuations of beams that have one each, scored in one pass."""

    def __init__(self, tree: "_Tree", trie: Trie, tokens, parents, nodes, stay):
        self.tokens, filled = trie.tails(nodes)
        logprobs = tree.score(tokens, parents, stay, self.tokens, filled)
        self.logprobs = torch.where(filled, logprobs, NONE)
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


class _Tree:
    """A batch of prompts and what is written after them, as the model sees it: one row of the cache a user.

    Prompts stand at the left, so that their pass needs no mask; the last token of each comes in a step of its own, in
    a column that all share. U rows, B beams, q new tokens a row.
    """

    def __init__(self, model, prompts: list[list[int]], num_beams: int, longest: int):
        self.model, self.device, self.rows = model, model.device, len(prompts)
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        self.width, self.steps = int(self.lengths.max()), 0
        ids = [torch.tensor(prompt) for prompt in prompts]
        self.prompts = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(self.device)
        columns = self.width + num_beams * min(longest, RESERVED_STEPS)
        self.layers = [_Layer(columns) for _ in range(model.config.get_text_config().num_hidden_layers)]
        self.cache = Cache(layers=self.layers)
        at = torch.arange(self.width, device=self.device)
        seen = (at < self.lengths[:, None] - 1) | (at == self.width - 1)
        self.prompt_mask = self._mask(seen)[:, None]  # [U, 1, prompt columns]
        self.mask = self.prompt_mask[..., :0]  # each beam's ancestors: [U, B, written columns]

    def read_prompts(self) -> torch.Tensor:
        """Run the prompts; returns the logits after each, [U, 1, vocabulary]."""
        if self.width > 1:
            positions = torch.arange(self.width - 1, device=self.device)[None]
            self._run(self.prompts[:, :-1], positions, None, logits_to_keep=1)
        last = self.lengths[:, None] - 1
        return self._run(self.prompts.gather(1, last), last, self.prompt_mask)

    def step(self, tokens: torch.Tensor, parents: torch.Tensor, stay: torch.Tensor) -> torch.Tensor:
        """Keep the rows `stay` and run the next token of each beam, [U, B]; returns logits [U, B, vocabulary].

        parents: which of the last step's beams each goes on from, [U, B].
        """
        self._branch(parents, stay)
        own = torch.eye(tokens.shape[1], dtype=torch.bool, device=self.device)
        self.mask = torch.cat([self.mask, self._mask(own).expand(self.rows, -1, -1)], 2)
        positions = (self.lengths[:, None] + self.steps).expand_as(tokens)
        self.steps += 1
        return self._run(tokens, positions, self._whole(self.mask))

    def score(self, tokens, parents, stay, tails: torch.Tensor, filled: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of what follows the beams' next tokens, where it is known: tails [U, B, J] -> [U, B, J].

        Only the places that are `filled` hold a token. Each row's tokens are packed side by side; each sees its own
        beam's.
        """
        self._branch(parents, stay)
        count, longest = tails.shape[1:]
        written = torch.cat([tokens[..., None], tails[..., :-1]], 2).flatten(1)
        most = int(filled.sum((1, 2)).max())
        at = filled.flatten(1).int().argsort(dim=1, descending=True, stable=True)[:, :most]
        beam, place = at // longest, at % longest
        among = (beam[:, :, None] == beam[:, None, :]) & (place[:, :, None] >= place[:, None, :])
        mask = self._whole(torch.cat([_take(self.mask, beam), self._mask(among)], 2))
        positions = self.lengths[:, None] + self.steps + place
        scores = torch.empty(self.rows, most, device=self.device)
        for rows in self._portions(most):
            logits = self._run(written.gather(1, at)[rows], positions[rows], mask[rows], rows)
            scores[rows] = _logprobs(logits, tails.flatten(1).gather(1, at)[rows, :, None]).squeeze(-1)
            self._forget(most)
        return scores.new_zeros(self.rows, count * longest).scatter(1, at, scores).view(-1, count, longest)

    def _portions(self, tokens: int) -> list[slice]:
        each = max(1, TAIL_LOGITS // (tokens * self.model.config.get_text_config().vocab_size))
        return [slice(row, min(row + each, self.rows)) for row in range(0, self.rows, each)]

    def _forget(self, columns: int):
        for layer in self.layers:
            layer.used -= columns

    def _branch(self, parents: torch.Tensor, stay: torch.Tensor):
        self.lengths, self.prompt_mask, self.rows = self.lengths[stay], self.prompt_mask[stay], len(stay)
        self.mask = _take(self.mask[stay], parents)
        to = (stay != torch.arange(len(stay), device=self.device)).nonzero()[:, 0]
        if len(to):
            for layer in self.layers:
                layer.move(stay[to], to)

    def _whole(self, written: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.prompt_mask.expand(-1, written.shape[1], -1), written], 2)

    def _mask(self, seen: torch.Tensor) -> torch.Tensor:
        return torch.zeros(seen.shape, dtype=self.model.dtype, device=self.device).masked_fill_(~seen, NONE)

    def _run(self, tokens, positions, mask, rows: slice | None = None, **options) -> torch.Tensor:
        for layer in self.layers:
            layer.rows = rows or slice(self.rows)
        return self.model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=None if mask is None else mask[:, None],
            past_key_values=self.cache,
            use_cache=True,
            **options,
        ).logits


class _Layer(CacheLayerMixin):
    """Keys and values of one layer, [users, heads, columns, width of a head]; `rows` are those that a pass is about."""

    def __init__(self, columns: int):
        super().__init__()
        self.columns, self.used, self.rows = columns, 0, slice(None)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor):
        """Make room for the rows of the first pass."""
        self.keys = key_states.new_empty(*key_states.shape[:2], self.columns, key_states.shape[3])
        self.values = value_states.new_empty(*value_states.shape[:2], self.columns, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Append columns to the rows of this pass; returns all keys and values of these rows."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.used + key_states.shape[2]
        if end > self.columns:
            more = max(end - self.columns, self.columns // 2)
            self.columns += more
            self.keys, self.values = (pad(part, (0, 0, 0, more)) for part in (self.keys, self.values))
        self.keys[self.rows, :, self.used : end] = key_states
        self.values[self.rows, :, self.used : end] = value_states
        self.used = end
        return self.keys[self.rows, :, :end], self.values[self.rows, :, :end]

    def move(self, rows: torch.Tensor, to: torch.Tensor):
        """Copy rows over others that are no longer needed."""
        for part in (self.keys, self.values):
            part[to, :, : self.used] = part[rows, :, : self.used]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns after this pass, and the first of them."""
        return self.used + query_length, 0

    def get_seq_length(self) -> int:
        """Columns so far."""
        return self.used

    def get_max_length(self) -> int:
        """There is no maximum."""
        return -1


def _attend(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **extras):
    """Attention that lets the query heads of a group look at its keys without repeating these.

    query [U, heads, q, d]; key, value [U, groups, n, d]; attention_mask [U, 1, q, n], or None where it is causal.
    """
    if any(extras.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise NotImplementedError("attention with a soft cap, sinks or a position bias")
    users, heads, length, width = query.shape
    groups = key.shape[1]
    if attention_mask is None:
        found = scaled_dot_product_attention(
            query, key, value, is_causal=length > 1, scale=scaling, enable_gqa=heads > groups
        )
    else:
        each = heads // groups
        mask = attention_mask[:, :, None].expand(-1, -1, each, -1, -1).flatten(2, 3)
        found = scaled_dot_product_attention(
            query.reshape(users, groups, each * length, width), key, value, attn_mask=mask, scale=scaling
        ).view(users, heads, length, width)
    return found.transpose(1, 2).contiguous(), None


AttentionInterface.register("gloss_tree", _attend)


@contextmanager
def _attention(model):
    """Let a model that uses PyTorch's attention use `_attend` for a while; others do as they always do."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    if before == "sdpa":
        config._attn_implementation = "gloss_tree"
    try:
        yield
    finally:
        config._attn_implementation = before
