"""The key-value cache of a beam search: per user, one row that holds the prompt and the tree of all beams.

Each prompt runs once. A step appends the tokens of all beams of a user to that user's row; a 4-D mask lets each beam
see the prompt and its own ancestors. So nothing in the cache is copied or reordered when beams split or are dropped.
"""

from contextlib import contextmanager

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NO_BEAM = float("-inf")  # the score of a place that holds no beam; what the mask adds where a query must not look
RESERVED_STEPS = 64  # the cache starts with room for this many steps; in a deep trie it grows
PROBE = {True: 1e-2, False: 0.5}  # float32 or not: how far logits in `unfit` may be off, in standard deviations
TAIL_LOGITS = 2**27  # logits that are held at a time when tails are scored: half a gigabyte in float32


def unfit(model) -> str | None:
    """Why this module's cache and mask do not fit a model, in words; None where they do.

    What the configuration does not say is tested: two beams after two short prompts, against the model without a cache.
    """
    config = model.config.get_text_config()
    if getattr(model, "_is_stateful", False):
        return "its memory is a state, not a cache of keys and values"
    slides = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if slides else "full_attention"]
    if set(kinds) != {"full_attention"}:
        return "not all its layers attend to everything before"
    try:
        return _probed(model, config.vocab_size)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, AssertionError) as error:
        return f"it does not take this cache ({' '.join(str(error).split())[:100]})"


@torch.inference_mode()
def _probed(model, vocabulary: int) -> str | None:
    tokens = torch.randint(vocabulary, (2, 12), generator=torch.Generator().manual_seed(0)).to(model.device)
    starts, beams, branches = [tokens[0, :5], tokens[1, :3]], tokens[:, 8:10], tokens[:, 10:]
    parents, stay = torch.tensor([[1, 0], [1, 1]], device=model.device), torch.arange(2, device=model.device)
    tree = Tree(model, [start.tolist() for start in starts], 2, 3)
    tree.read_prompts()
    tree.step(beams, torch.zeros_like(beams), stay)
    found = tree.step(branches, parents, stay).float()
    for row, start in enumerate(starts):
        for beam, parent in enumerate(parents[row]):
            whole = torch.cat([start, beams[row][parent, None], branches[row, beam, None]])
            expected = model(whole[None]).logits[0, -1].float()
            if (found[row, beam] - expected).abs().max() > PROBE[model.dtype == torch.float32] * expected.std():
                return "its answers depend on more than the positions and the mask that it is given"
    return None


class Tree:
    """A batch of prompts and what is written after them; one row of the cache per user.

    Prompts are aligned at the left, so that their pass needs no mask; the last token of each runs in a step of its own,
    in a column that all share. U rows, B beams, q new tokens per row.
    """

    def __init__(self, model, prompts: list[list[int]], num_beams: int, longest: int):
        self.model, self.device, self.num_beams, self.rows = model, model.device, num_beams, len(prompts)
        self.config = model.config.get_text_config()
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        self.width, self.steps = int(self.lengths.max()), 0
        ids = [torch.tensor(prompt) for prompt in prompts]
        self.prompts = pad_sequence(ids, batch_first=True).to(self.device)
        reserved = self.width + num_beams * min(longest, RESERVED_STEPS)
        self.layers = [_Layer(reserved) for _ in range(self.config.num_hidden_layers)]
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

        Only the places that are `filled` hold a token. Each row's tokens are packed side by side; each token sees those
        of its own beam.
        """
        self._branch(parents, stay)
        count, longest = tails.shape[1:]
        written = torch.cat([tokens[..., None], tails[..., :-1]], 2).flatten(1)
        most = int(filled.sum((1, 2)).max())
        at = filled.flatten(1).int().argsort(dim=1, descending=True, stable=True)[:, :most]
        beam, place = at // longest, at % longest
        among = (beam[:, :, None] == beam[:, None, :]) & (place[:, :, None] >= place[:, None, :])
        mask = self._whole(torch.cat([take(self.mask, beam), self._mask(among)], 2))
        positions = self.lengths[:, None] + self.steps + place
        every = torch.arange(most, device=self.device).expand(self.rows, -1)
        scores = self._scored(written.gather(1, at), positions, mask, every, tails.flatten(1).gather(1, at))
        return scores.new_zeros(self.rows, count * longest).scatter(1, at, scores).view(-1, count, longest)

    def score_branches(self, tokens, depths, seen, at, nexts, chosen=None, nodes=None) -> torch.Tensor:
        """Log-probabilities [U, m] of the tokens `nexts`, each after the token at place `at` of its row, [U, m].

        tokens: what hangs on each prompt, [U, q], at these depths below it, from 0. seen: which of a row's tokens each
        one sees, itself among them, [U, q, q]. chosen: what gives these log-probabilities from the logits before each,
        the nodes of a trie at which each is chosen, and the tokens; null: they are among the whole vocabulary.
        """
        mask = self._whole(self._mask(seen))
        return self._scored(tokens, self.lengths[:, None] + depths, mask, at, nexts, chosen, nodes)

    def _scored(self, tokens, positions, mask, at, nexts, chosen=None, nodes=None) -> torch.Tensor:
        """As `score_branches`, in portions of rows whose logits are held at a time; the cache stays as it was."""
        scores = torch.empty(nexts.shape, device=self.device)
        count = tokens.shape[1]
        portion = max(1, TAIL_LOGITS // (count * self.config.vocab_size))
        for row in range(0, self.rows, portion):
            rows = slice(row, min(row + portion, self.rows))
            logits = self._run(tokens[rows], positions[rows], mask[rows], rows).float()
            within = torch.arange(len(logits), device=self.device)[:, None]
            if chosen is None:
                scores[rows] = logits[within, at[rows], nexts[rows]] - logits.logsumexp(-1).gather(1, at[rows])
            else:
                before = logits[within, at[rows]].flatten(0, 1)
                found = chosen(before, nodes=nodes[rows].flatten(), chosen=nexts[rows].flatten())
                scores[rows] = found.view(len(logits), -1)
            for layer in self.layers:
                layer.used -= count  # the next portion takes the same columns
        return scores

    def _branch(self, parents: torch.Tensor, stay: torch.Tensor):
        self.lengths, self.prompt_mask, self.rows = self.lengths[stay], self.prompt_mask[stay], len(stay)
        self.mask = take(self.mask[stay], parents)
        to = (stay != torch.arange(len(stay), device=self.device)).nonzero()[:, 0]
        if len(to):
            for layer in self.layers:
                layer.move(stay[to], to)

    def _whole(self, written: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.prompt_mask.expand(-1, written.shape[1], -1), written], 2)

    def _mask(self, seen: torch.Tensor) -> torch.Tensor:
        return torch.zeros(seen.shape, dtype=self.model.dtype, device=self.device).masked_fill_(~seen, NO_BEAM)

    def _run(self, tokens, positions, mask, rows: slice | None = None, **options) -> torch.Tensor:
        for layer in self.layers:
            layer.rows = rows or slice(self.rows)
        with _grouped_attention(self.model):
            return self.model(
                input_ids=tokens,
                position_ids=positions,
                attention_mask=None if mask is None else mask[:, None],
                past_key_values=self.cache,
                use_cache=True,
                **options,
            ).logits


class _Layer(DynamicLayer):
    """Keys and values of one layer, [users, heads, columns, width of a head]; `rows`: those that a pass runs on."""

    def __init__(self, reserved: int):
        super().__init__()
        self.reserved, self.used, self.rows = reserved, 0, slice(None)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Append columns to the rows of this pass; returns all keys and values of these rows."""
        if not self.is_initialized:  # the first pass is one of all rows
            self.keys, self.values, self.is_initialized = key_states[:, :, :0], value_states[:, :, :0], True
        end, columns = self.used + key_states.shape[2], self.keys.shape[2]
        if end > columns:
            more = max(end, columns * 3 // 2, self.reserved) - columns
            self.keys, self.values = (pad(part, (0, 0, 0, more)) for part in (self.keys, self.values))
        self.keys[self.rows, :, self.used : end] = key_states
        self.values[self.rows, :, self.used : end] = value_states
        self.used = end
        return self.keys[self.rows, :, :end], self.values[self.rows, :, :end]

    def move(self, rows: torch.Tensor, to: torch.Tensor):
        """Copy rows over others that are no longer needed."""
        for part in (self.keys, self.values):
            part[to, :, : self.used] = part[rows, :, : self.used]

    def get_seq_length(self) -> int:
        """Columns so far."""
        return self.used


def _attend(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **extras):
    """Attention in which the query heads of a group share its keys and values, without repeating them.

    query [U, heads, q, d]; key, value [U, groups, n, d]; attention_mask [U, 1, q, n], or None where it is causal.
    """
    if any(extras.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise NotImplementedError("attention with a soft cap, sinks or a position bias")
    if attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling)
    groups, each = key.shape[1], query.shape[1] // key.shape[1]
    mask = attention_mask.expand(-1, each, -1, -1).flatten(1, 2)[:, None]
    found = scaled_dot_product_attention(
        query.unflatten(1, (groups, each)).flatten(2, 3), key, value, attn_mask=mask, scale=scaling
    )
    return found.unflatten(2, (each, -1)).flatten(1, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register("gloss_tree", _attend)


@contextmanager
def _grouped_attention(model):
    """Let a model that uses PyTorch's attention use `_attend` for a while; other models stay as they are."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    if before == "sdpa":
        config._attn_implementation = "gloss_tree"
    try:
        yield
    finally:
        config._attn_implementation = before


def take(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """values [U, n, ...] at places [U, m]: [U, m, ...]."""
    return values.take_along_dim(places[..., None], 1)


def logprobs_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of tokens [..., n] under logits [..., vocabulary]."""
    logits = logits.float()
    return logits.gather(-1, tokens) - logits.logsumexp(-1, keepdim=True)
