"""What a network gets of each column: fitted on train alone, as plain data that goes into checkpoints."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from src.data.columns import Column

Feature = dict[str, Any]  # column, part (of a date), kind (number or category), and what was fitted
Scale = Literal["standard", "quantile"]
REACH = 10.0  # interquartile ranges around the median, beyond which a value is an outlier
RARE, MISSING, FIRST = 0, 1, 2  # codes of categories: those not known, none, and the first one known
SECONDS_A_DAY, DAYS_A_YEAR = 86_400, 365.25


@dataclass(frozen=True)
class Encoding:
    """How columns become features; see TableDataModule. `trend`: whether a date's distance from others is one."""

    scale: Scale
    one_hot: bool
    min_count: int
    trend: bool = True


def fit(values: pl.Series, column: Column, how: Encoding) -> list[Feature]:
    """The features of a column by its values in train; none where these are all the same."""
    if column["kind"] == "category":
        found = fit_category(values, how)
    else:
        found = []
        for part, one in parts(values, column["kind"]).items():
            distinct = one.n_unique() - bool(part and one.null_count())
            if distinct > 1 and (part != "trend" or how.trend):
                missing = bool(one.null_count() and not found)  # one indicator is enough for a date
                found.append(fit_number(one, how.scale) | {"part": part, "missing": missing})
    return [{"column": column["name"], **feature} for feature in found]


def parts(values: pl.Series, kind: str) -> dict[str, pl.Series]:
    """A number as it is; a date as the numbers that can matter of it."""
    if kind == "number":
        return {"": values}
    days = values.dt.epoch("ms") / (1000 * SECONDS_A_DAY)
    year, day = days * (2 * math.pi / DAYS_A_YEAR), days * (2 * math.pi)
    cycles = {"year_sin": year.sin(), "year_cos": year.cos(), "hour_sin": day.sin(), "hour_cos": day.cos()}
    cycles = {name: cycle.round(9) for name, cycle in cycles.items()}  # so that what is the same is equal
    return {"trend": days, "weekday": values.dt.weekday().cast(pl.Float64), **cycles}


def fit_number(values: pl.Series, scale: Scale) -> Feature:
    known = values.drop_nulls().to_numpy()
    low, middle, high = np.quantile(known, (0.25, 0.5, 0.75))
    reach = REACH * (high - low)
    low, high = (middle - reach, middle + reach) if reach else (known.min(), known.max())
    outliers = int(((known < low) | (known > high)).sum())
    out: Feature = {"kind": "number", "limits": [float(low), float(high)], "outliers": outliers}
    if scale == "quantile":  # as many as Gorishniy et al. take (Revisiting Deep Learning Models for Tabular Data, 2021)
        at = np.linspace(0, 1, max(10, min(len(known) // 30, 1000)))
        return out | {"quantiles": np.quantile(known, at).tolist(), "edge": 0.5 / len(known)}
    clipped = known.clip(low, high)
    return out | {"mean": float(clipped.mean()), "std": float(clipped.std()) or 1.0}


def fit_category(values: pl.Series, how: Encoding) -> list[Feature]:
    counts = values.drop_nulls().value_counts().sort(values.name)
    frequent = counts["count"] >= how.min_count
    known, rare = (counts[values.name].filter(mask).to_list() for mask in (frequent, ~frequent))
    present = [RARE] * bool(rare) + [MISSING] * bool(values.null_count()) + [*range(FIRST, FIRST + len(known))]
    if len(present) < 2:
        return []
    return [{"kind": "category", "categories": known, "rare": rare} | ({"present": present} if how.one_hot else {})]


def is_coded(feature: Feature) -> bool:
    """Whether it is given as a code, not as numbers."""
    return feature["kind"] == "category" and "present" not in feature


def names(feature: Feature) -> list[str]:
    """What its numbers are called."""
    name = feature["column"] + (f".{feature['part']}" if feature.get("part") else "")
    if feature["kind"] == "number":
        return [name, f"{name} is missing"] if feature["missing"] else [name]
    known = ["others", "missing", *feature["categories"]]
    return [name] if is_coded(feature) else [f"{name} = {known[code]}" for code in feature["present"]]


def facts(features: Sequence[Feature]) -> dict[str, Any]:
    """What a network must know: how many numbers come first, and how many codes each of the others can have."""
    coded = [feature for feature in features if is_coded(feature)]
    numbers = sum(len(names(feature)) for feature in features if not is_coded(feature))
    return {"in_features": numbers, "cardinalities": [FIRST + len(feature["categories"]) for feature in coded]}
