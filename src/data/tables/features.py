"""What a network gets of each column: fitted on train alone, as plain data that goes into checkpoints."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from src.data.columns import Column

Feature = dict[str, Any]  # column, part (of a date), kind (number or category), and what was fitted
Scale = Literal["standard", "quantile"]
REACH = 10.0  # interquartile ranges around the median, beyond which a value is an outlier
RARE, MISSING, FIRST = 0, 1, 2  # codes of categories: those not known, none, and the first one known
SECONDS_A_DAY, DAYS_A_YEAR = 86_400, 365.25
STEP = 2**18  # rows that are encoded at once
PARTS = ("trend", "weekday", "year_sin", "year_cos", "hour_sin", "hour_cos")  # of dates
# Of the inverse normal distribution to 9 digits, near the middle and outside (P. Acklam, 2003).
A = -39.69683028665376, 220.9460984245205, -275.9285104469687, 138.357751867269, -30.66479806614716, 2.506628277459239
B = -54.47609879822406, 161.5858368580409, -155.6989798598866, 66.80131188771972, -13.28068155288572, 1.0
FIRST_OF_C = -0.0077848940024303, -0.3223964580411365, -2.400758277161838
C = *FIRST_OF_C, -2.549732539343734, 4.374664141464968, 2.938163982698783
D = 0.007784695709041462, 0.3224671290700398, 2.445134137142996, 3.754408661907416, 1.0


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
    found = {name: part(column(values, "date"), name) for name in PARTS}
    return {name: pl.Series(values.name, one.numpy()).fill_nan(None) for name, one in found.items()}


def column(values: pl.Series, part: str) -> Tensor:
    """Numbers, or dates as seconds since 1970, NaN where there is none."""
    return torch.tensor((values.dt.epoch("ms") / 1000 if part else values).to_numpy(), dtype=torch.float64)


def part(values: Tensor, name: str) -> Tensor:
    if name in ("", "trend", "weekday"):
        days = values / SECONDS_A_DAY
        return values if not name else days if name == "trend" else (days.floor() + 3) % 7 + 1
    angle = values * constant(2 * math.pi / SECONDS_A_DAY / (DAYS_A_YEAR if name.startswith("year") else 1))
    return (angle.sin() if name.endswith("sin") else angle.cos()).round(decimals=9)  # so that what is the same is equal


def constant(values: Any) -> Tensor:
    """In float64; plain numbers in the code are float32 in ONNX."""
    return torch.tensor(values, dtype=torch.float64)


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


def encode(frame: pl.DataFrame, features: Sequence[Feature]) -> Tensor:
    """float32 [N, in_features + len(cardinalities)]"""
    return torch.cat([to_x(raw(rows, features), features) for rows in frame.iter_slices(STEP)])


def raw(frame: pl.DataFrame, features: Sequence[Feature], coded: bool = True) -> dict[str, Any]:
    """The columns as an exported model takes them, [N] each; categories as codes, or else as words."""
    out: dict[str, Any] = {}
    for feature in features:
        values, known = frame[feature["column"]], feature.get("categories", ())
        if feature["kind"] == "number":
            out[values.name] = column(values, feature["part"])
        elif coded:
            new = range(FIRST, FIRST + len(known))
            codes = values.replace_strict(known, new, default=RARE, return_dtype=pl.Int32)
            out[values.name] = torch.tensor(codes.set(values.is_null(), MISSING).to_numpy())
        else:
            out[values.name] = values.fill_null("").to_numpy()
    return out


def to_x(raw: dict[str, Tensor], features: Sequence[Feature]) -> Tensor:
    """By arithmetic that an exported model holds."""
    numbers: list[Feature] = [f for f in features if f["kind"] == "number"]
    out: list[Tensor] = []
    values = torch.stack([part(raw[f["column"]], f["part"]) for f in numbers] or [torch.zeros(0)], 1 - (not numbers))
    lacking = values.isnan()
    scaled = torch.where(lacking, 0.0, to_normal(values, numbers)) if numbers else values
    columns = zip(scaled.unbind(-1), lacking.unbind(-1), strict=True)
    for feature in features:
        if feature["kind"] == "number":
            out += next(columns)[: 1 + feature["missing"]]
        else:
            codes = raw[feature["column"]]
            out += [codes] if is_coded(feature) else [codes == code for code in feature["present"]]
    return torch.stack([one.float() for one in out], 1)


def to_normal(values: Tensor, features: list[Feature]) -> Tensor:
    """values [N, F] by their ranks among quantiles to a normal distribution, where several are equal by the middle of
    them; or standardized."""
    if "quantiles" not in features[0]:
        mean, std, limits = (constant([f[name] for f in features]) for name in ("mean", "std", "limits"))
        return (values.clamp(limits[:, 0], limits[:, 1]) - mean) / std
    known, edge = [f["quantiles"] for f in features], constant([f["edge"] for f in features])
    low, high, last = (constant([one(q) for q in known]) for one in (min, max, lambda q: len(q) - 1))
    size = 2 ** max(map(len, known)).bit_length() - 1
    quantiles = constant([q + [math.inf] * (size - len(q)) for q in known]).flatten()
    values = torch.where(values.isnan(), low, values).clamp(low, high)
    rank = sum(place(values, quantiles, size, passes) for passes in (torch.ge, torch.gt)) / (2 * last)
    return (ndtri if torch.compiler.is_exporting() else torch.special.ndtri)(rank.clamp(edge, 1 - edge))


def place(values: Tensor, quantiles: Tensor, size: int, passes: Callable[..., Tensor]) -> Tensor:
    """Where values [N, F] lie among the `size` quantiles of each column: the last one that they pass, and a share."""
    first = torch.arange(values.shape[1]) * size
    count, step = torch.zeros_like(values).long(), size // 2 + 1
    while step:  # how many they pass, by halves
        count, step = count + step * passes(values, quantiles[first + count + step - 1]), step // 2
    below = (count - 1).clamp(min=0)
    low, high = quantiles[first + below], quantiles[first + (below + 1).clamp(max=size - 1)]
    return below + torch.where(high > low, (values - low) / (high - low), 0.0)


def ndtri(p: Tensor) -> Tensor:
    """torch's, which ONNX lacks."""
    q, far = p - 0.5, (-2 * torch.minimum(p, 1 - p).log()).sqrt()
    middle, outside = q * horner(A, q * q) / horner(B, q * q), -horner(C, far) / horner(D, far) * q.sign()
    return torch.where(q.abs() <= 0.47575, middle, outside)


def horner(factors: tuple[float, ...], x: Tensor) -> Tensor:
    return reduce(lambda out, factor: out * x + factor, constant(factors).unbind(), torch.zeros_like(x))
