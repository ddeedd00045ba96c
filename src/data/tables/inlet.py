"""What an exported model does to raw columns of a table, as src.data.tables.features does it to those that are read."""

import math
from functools import reduce
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from src.data import cells
from src.data.delimited import Format
from src.data.inlet import Inlet
from src.data.loader import Batch
from src.data.tables.features import DAYS_A_YEAR, FIRST, MISSING, SECONDS_A_DAY, Feature, is_coded

MEANING = {"number": "NaN where it is missing", "date": "seconds since 1970 (UTC, or by its own clock), NaN where missing"}
# The inverse of the normal distribution to 9 digits, near the middle and outside (P. Acklam, 2003).
A = -39.69683028665376, 220.9460984245205, -275.9285104469687, 138.357751867269, -30.66479806614716, 2.506628277459239
B = -54.47609879822406, 161.5858368580409, -155.6989798598866, 66.80131188771972, -13.28068155288572, 1.0
C = -0.007784894002430293, -0.3223964580411365, -2.400758277161838, -2.549732539343734, 4.374664141464968, 2.938163982698783
D = 0.007784695709041462, 0.3224671290700398, 2.445134137142996, 3.754408661907416, 1.0


class Columns(Inlet):
    """One input for each column -> x [N, in_features + len(cardinalities)]."""

    def __init__(self, statistics: dict[str, Any], how: Format) -> None:
        features, kinds = statistics["features"], {c["name"]: c["kind"] for c in statistics["columns"]}
        inputs: dict[str, dict[str, Any]] = {}
        for feature in features:
            inputs[feature["column"]] = (
                words(feature, how)
                if feature["kind"] == "category"
                else {"dtype": "float64", "shape": ["N"], "meaning": MEANING[kinds[feature["column"]]]}
            )
        super().__init__(inputs)  # factors are buffers: as numbers in the code, ONNX has them in float32 alone
        self.keep(a=A, b=B, c=C, d=D, turns=[2 * math.pi, 2 * math.pi / DAYS_A_YEAR])
        self.features, self.numbers = features, [f for f in features if f["kind"] == "number"]
        if quantiles := [f["quantiles"] for f in self.numbers if "quantiles" in f]:
            self.size = 2 ** max(map(len, quantiles)).bit_length() - 1  # the rest is filled up
            self.keep(last=[len(q) - 1 for q in quantiles], edge=[f["edge"] for f in self.numbers])
            self.keep(low=[q[0] for q in quantiles], high=[q[-1] for q in quantiles])
            self.keep(quantiles=[q + [math.inf] * (self.size - len(q)) for q in quantiles])
        else:
            self.keep(limits=[f["limits"] for f in self.numbers])
            self.keep(mean=[f["mean"] for f in self.numbers], std=[f["std"] for f in self.numbers])

    def forward(self, raw: dict[str, Tensor]) -> Batch:
        parts, at = [], 0
        if self.numbers:
            numbers = torch.stack([self.part(raw[f["column"]], f["part"]) for f in self.numbers], 1)  # [N, F]
            scaled, lacking = self.scaled(numbers), numbers.isnan()
            scaled = torch.where(lacking, 0.0, scaled)
        for feature in self.features:
            if feature["kind"] == "number":
                parts += [scaled[:, at], lacking[:, at]] if feature["missing"] else [scaled[:, at]]
                at += 1
            else:
                codes = raw[feature["column"]]
                parts += [codes] if is_coded(feature) else [codes == code for code in feature["present"]]
        return {"x": torch.stack([one.float() for one in parts], 1)}

    def part(self, values: Tensor, name: str) -> Tensor:
        """A number as it is; of a date, in seconds, one of the numbers that features.parts makes."""
        if not name:
            return values
        days = values / SECONDS_A_DAY
        if name in ("trend", "weekday"):
            return days if name == "trend" else (days.floor() + 3) % 7 + 1
        angle = days * self.turns[int(name.startswith("year"))]
        return angle.sin() if name.endswith("sin") else angle.cos()

    def scaled(self, numbers: Tensor) -> Tensor:
        if not hasattr(self, "quantiles"):
            return (numbers.clamp(*self.limits.unbind(1)) - self.mean) / self.std
        numbers = torch.where(numbers.isnan(), self.low, numbers).clamp(self.low, self.high)
        ranks = self.rank(numbers, torch.ge) + self.rank(numbers, torch.gt)
        return self.ndtri((ranks / 2).clamp(self.edge, 1 - self.edge))

    def ndtri(self, p: Tensor) -> Tensor:
        q, far = p - 0.5, (-2 * torch.minimum(p, 1 - p).log()).sqrt()
        middle = q * horner(self.a, q * q) / horner(self.b, q * q)
        return torch.where(q.abs() <= 0.47575, middle, -horner(self.c, far) / horner(self.d, far) * q.sign())

    def rank(self, numbers: Tensor, passes: Any) -> Tensor:
        """From 0 to 1, between the last quantile that a number passes and the next one."""
        first = torch.arange(len(self.numbers)) * self.size
        count, step, quantiles = torch.zeros_like(numbers).long(), self.size // 2 + 1, self.quantiles.flatten()
        while step:  # as many as are passed, by halves
            count, step = count + step * passes(numbers, quantiles[first + count + step - 1]), step // 2
        below = (count - 1).clamp(min=0)
        low, high = quantiles[first + below], quantiles[first + (below + 1).clamp(max=self.size - 1)]
        return (below + torch.where(high > low, (numbers - low) / (high - low), 0.0)) / self.last


def words(feature: Feature, how: Format) -> dict[str, Any]:
    """The input of a column of categories: each of them, other ways to write it, and what says that it is missing."""
    codes = {word: FIRST + i for i, word in enumerate(feature["categories"])}
    codes |= {word: codes[plain] for word, plain in cells.BOOLEANS.items() if plain in codes}
    missing = dict.fromkeys({*cells.MISSING, *how.missing} - {*how.present} - {*codes}, MISSING)
    return {"dtype": "string", "shape": ["N"], "meaning": "'' where it is missing", "codes": codes | missing}


def horner(factors: Tensor, x: Tensor) -> Tensor:
    return reduce(lambda out, factor: out * x + factor, factors[1:].unbind(), factors[0].expand_as(x))


def raw(frame: pl.DataFrame, inputs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The inputs of rows that were read: numbers, and words as they are."""
    out: dict[str, Any] = {}
    for name, about in inputs.items():
        values = frame[name].dt.epoch("ms") / 1000 if frame[name].dtype == pl.Datetime else frame[name]
        out[name] = (
            values.fill_null("").to_numpy()
            if about["dtype"] == "string"
            else torch.from_numpy(np.array(values.cast(pl.Float64).to_numpy()))
        )
    return out
