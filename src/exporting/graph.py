"""A model and what its data module does to raw input as one graph, in formats that carry it, compared with the model."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from src.models.criterion import units
from src.run.errors import ConfigError

Raw = dict[str, Any]  # name of an input -> a tensor, or an array of words [N]
Run = Callable[[Raw], dict[str, Any]]  # raw input -> answers as arrays


class Served(nn.Module):
    """Raw input -> named answers; words come as their codes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inlet, self.model = model.data.inlet(), model
        with torch.no_grad():
            answers = self(self.tensors(self.made_up(3)))
        lengths = {about.get("longest"): "T" for about in self.inlet.inputs.values()}
        shapes = {k: ["N", *(lengths.get(n, n) for n in v.shape[1:2]), *v.shape[2:]] for k, v in answers.items()}
        self.outputs = {k: {"dtype": str(v.dtype).removeprefix("torch."), "shape": shapes[k]} for k, v in answers.items()}

    def forward(self, raw: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.model.answers(self.inlet(raw))

    def tensors(self, raw: Raw) -> dict[str, Tensor]:
        """The inputs of the inlet, words as their codes."""
        codes = {name: about["codes"] for name, about in self.inlet.inputs.items() if "codes" in about}
        coded = {name: torch.tensor([known.get(word, 0) for word in raw[name]]) for name, known in codes.items()}
        return {name: coded[name] if name in coded else raw[name] for name in self.inlet.inputs}

    def made_up(self, count: int) -> Raw:
        """Random numbers and known words in the shape of raw input."""
        draw, words, raw = torch.Generator().manual_seed(0), np.random.default_rng(0), Raw()
        for name, about in self.inlet.inputs.items():
            size = [{"N": count, "T": about.get("longest")}.get(n, n) for n in about["shape"]]
            if "codes" in about:
                raw[name] = words.choice(np.array(list(about["codes"]), object), count)
            elif about["dtype"] == "float64":
                raw[name] = torch.randn(size, generator=draw, dtype=torch.float64)
            else:
                dtype = getattr(torch, about["dtype"])
                raw[name] = torch.randint(about.get("below", 256), size, generator=draw, dtype=dtype)
        return raw

    def traced(self) -> ExportedProgram:
        """The graph, for batches of any size.

        Raises:
            ConfigError: torch cannot follow the network, or only at one size.
        """
        raw, shapes, free = self.tensors(self.made_up(3)), {}, {"N": Dim("N", min=1)}
        for name, about in self.inlet.inputs.items():
            if "longest" in about:
                free["T"], raw[name] = Dim("T", min=1, max=about["longest"]), raw[name][:, :-1]  # else it is constant
            shapes[name] = {i: free[n] for i, n in enumerate(about["shape"]) if n in free}
        try:
            with torch.no_grad():
                return torch.export.export(self, (raw,), dynamic_shapes=(shapes,), strict=False)
        except Exception as e:  # what tracing raises has no common base
            raise self.refused("torch.export", e) from e

    def refused(self, what: str, e: Exception) -> ConfigError:
        lines = [line.strip() for line in str(e).splitlines() if line.strip()] or [type(e).__name__]
        name = f"{type(self.model.network).__name__}: {what} cannot carry it"
        return ConfigError(f"{name}: {lines[0][:200]} -> mend its forward, or take --format safetensors")

    def differences(self, run: Run, raw: Raw, expected: dict[str, Tensor]) -> dict[str, float]:
        """Largest ones, for all samples at once and for the first alone: of probabilities, of numbers in standard
        deviations of their target, of others 1 where they are not the same."""
        std = [std for *_, std in units(self.model.data)]
        scales, out = np.repeat(std, len(expected) // len(std) or 1), dict.fromkeys(expected, 0.0)
        for count in (None, 1):
            found = run({name: values[:count] for name, values in raw.items()})
            for (name, values), scale in zip(expected.items(), scales.tolist() * len(expected), strict=False):
                if values.is_floating_point():
                    apart = np.abs(found[name] - values[:count].numpy()).max() / scale
                else:
                    apart = (found[name] != values[:count].numpy()).any()
                out[name] = max(out[name], float(apart))
        return out


def pt2(served: Served) -> tuple[bytes, Run]:
    """The file of torch.export, and what runs it as it is read back."""
    program, file = served.traced(), io.BytesIO()
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names folders of this machine
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    return file.getvalue(), lambda raw: {k: v.numpy() for k, v in loaded(served.tensors(raw)).items()}
