"""Columns as a model takes them, and what its network gets of each: in torch, so that an exported model holds it."""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import polars as pl
import torch
from torch import Tensor

from src.data import cells
from src.data.delimited import Format
from src.data.tables.features import DAYS_A_YEAR, FIRST, MISSING, RARE, SECONDS_A_DAY, Feature, is_coded

MEANING = {"number": "NaN where it is missing", "date": "seconds since 1970 by its own clock, NaN where it is missing"}
STEP = 2**18  # rows that are encoded at once
# Of the inverse normal distribution to 9 digits, near the middle and outside (P. Acklam, 2003).
A = -39.69683028665376, 220.9460984245205, -275.9285104469687, 138.357751867269, -30.66479806614716, 2.506628277459239
B = -54.47609879822406, 161.5858368580409, -155.6989798598866, 66.80131188771972, -13.28068155288572, 1.0
C = -0.007784894002430293, -0.3223964580411365, -2.400758277161838, -2.549732539343734, 4.374664141464968, 2.938163982698783
D = 0.007784695709041462, 0.3224671290700398, 2.445134137142996, 3.754408661907416, 1.0


def inputs(statistics: dict[str, Any], how: Format) -> dict[str, dict[str, Any]]:
    kinds, out = {c["name"]: c["kind"] for c in statistics["columns"]}, {}
    for feature in statistics["features"]:
        name = feature["column"]
        if feature["kind"] == "category":
            codes = dict.fromkeys({*cells.MISSING, *how.missing} - {*how.present}, MISSING)
            codes |= {word: FIRST + i for i, word in enumerate(feature["categories"])}
            codes |= {word: codes[plain] for word, plain in cells.BOOLEANS.items() if plain in codes}
            out[name] = {"dtype": "string", "shape": ["N"], "meaning": "'' where it is missing", "codes": codes}
        else:
            out[name] = {"dtype": "float64", "shape": ["N"], "meaning": MEANING[kinds[name]]}
    return out


def encode(frame: pl.DataFrame, features: list[Feature]) -> Tensor:
    """float32 [N, in_features + len(cardinalities)] of columns of numbers, dates and text."""
    return torch.cat([to_x(of(rows, features), features) for rows in frame.iter_slices(STEP)])


def of(frame: pl.DataFrame, features: list[Feature], coded: bool = True) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for feature in features:
        values = frame[name := feature["column"]]
        if feature["kind"] == "number":
            values = values.dt.epoch("ms") / 1000 if feature["part"] else values
            out[name] = torch.tensor(values.to_numpy(), dtype=torch.float64)
        elif coded:
            known = {word: FIRST + i for i, word in enumerate(feature["categories"])}
            codes = values.replace_strict(known, default=RARE, return_dtype=pl.Int32).set(values.is_null(), MISSING)
            out[name] = torch.tensor(codes.to_numpy())
        else:
            out[name] = values.fill_null("").to_numpy()
    return out


def constant(values: Any) -> Tensor:
    """Plain numbers in the code would be float32 in ONNX."""
    return torch.tensor(values, dtype=torch.float64)


def to_x(raw: dict[str, Tensor], features: list[Feature]) -> Tensor:
    """x [N, in_features + len(cardinalities)] of columns [N]"""
    numbers = [f for f in features if f["kind"] == "number"]
    lacking = scaled = torch.zeros(0)
    if numbers:
        values = torch.stack([part(raw[f["column"]], f["part"]) for f in numbers], 1)
        lacking = values.isnan()
        scaled = torch.where(lacking, 0.0, (to_normal if "quantiles" in numbers[0] else standard)(values, numbers))
    parts, columns = [], zip(scaled.unbind(-1), lacking.unbind(-1), strict=True)
    for feature in features:
        if feature["kind"] == "number":
            parts += next(columns)[: 1 + feature["missing"]]
        else:
            codes = raw[feature["column"]]
            parts += [codes] if is_coded(feature) else [codes == code for code in feature["present"]]
    return torch.stack([one.float() for one in parts], 1)


def part(values: Tensor, name: str) -> Tensor:
    """A number as it is; of a date one of those that features.parts makes."""
    if not name:
        return values
    days = values / SECONDS_A_DAY
    if name in ("trend", "weekday"):
        return days if name == "trend" else (days.floor() + 3) % 7 + 1
    angle = days * constant(2 * math.pi / (DAYS_A_YEAR if name.startswith("year") else 1))
    return (angle.sin() if name.endswith("sin") else angle.cos()).round(decimals=9)


def standard(values: Tensor, features: list[Feature]) -> Tensor:
    mean, std, limits = (constant([f[name] for f in features]) for name in ("mean", "std", "limits"))
    return (values.clamp(limits[:, 0], limits[:, 1]) - mean) / std


def to_normal(values: Tensor, features: list[Feature]) -> Tensor:
    """By the ranks of values [N, F] among quantiles to a normal distribution; where several are equal, by the middle."""
    known, edge = [f["quantiles"] for f in features], constant([f["edge"] for f in features])
    low, high, last = constant([q[0] for q in known]), constant([q[-1] for q in known]), constant([len(q) - 1 for q in known])
    size = 2 ** max(map(len, known)).bit_length() - 1
    quantiles = constant([q + [math.inf] * (size - len(q)) for q in known]).flatten()
    values = torch.where(values.isnan(), low, values).clamp(low, high)
    rank = (place(values, quantiles, size, torch.ge) + place(values, quantiles, size, torch.gt)) / (2 * last)
    return (ndtri if torch.compiler.is_exporting() else torch.special.ndtri)(rank.clamp(edge, 1 - edge))  # ONNX has none


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
    q, far = p - 0.5, (-2 * torch.minimum(p, 1 - p).log()).sqrt()
    middle, outside = q * horner(A, q * q) / horner(B, q * q), -horner(C, far) / horner(D, far) * q.sign()
    return torch.where(q.abs() <= 0.47575, middle, outside)


def horner(factors: tuple[float, ...], x: Tensor) -> Tensor:
    return reduce(lambda out, factor: out * x + factor, constant(factors).unbind(), torch.zeros_like(x))
