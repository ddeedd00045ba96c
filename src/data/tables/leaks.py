"""Columns that give the target away."""

import numpy as np
import polars as pl
from scipy.stats import rankdata
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from src.data.columns import Column

LEAK, MAX_ROWS, MIN_ROWS = 0.99, 20_000, 20
MANY = 0.5  # share of the rows that must have a value for a rank correlation


def find_leaks(frame: pl.DataFrame, columns: list[Column], rows: np.ndarray, targets: np.ndarray) -> dict[str, str]:
    """Columns that in train's rows all but tell the targets, float or classes, each with how well it does."""
    if len(rows) > MAX_ROWS:
        rows = np.random.default_rng(0).choice(rows, MAX_ROWS, replace=False)
    if len(rows) < MIN_ROWS:
        return {}
    # Ranks: a tree divides these as it divides the values, which may be too large for it.
    sample = {c["name"]: frame[c["name"]].gather(rows).rank().cast(pl.Float64).to_numpy() for c in columns}
    return {name: how for name, values in sample.items() if (how := tells(values, targets[rows]))}


def tells(ranks: np.ndarray, target: np.ndarray) -> str:
    """How well one column [N] tells the target [N] in rows that were not seen; empty if not nearly always."""
    is_class = target.dtype.kind == "i"
    tree = (DecisionTreeClassifier if is_class else DecisionTreeRegressor)(random_state=0)
    found = cross_val_predict(tree, ranks[:, None], target, cv=KFold(2, shuffle=True, random_state=0))
    if is_class:
        hits = float(np.mean([(found[target == k] == k).mean() for k in np.unique(target)]))
        return f"accuracy {hits:.4f}, the mean over the classes" if hits > LEAK else ""
    if (score := r2_score(target, found)) > LEAK:
        return f"R2 {score:.4f}"
    known = np.isfinite(ranks)
    with np.errstate(invalid="ignore"):
        rank = abs(np.corrcoef(rankdata(ranks[known]), rankdata(target[known]))[0, 1]) if known.mean() > MANY else 0
    return f"rank correlation {rank:.4f}" if rank > LEAK else ""
