"""Windows as an exported forecaster takes them: in the columns' own units, with holes, and plain calendar numbers."""

import math
from typing import Any

import polars as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from src.data.series.grid import CYCLES, HARMONICS, places
from src.data.series.windows import Windows


def inputs(state: dict[str, Any], facts: dict[str, Any], cycles: list[str]) -> dict[str, dict[str, Any]]:
    names, length, cut = state["inputs"]["names"], facts["window"] + facts["horizon"], num_seen(state)
    units = {"dtype": "float64", "meaning": f"{state['freq']} apart, in own units, NaN where missing; known ones to the end"}
    out = {"past": {**units, "shape": ["N", facts["window"], cut], "columns": names[:cut]}}
    if names[cut:]:
        out["known"] = {**units, "shape": ["N", length, len(names) - cut], "columns": names[cut:]}
    clock = f"by the clocks of {state['time_zone'] or 'the data'}, from 0 on, hours with decimals; to the end of the forecast"
    return out | {name: {"dtype": "float64", "shape": ["N", length], "meaning": clock} for name in cycles}


def num_seen(state: dict[str, Any]) -> int:
    return len(state["inputs"]["names"]) - len(state["roles"]["known"])


def numbers(state: dict[str, Any]) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(state["inputs"][name], dtype=torch.float64) for name in ("mean", "std"))
    return mean, std


def of(windows: Windows, index: Tensor, state: dict[str, Any], zone: str | None) -> dict[str, Tensor]:
    """From what was prepared, in which holes are filled."""
    rows, (mean, std) = windows.starts[index][:, None] + torch.arange(windows.window + windows.horizon), numbers(state)
    values, cut = windows.values[rows][..., : len(mean)].double() * std + mean, num_seen(state)
    at = places(pl.Series(windows.rows["time"][rows].flatten().numpy()).cast(pl.Datetime("us", zone)))
    clock = {name: torch.tensor(one.to_numpy(), dtype=torch.float64).view(rows.shape) for name, one in at.items()}
    return {"past": values[:, : windows.window, :cut], "known": values[..., cut:], **clock}


def to_x(raw: dict[str, Tensor], state: dict[str, Any], facts: dict[str, Any], cycles: list[str]) -> Tensor:
    """x as Windows gives it; holes have the value before, which is handed on 1, 2, 4 steps."""
    (mean, std), cut, parts = numbers(state), num_seen(state), []
    for name, of in (("past", slice(cut)), ("known", slice(cut, None))):
        if name in raw:
            values, step = ((raw[name] - mean[of]) / std[of]).float(), 1
            while step < values.shape[1]:
                before = torch.cat([values[:, :step], values[:, :-step]], 1)
                values, step = torch.where(values.isnan(), before, values), 2 * step
            parts.append(torch.where(values.isnan(), 0.0, values))
    parts[0] = F.pad(parts[0], (0, 0, 0, facts["horizon"] if facts["num_known"] else 0))
    turns = torch.tensor([2 * math.pi / CYCLES[name] for name in cycles], dtype=torch.float64)  # ONNX: else float32
    for name, turn in zip(cycles, turns, strict=True):
        angles = [raw[name] * turn * k for k in range(1, HARMONICS + 1)]
        parts += [torch.stack([angle.sin(), angle.cos()], 2).float() for angle in angles]
    return torch.cat(parts, 2)
