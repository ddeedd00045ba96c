"""The column that is predicted: a number in units of its spread in train, or one of train's classes."""

from typing import Any

import numpy as np
import polars as pl

from src.data.columns import Column
from src.data.tables.cleaning import Table
from src.run.errors import DataError

Target = dict[str, Any]  # column, and `classes` or mean and std
UNKNOWN = -1  # class of a row without one


def is_class(values: pl.Series, column: Column, typed: bool) -> bool:
    """Whether the target is one of several classes: also where it has two values only, but if it is `typed` a number.

    Raises:
        DataError: it is no target, or has one value only.
    """
    name, kind, distinct = column["name"], column["kind"], values.drop_nulls().n_unique()
    if kind not in ("number", "category") and distinct:
        raise DataError(f"data.target: column {name} is {kind} -> data.types: {{{name}: number}}, or category?")
    if distinct < 2:
        what = f"is {values.drop_nulls()[0]} in all rows" if distinct else "has no values"
        raise DataError(f"data.target: column {name} {what} -> there is nothing to predict")
    return kind == "category" or (distinct == 2 and not typed)


def as_text(values: pl.Series) -> pl.Series:
    """Classes by name; those that are numbers without decimals they lack."""
    if values.dtype != pl.Float64:
        return values
    distinct = values.drop_nulls().unique()
    return values.replace_strict(distinct, [f"{v:.15g}" for v in distinct], default=None, return_dtype=pl.String)


def class_names(values: pl.Series) -> list[str]:
    """In the order of numbers if they are such."""
    names = as_text(values).drop_nulls().unique()
    numbers = names.cast(pl.Float64, strict=False)
    return (names.sort() if numbers.null_count() else names.gather(numbers.arg_sort())).to_list()


def fit(values: pl.Series, column: Column, is_class: bool) -> Target:
    """By train's values."""
    if is_class:
        names = class_names(values)
        written = {name.lower(): name for name in names}
        if other := next((name for name in names if written[name.lower()] != name), None):
            what = f"data.target: column {values.name} has the classes {other!r} and {written[other.lower()]!r}"
            raise DataError(f"{what} -> write them alike")
        return {"column": column, "classes": names}
    numbers = values.to_numpy()
    mean, std = float(numbers.mean()), float(numbers.std())
    if not 0 < std < float("inf"):
        what = f"data.target: column {values.name} has the standard deviation {std} in train"
        raise DataError(f"{what} -> give other rows, or split in another way")
    return {"column": column, "mean": mean, "std": std}


def encode(values: pl.Series, target: Target) -> np.ndarray:
    """int64 [N], UNKNOWN where train has no such class; or float32 [N], NaN where there is no number."""
    if "classes" not in target:
        return ((values.to_numpy() - target["mean"]) / target["std"]).astype(np.float32)
    known = target["classes"]
    codes = as_text(values).replace_strict(known, range(len(known)), default=UNKNOWN, return_dtype=pl.Int64)
    return codes.fill_null(UNKNOWN).to_numpy()


def known(table: Table, split: np.ndarray, target: Target) -> np.ndarray:
    """The targets [N]; rows of a class that train lacks cannot be used, and are put into split -1."""
    values = table.frame[target["column"]["name"]]
    targets = encode(values, target)
    if "classes" in target:
        new = (targets == UNKNOWN) & values.is_not_null().to_numpy() & (split >= 0)
        table.leave_out(new, f"train has no such class: column {values.name} is", "name one that it has", values.name)
        table.cleaning.check()
        split[new] = -1
    return targets
