"""Windows as an exported forecaster takes them: in the columns' own units, with holes, and plain calendar numbers."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from src.data.series.grid import CYCLES, HARMONICS, places


def inputs(state: dict[str, Any], facts: dict[str, Any], cycles: Sequence[str]) -> dict[str, dict[str, Any]]:
    names, length = state["inputs"]["names"], facts["window"] + (facts["horizon"] if facts["num_known"] else 0)
    what = f"steps of {state['freq']}, in own units, NaN where missing or not known yet"
    clock = "hour (with its minutes), weekday (Monday: 0), day - 1 and month - 1 of each step by the data's clock"
    out = {"values": {"dtype": "float64", "shape": ["N", length, len(names)], "columns": names, "meaning": what}}
    told = {"dtype": "float64", "shape": ["N", length, len(cycles)], "columns": cycles, "meaning": clock}
    return out | ({"calendar": told} if cycles else {})


def scale(state: dict[str, Any]) -> list[Tensor]:
    return [torch.tensor(state["inputs"][name], dtype=torch.float64) for name in ("mean", "std")]


def raw(
    windows: Any, index: Tensor, state: dict[str, Any], cycles: Sequence[str], zone: str | None
) -> dict[str, Tensor]:
    """From what was prepared, in which holes are filled."""
    rows, (mean, std) = windows.starts[index][:, None] + torch.arange(windows.inputs.shape[1]), scale(state)
    at = places(pl.Series(windows.rows["time"][rows].flatten().numpy()).cast(pl.Datetime("us", zone)))
    clock = np.stack([at[name].to_numpy().astype(np.float64) for name in cycles or at], 1)
    values = windows.values[rows][..., : len(mean)].double() * std + mean
    return {"values": values, "calendar": torch.from_numpy(clock).view(*rows.shape, -1)}


def to_x(raw: dict[str, Tensor], state: dict[str, Any], facts: dict[str, Any], cycles: Sequence[str]) -> Tensor:
    """x as Windows gives it. Holes have the value before, which is handed on by 1, 2, 4 steps."""
    mean, std = scale(state)
    x, step = ((raw["values"] - mean) / std).float(), 1
    while step < x.shape[1]:
        x, step = torch.where(x.isnan(), torch.cat([x[:, :step], x[:, :-step]], 1), x), 2 * step
    x = torch.where(x.isnan(), 0.0, x)
    x[:, facts["window"] :, : len(mean) - len(state["roles"]["known"])] = 0
    if not cycles:
        return x
    turns = [[2 * math.pi * k / CYCLES[name] for k in range(1, HARMONICS + 1)] for name in cycles]
    angles = raw["calendar"][..., None] * torch.tensor(turns, dtype=torch.float64)
    return torch.cat([x, torch.stack([angles.sin(), angles.cos()], -1).flatten(2).float()], 2)
