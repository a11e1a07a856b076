"""How much the votes of generated texts count beside a learned score: fitted on users whose target is known, and used
for other users alone."""

import hashlib
from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from gloss_utils.data import splits

FOLDS, PENALTY = 5, 0.01
TEXTS = ("texts_dense", "texts_bm25")


def out_of_fold(scored: pd.DataFrame, targets: Mapping[str, str | None]) -> pd.DataFrame:
    """The weight of each of `TEXTS` for each user: fitted on the users of other folds.

    scored: candidates, sorted by user: user, item (ids), score, `TEXTS`. targets: user -> item; a user without a target
    gets weights from all who have one. Users are put into `FOLDS` folds by a hash of their id.
    """
    fold = {user: _fold(user) if target is not None else FOLDS for user, target in targets.items()}
    folds, is_target = scored["user"].map(fold), scored["item"] == scored["user"].map(dict(targets))
    weights = {
        left_out: fit(scored[folds != left_out], is_target[folds != left_out]) for left_out in set(fold.values())
    }
    return pd.DataFrame([weights[fold[user]] for user in targets], index=list(targets), columns=list(TEXTS))


def fit(scored: pd.DataFrame, is_target: pd.Series) -> np.ndarray:
    """Weights, none below 0, by conditional logit: the probability of the target among the user's candidates.

    Users whose target is not among their candidates do not count. The score's own scale is fitted, too, and divided
    out. Without such users all weights are 0.
    """
    kept = scored["user"].isin(set(scored.loc[is_target, "user"])).to_numpy()
    if not kept.any():
        return np.zeros(len(TEXTS))
    columns = scored.loc[kept, ["score", *TEXTS]].to_numpy(dtype=float)
    spread = np.where(columns.std(axis=0) > 0, columns.std(axis=0), 1.0)
    columns, chosen = columns / spread, np.flatnonzero(is_target.to_numpy()[kept])
    user = pd.factorize(scored.loc[kept, "user"])[0]
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    sizes = np.diff(np.append(starts, len(user)))

    def loss(weights: np.ndarray):
        value = columns @ weights
        value -= np.repeat(np.maximum.reduceat(value, starts), sizes)
        power = np.exp(value)
        sums = np.add.reduceat(power, starts)
        fit = (value[chosen] - np.log(sums)).mean()
        slope = (columns[chosen].sum(axis=0) - (power / np.repeat(sums, sizes)) @ columns) / len(chosen)
        return PENALTY * (weights[1:] @ weights[1:]) - fit, np.append(0, 2 * PENALTY * weights[1:]) - slope

    begin, bounds = np.append(1.0, np.zeros(len(TEXTS))), [(1e-6, None)] + [(0, None)] * len(TEXTS)
    found = minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=bounds).x / spread
    return found[1:] / found[0]


def _fold(user: str) -> int:
    return int(hashlib.sha256(splits.owner(user).encode()).hexdigest(), 16) % FOLDS
