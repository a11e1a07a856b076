"""The key-value cache of a beam search: per user, one row that holds the prompt and the tree of all beams.

Each prompt runs once. A step appends the tokens of all beams of a user to that user's row; a 4-D mask lets each beam
see the prompt and its own ancestors. So nothing in the cache is copied or reordered when beams split or are dropped.
"""

from contextlib import contextmanager

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

NO_BEAM = float("-inf")  # the score of a place that holds no beam; what the mask adds where a query must not look
RESERVED_STEPS = 64  # the cache starts with room for this many steps; in a deep trie it grows
PROBE = {True: 1e-2, False: 0.5}  # float32 or not: how far logits in `unfit` may be off, in standard deviations
TAIL_LOGITS = 2**27  # logits that are held at a time when tails are scored: half a gigabyte in float32


def unfit(model) -> str | None:
    """Why this module's cache and mask do not fit a model, in words; None where they do.

    What the configuration does not say is tested: two beams after two short prompts, against the model without a cache.
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
        return _probed(model, config.vocab_size)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, AssertionError) as error:
        return f"it does not take this cache ({' '.join(str(error).split())[:100]})"


def _slides(config) -> bool:
    return getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)


@torch.inference_mode()
def _probed(model, vocabulary: int) -> str | None:
    tokens = torch.randint(vocabulary, (2, 12), generator=torch.Generator().manual_seed(0)).tolist()
    starts, beams = [tokens[0][:5], tokens[1][:3]], [tokens[0][8:10], tokens[1][8:10]]
    branches = [[tokens[0][10], tokens[0][11]], [tokens[1][10], tokens[1][11]]]
    tree, stay = Tree(model, starts, 2, 3), torch.arange(2, device=model.device)
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


class Tree:
    """A batch of prompts and what is written after them; one row of the cache per user.

    Prompts are aligned at the left, so that their pass needs no mask; the last token of each runs in a step of its own,
    in a column that all share. U rows, B beams, q new tokens per row.
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
        scores = torch.empty(self.rows, most, device=self.device)
        for rows in self._portions(most):
            logits = self._run(written.gather(1, at)[rows], positions[rows], mask[rows], rows)
            scores[rows] = logprobs_of(logits, tails.flatten(1).gather(1, at)[rows, :, None]).squeeze(-1)
            for layer in self.layers:
                layer.used -= most  # the next portion takes the same columns
        return scores.new_zeros(self.rows, count * longest).scatter(1, at, scores).view(-1, count, longest)

    def _portions(self, tokens: int) -> list[slice]:
        each = max(1, TAIL_LOGITS // (tokens * self.model.config.get_text_config().vocab_size))
        return [slice(row, min(row + each, self.rows)) for row in range(0, self.rows, each)]

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


class _Layer(CacheLayerMixin):
    """Keys and values of one layer, [users, heads, columns, width of a head]; `rows`: those that a pass runs on."""

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
    """Attention in which the query heads of a group share its keys and values, without repeating them.

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
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[2]))


def logprobs_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of tokens [..., n] under logits [..., vocabulary]."""
    logits = logits.float()
    return logits.gather(-1, tokens) - logits.logsumexp(-1, keepdim=True)
