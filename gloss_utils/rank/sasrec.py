"""The baseline SASRec (Kang and McAuley, 2018): a small decoder over item ids.

A transformers GPT-2 whose tokens are items takes the place of the original's blocks: learned positions, causal
attention, one table of embeddings for reading and for scoring. The loss at every position is cross-entropy over all
items, or over the right one and `NEGATIVES` others (sampled softmax), where the original draws one other; the published
numbers, which used the original's, are lower. `sasrec_search` chooses the loss and other settings.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

from gloss_utils.base.files import digest
from gloss_utils.data import splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.language import training
from gloss_utils.rank import cooccurrence
from gloss_utils.rank.candidates import RANKING_COLUMNS, Histories, as_ranking

PAD = 0  # item number i is token i + 1
LENGTH = 50  # the last so many items of a history are read
LAYERS, HEADS, DROPOUT = 2, 2, 0.5
BATCH, LEARNING_RATE, WEIGHT_DECAY, PATIENCE = 128, 1e-3, 0.01, 5
CROSS_ENTROPY, SAMPLED_SOFTMAX = LOSSES = ("cross-entropy", "sampled softmax")
NEGATIVES = 256  # drawn uniformly, for all positions of a batch together
USERS_AT_A_TIME = 256
CRITERION, K = "ndcg@10", 10  # of validation users; chooses the epoch and, in a search, the settings


@dataclass(frozen=True)
class Settings:
    """epochs: passes over the sequences, at most. width: numbers per item. seed: of weights, order and negatives.
    loss: of `LOSSES`. dropout, learning_rate: null takes `DROPOUT` and `LEARNING_RATE`."""

    epochs: int
    width: int = 64
    seed: int = 3407
    loss: str = CROSS_ENTROPY
    dropout: float | None = None
    learning_rate: float | None = None


class SASRec(GPT2LMHeadModel):
    """GPT-2 that scores all items only where a loss is asked for: most of a padded batch is padding."""

    def forward(self, input_ids, attention_mask, labels, num_items_in_batch=None, **_):
        """The loss: the sum over all next items, divided by `num_items_in_batch`, by default by how many they are."""
        hidden = self.transformer(input_ids, attention_mask=attention_mask).last_hidden_state
        known = labels[:, 1:] != -100
        hidden, following = hidden[:, :-1][known], labels[:, 1:][known]
        if self.training and self.config.sasrec_loss == SAMPLED_SOFTMAX:
            scores, following = self.sampled(hidden, following)
        else:  # always over all items where nothing is learnt, so that losses can be compared
            scores = self.lm_head(hidden)
        loss = torch.nn.functional.cross_entropy(scores, following, reduction="sum")
        return {"loss": loss / (len(following) if num_items_in_batch is None else num_items_in_batch)}

    def sampled(self, hidden: torch.Tensor, following: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The scores of the right item and of `NEGATIVES` others, [positions, 1 + NEGATIVES], and where the right one
        is: first. Negatives that are the right one do not count."""
        table = self.lm_head.weight
        others = torch.randint(1, len(table), (NEGATIVES,), device=table.device)
        right = (hidden * table[following]).sum(dim=1, keepdim=True)
        wrong = (hidden @ table[others].T).masked_fill(others == following[:, None], -torch.inf)
        return torch.cat([right, wrong], dim=1), torch.zeros_like(following)


def new_model(items: int, settings: Settings) -> SASRec:
    """An untrained model for a catalogue of so many items."""
    dropout = DROPOUT if settings.dropout is None else settings.dropout
    return SASRec(
        GPT2Config(
            vocab_size=items + 1,
            n_positions=LENGTH,
            n_embd=settings.width,
            n_layer=LAYERS,
            n_head=HEADS,
            embd_pdrop=dropout,
            resid_pdrop=dropout,
            attn_pdrop=dropout,
            sasrec_loss=settings.loss,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=PAD,
        )
    )


def validation_users(data: Dataset, evaluated: pd.DataFrame, split: str) -> pd.DataFrame:
    """Whose targets say when training stops and which settings are best (user, history, target): all validation users
    under split test, else the validation users who are not evaluated, if there are any."""
    held_out = splits.held_out_examples(data, "validation")
    return held_out if split == "test" else held_out[~held_out["user"].isin(evaluated["user"])]


def train(
    sequences: Collection[Sequence[str]],
    validation: pd.DataFrame,
    items: Sequence[str],
    settings: Settings,
    checkpoints: Path,
) -> SASRec:
    """Train a model.

    sequences: items, oldest first. validation: user, history, target; the epoch is kept that is best by their NDCG@`K`,
    and training stops early, where there is any. The loss on targets would choose an earlier one, which ranks worse.
    items: ids in the catalogue's order. Training that was cut off goes on from the last epoch in `checkpoints`.
    """
    texts = [ids for ids in encode(sequences, items) if len(ids) > 1]
    held_out = encode([[*row.history, row.target] for row in validation.itertuples()], items)
    set_seed(settings.seed)
    model = new_model(len(items), settings)
    how = training.Settings(
        learning_rate=LEARNING_RATE if settings.learning_rate is None else settings.learning_rate,
        lr_scheduler="linear",
        warmup_steps=100,
        weight_decay=WEIGHT_DECAY,
        optimizer="adamw_torch",
        batch_size=BATCH // 4,  # cut by length, which leaves less padding
        gradient_accumulation=4,
        epochs=settings.epochs,
        seed=settings.seed,
        patience=PATIENCE,
        criterion=CRITERION,
    )
    padding = SimpleNamespace(pad_token_id=PAD)
    made_from = asdict(settings) | {"items": len(items), "texts": digest([texts, held_out]), "chosen_by": CRITERION}

    def judge(model: SASRec) -> dict[str, float]:
        return {CRITERION: ndcg(model, validation, sequences, items)}

    training.train(model, padding, texts, held_out, how, checkpoints, made_from, name="SASRec", judge=judge)
    return model.eval()


def ndcg(model: SASRec, validation: pd.DataFrame, sequences: Collection[Sequence[str]], items: Sequence[str]) -> float:
    """NDCG@`K` of the validation users' targets (user, history, target), seen items left out; the mean over users."""
    histories: Histories = dict(zip(validation["user"], validation["history"], strict=True))
    target = dict(zip(validation["user"], validation["target"], strict=True))
    ranked = rank(model, histories, sequences, items, K, bar=False)
    hit = ranked[ranked["item"] == ranked["user"].map(target)]
    return float((1 / np.log2(hit["rank"].astype(float) + 1)).sum() / max(len(histories), 1))


def load(folder: Path) -> SASRec:
    """Read a model that was saved by its `save_pretrained`."""
    return SASRec.from_pretrained(folder, use_safetensors=True).eval()


def encode(histories: Iterable[Sequence[str]], items: Sequence[str]) -> list[list[int]]:
    """Histories as tokens: the last `LENGTH` items that are in the catalogue `items`."""
    histories = histories if isinstance(histories, Collection) else list(histories)
    owners, places = cooccurrence.encode(histories, items)
    starts = np.searchsorted(owners, np.arange(len(histories) + 1))
    return [(places[max(start, end - LENGTH) : end] + 1).tolist() for start, end in pairwise(starts)]


@torch.inference_mode()
def rank(
    model: SASRec,
    histories: Histories,
    sequences: Collection[Sequence[str]],
    items: Sequence[str],
    depth: int = 10,
    exclude_seen: bool = True,
    bar: bool = True,
) -> pd.DataFrame:
    """Rank for each user the items that occur in `sequences`, which it was trained on. exclude_seen: and are not in the
    user's history. bar: show progress.

    A user whose history holds nothing of the catalogue `items` is not ranked for.
    """
    ids, inputs = pd.Index(items), dict(zip(histories, encode(histories.values(), items), strict=True))
    unknown = torch.from_numpy(cooccurrence.counts(sequences, ids) == 0)
    users, found = pd.Index(sorted(filter(inputs.get, inputs), key=lambda user: len(inputs[user]))), []
    starts = range(0, len(users), USERS_AT_A_TIME)
    for start in tqdm(starts, desc="SASRec ranks", unit="batch", mininterval=2, disable=not bar):
        some = users[start : start + USERS_AT_A_TIME]
        rows = [torch.tensor(inputs[user]) for user in some]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD).to(model.device)
        hidden = model.transformer(tokens, attention_mask=(tokens != PAD).long()).last_hidden_state
        last = hidden[torch.arange(len(some)), torch.tensor([len(row) - 1 for row in rows])]
        scores = model.lm_head(last)[:, 1:].float().cpu().masked_fill(unknown, -torch.inf)
        if exclude_seen:
            owners, seen = cooccurrence.encode([histories[user] for user in some], ids)
            scores[owners, seen] = -torch.inf
        best, places = (values.numpy() for values in scores.topk(min(depth, len(ids))))
        user = some.repeat(best.shape[1])
        found.append(pd.DataFrame({"user": user, "item": ids[places.ravel()], "score": best.ravel()}))
    found = pd.concat(found) if found else pd.DataFrame(columns=RANKING_COLUMNS)
    return as_ranking(found[found["score"] > -np.inf], histories, depth)
