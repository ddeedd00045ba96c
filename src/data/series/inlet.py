"""What an exported forecaster does to raw windows: holes filled, columns standardized, the calendar made of stamps."""

import math
from typing import Any

import polars as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from src.data.inlet import Inlet
from src.data.loader import Batch
from src.data.series.grid import CYCLES, HARMONICS
from src.data.series.windows import Windows

EPS = 1e-5  # the least standard deviation of a window
DAY = 86_400


class Past(Inlet):
    """Windows in the columns' own units -> x [N, window or window + horizon, in_channels], as SeriesDataModule has it.

    Args:
        by_window: whether each window is standardized by itself, too.
    """

    def __init__(self, statistics: dict[str, Any], facts: dict[str, Any], cycles: list[str], by_window: bool) -> None:
        names, window, length = statistics["inputs"]["names"], facts["window"], facts["window"] + facts["horizon"]
        cut, hole = len(names) - len(statistics["roles"]["known"]), "in their own units, NaN where one is missing"
        given = {"past": {"dtype": "float64", "shape": ["N", window, cut], "columns": names[:cut], "meaning": hole}}
        both = {"dtype": "float64", "shape": ["N", length, len(names) - cut]}
        if names[cut:]:
            given["known"] = {**both, "columns": names[cut:], "meaning": f"{hole}, up to the end of the forecast"}
        if cycles:
            what = "seconds since 1970 by the clocks of the data's time zone, up to the end of the forecast"
            given["time"] = {"dtype": "int64", "shape": ["N", length], "meaning": what, "below": 2**31}
        super().__init__(given, freq=statistics["freq"], time_zone=statistics["time_zone"], calendar=cycles)
        turns = [[2 * math.pi * k / CYCLES[name] for k in range(1, HARMONICS + 1)] for name in cycles]
        self.keep(mean=statistics["inputs"]["mean"], std=statistics["inputs"]["std"], turns=turns)
        self.cut, self.facts, self.cycles, self.by_window = cut, facts, cycles, by_window

    def forward(self, raw: dict[str, Tensor]) -> Batch:
        ahead = self.facts["horizon"] if self.facts["num_known"] else 0
        parts = [F.pad(self.scaled(raw["past"], 0), (0, 0, 0, ahead))]
        parts += [self.scaled(raw["known"], self.cut)] if "known" in self.inputs else []
        if self.cycles:
            at, both = calendar(raw["time"]), zip(self.cycles, self.turns, strict=True)
            angles = [at[name].double() * turn for name, turns in both for turn in turns]
            parts += [torch.stack([angle.sin(), angle.cos()], 2).float() for angle in angles]
        batch = {"x": torch.cat(parts, 2)}
        return standardized(batch, self.facts) if self.by_window else batch

    def scaled(self, values: Tensor, first: int) -> Tensor:
        """[N, T, C] of the columns from `first` on; holes have the value before, which is handed on 1, 2, 4 steps."""
        last = first + values.shape[2]
        values, step = ((values - self.mean[first:last]) / self.std[first:last]).float(), 1
        while step < values.shape[1]:
            before = torch.cat([values[:, :step], values[:, :-step]], 1)
            values, step = torch.where(values.isnan(), before, values), 2 * step
        return torch.where(values.isnan(), 0.0, values)


def standardized(batch: Batch, facts: dict[str, Any]) -> Batch:
    """The columns of the targets by each window, whose `mean` and `std` [N, 1, out_channels] are added."""
    seen = batch["x"][:, : facts["window"], : facts["out_channels"]]
    batch["mean"] = seen.mean(1, keepdim=True)
    batch["std"] = (seen.var(1, keepdim=True, correction=0) + EPS**2).sqrt()
    seen.copy_((seen - batch["mean"]) / batch["std"])
    return batch


def calendar(time: Tensor) -> dict[str, Tensor]:
    """Where seconds since 1970 are in each cycle, from 0 on (dates: H. Hinnant, chrono-Compatible Low-Level Date
    Algorithms, 2013)."""
    days = time // DAY
    of_era = (days + 719_468) % 146_097
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153  # from March on
    at = {"hour": ((time - days * DAY) // 60).double() / 60, "weekday": (days + 3) % 7}
    return at | {"day": of_year - (153 * month + 2) // 5, "month": (month + 2) % 12}


def raw(windows: Windows, index: Tensor, statistics: dict[str, Any], zone: str | None) -> dict[str, Tensor]:
    """The inputs of these windows, from what was prepared, in which holes are filled."""
    rows = windows.starts[index][:, None] + torch.arange(windows.window + windows.horizon)
    mean, std = (torch.tensor(statistics["inputs"][name], dtype=torch.float64) for name in ("mean", "std"))
    numbers, cut = windows.values[rows][..., : len(mean)].double() * std + mean, -len(statistics["roles"]["known"]) or None
    time = pl.Series(windows.rows["time"][rows].flatten().numpy()).cast(pl.Datetime("us", zone))
    seconds = torch.from_numpy(time.dt.replace_time_zone(None).dt.epoch("s").to_numpy()).view(rows.shape)
    return {"past": numbers[:, : windows.window, :cut], "known": numbers[:, :, cut or len(mean) :], "time": seconds}
