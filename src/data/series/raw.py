"""Rows as users have them, to predict, and windows as an exported forecaster takes them: in the columns' own units,
with holes, and plain calendar numbers. The functions are methods of the data module."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from src.data.delimited import label
from src.data.loader import Batch
from src.data.report import Cleaning
from src.data.series.grid import CYCLES, HARMONICS, places

CLOCK = "hour (with its minutes), weekday (Monday: 0), day - 1 and month - 1 of each step by the data's clock"


def inputs(data: Any) -> dict[str, dict[str, Any]]:
    state, facts, cycles = data.statistics, data.facts, data.calendar
    names, length = state["inputs"]["names"], facts["window"] + (facts["horizon"] if facts["num_known"] else 0)
    what = f"steps of {state['freq']}, in own units, NaN where missing or not known yet; at the first "
    what += "step a column with a hole has the value before it, and NaN only where nothing ever came before"
    out = {"values": {"dtype": "float64", "shape": ["N", length, len(names)], "columns": names, "meaning": what}}
    told = {"dtype": "float64", "shape": ["N", length, len(cycles)], "columns": cycles, "meaning": CLOCK}
    return out | ({"calendar": told} if cycles else {})


def raw(data: Any, split: str, index: Tensor) -> dict[str, Any]:
    """From what was prepared, in which holes have the value before: what repeats it is a hole again."""
    windows, (mean, std) = data.splits[split], scale(data)
    rows = windows.starts[index][:, None] + torch.arange(windows.inputs.shape[1])
    time = pl.Series(windows.rows["time"][rows].flatten().numpy())
    at = places(time.cast(pl.Datetime("us", data.report["time_zone"])))
    clock = [at[name].to_numpy().astype(np.float64).reshape(rows.shape) for name in data.calendar]
    values = windows.values[rows][..., : len(mean)].double() * std + mean
    values[:, 1:][values[:, 1:] == values[:, :-1]] = torch.nan
    return {"values": values} | ({"calendar": np.stack(clock, -1)} if clock else {})


def from_raw(data: Any, raw: dict[str, Tensor]) -> Batch:
    """x as Windows gives it. Holes have the value before, which is handed on by 1, 2, 4 steps."""
    mean, std = scale(data)
    x, step = ((raw["values"] - mean) / std).float(), 1
    while step < x.shape[1]:
        x, step = torch.where(x.isnan(), torch.cat([x[:, :step], x[:, :-step]], 1), x), 2 * step
    x = torch.where(x.isnan(), 0.0, x)
    x[:, data.window :, : len(mean) - len(data.statistics["roles"]["known"])] = 0
    if data.calendar:
        turns = [[2 * math.pi * k / CYCLES[name] for k in range(1, HARMONICS + 1)] for name in data.calendar]
        angles = raw["calendar"][..., None] * torch.tensor(turns, dtype=torch.float64)
        x = torch.cat([x, torch.stack([angles.sin(), angles.cos()], -1).flatten(2).float()], 2)
    return data.on_after_batch_transfer({"x": x}, 0)


def samples_of(data: Any, raw: Any, cleaning: Cleaning) -> Iterator[tuple[dict[str, Any], Batch]]:
    """Of the last `window` rows of each series, or more: the forecasts that follow them."""
    other, source = copy.copy(data), data.source_of(raw)
    other.fitted, other.tiles, other.predicts = {"facts": data.facts, "statistics": data.statistics}, {}, True
    other.file, other.given = (source, None) if isinstance(source, Path) else (None, source)
    other.named = label(source)
    splits, other.report = other.build(cleaning, other.fitted)
    tiles = other.open("test", lambda name: torch.from_numpy(np.asarray(splits["test"][name])))
    series = pl.Series(tiles.rows["series"][tiles.starts].numpy())
    is_last = torch.from_numpy((series != series.shift(-1, fill_value=-1)).to_numpy())
    is_ahead = tiles.outputs[tiles.starts + data.window].isnan().flatten(1).all(1)
    for index in (is_last & is_ahead).nonzero().flatten().split(data.micro_batch_size):
        keys = other.keys("test", index.numpy())  # with targets, which are yet to come
        yield {name: keys[name] for name in ("time", "series") if name in keys}, tiles[index]


def scale(data: Any) -> list[Tensor]:
    return [torch.tensor(data.statistics["inputs"][name], dtype=torch.float64) for name in ("mean", "std")]
