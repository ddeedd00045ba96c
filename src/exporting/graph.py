"""A model and what its data module does to raw input as one graph: as files, compared with the model, in int8."""

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from src.models.criterion import units
from src.run.errors import ConfigError
from src.run.terminal import rank_zero_print

BATCH = 32  # samples that are measured at once
Raw = dict[str, Any]  # name of an input -> a tensor, or words [N]
Run = Callable[[Raw], dict[str, np.ndarray]]


class Served(nn.Module):
    """Raw input, words as their codes -> named answers; `inputs` and `outputs` say what they are."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.inputs, self.units = model, model.data.inputs(), units(model.data)
        with torch.no_grad():
            made = self(self.coded(self.made_up()))
        self.outputs = {n: {"dtype": str(v.dtype)[6:], "shape": ["N", *v.shape[1:]]} for n, v in made.items()}

    def forward(self, raw: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.model.named_outputs(self.model.data.from_raw(raw))

    def coded(self, raw: Raw) -> dict[str, Tensor]:
        codes = {name: about["codes"] for name, about in self.inputs.items() if "codes" in about}
        words = {name: torch.tensor([known.get(word, 0) for word in raw[name]]) for name, known in codes.items()}
        return {name: words[name] if name in words else raw[name] for name in self.inputs}

    def made_up(self) -> Raw:
        """Three samples of random numbers and known words."""
        draw, raw = torch.Generator().manual_seed(0), Raw()
        for name, about in self.inputs.items():
            size = [{"N": 3, "T": about.get("longest")}.get(n, n) for n in about["shape"]]
            words = [*about.get("codes", ())]
            at = torch.randint(len(words) or about.get("below", 256), size, generator=draw)
            raw[name] = np.array([words[i] for i in at], object) if words else at.to(getattr(torch, about["dtype"]))
        return raw

    def traced(self) -> Any:
        """For batches of any size, of texts of any length; of RNNs, whose steps are written out, of the longest."""
        try:
            return self.trace()
        except Exception:  # what tracing raises has no common base
            if not any("longest" in about for about in self.inputs.values()):
                raise
        rank_zero_print("It cannot be traced for texts of any length: it takes them filled up to the longest.")
        for about in self.inputs.values():
            about["shape"] = [about["longest"] if n == "T" else n for n in about["shape"]]
            about["meaning"] += "; shorter ones are filled up at their end, where answers mean nothing"
        return self.trace()

    def trace(self) -> Any:
        raw, shapes, free = self.coded(self.made_up()), {}, {"N": Dim("N", min=1)}
        for name, about in self.inputs.items():
            if "T" in about["shape"]:
                free["T"], raw[name] = Dim("T", min=1, max=about["longest"]), raw[name][:, :-1].contiguous()
            shapes[name] = {i: free[n] for i, n in enumerate(about["shape"]) if n in free}
        with torch.no_grad():
            program = torch.export.export(self, (raw,), dynamic_shapes=(shapes,), strict=False)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # names folders of this machine
        return program

    def file(self, kind: str) -> tuple[bytes, Run]:
        """The model as a file of that format, and what runs it as it is read back.

        Raises:
            ConfigError: the format cannot carry the network, or not for any size of a batch.
        """
        try:
            return onnx_file(self) if kind == "onnx" else pt2(self)
        except Exception as e:  # what torch and exporters raise has no common base
            line = next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)[:200]
            why = f"{type(self.model.network).__name__} does not go into {kind}: {line}"
            raise ConfigError(f"{why} -> mend its forward, or take --format safetensors") from e

    def difference(self, run: Run, raw: Raw, expected: dict[str, Tensor]) -> float:
        """The largest one, of all samples at once and of the first alone: of numbers in their targets' standard
        deviations, of probabilities, or 1 where classes differ."""
        apart = []
        for count in (None, 1):
            found = run({name: values[:count] for name, values in raw.items()})
            for i, (name, one) in enumerate(expected.items()):
                std = self.units[i * len(self.units) // len(expected)][2]  # of a target all outputs stand together
                gap = (torch.as_tensor(found[name]).double() - one[:count]).abs() / std
                apart.append(float(gap.max() if one.is_floating_point() else gap.any()))
        return float(np.max(apart))  # NaN if one is


def pt2(served: Served) -> tuple[bytes, Run]:
    torch.export.save(served.traced(), file := io.BytesIO())
    file.seek(0)
    loaded = torch.export.load(file).module()
    return file.getvalue(), lambda raw: {k: v.detach().numpy() for k, v in loaded(served.coded(raw)).items()}


def onnx_file(served: Served) -> tuple[bytes, Run]:
    """Columns of words are LabelEncoders of the words in it."""
    import onnx

    names: Any = {"input_names": [*served.inputs], "output_names": [*served.outputs]}
    made: Any = torch.onnx.export(served.traced(), (), **names, dynamo=True, verbose=False)
    graph = (model := made.model_proto).graph
    for node in graph.node:
        del node.metadata_props[:]  # name folders of this machine
    for value in [one for one in graph.input if "codes" in served.inputs[one.name]]:
        code, codes = f"{value.name} coded", served.inputs[value.name]["codes"]
        for node in graph.node:
            node.input[:] = [code if name == value.name else name for name in node.input]
        how: Any = {"keys_strings": [*codes], "values_int64s": [*codes.values()], "default_int64": 0}
        encoder = onnx.helper.make_node("LabelEncoder", [value.name], [code], domain="ai.onnx.ml", **how)
        graph.node.insert(0, encoder)
        value.type.tensor_type.elem_type = onnx.TensorProto.STRING
    model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 3))
    onnx.checker.check_model(model)
    return (data := model.SerializeToString()), onnx_run(data)


def onnx_run(data: bytes) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda raw: dict(zip(names, session.run(None, feeds(raw)), strict=True))


def feeds(raw: Raw) -> dict[str, np.ndarray]:
    return {name: np.asarray(values) for name, values in raw.items()}


def parts(raw: Raw) -> list[Raw]:
    count = len(next(iter(raw.values())))
    return [feeds({name: v[at : at + BATCH] for name, v in raw.items()}) for at in range(0, count, BATCH)]


def int8(data: bytes, train: Raw) -> bytes:
    """The ONNX file in int8: with convolutions activations too, calibrated on samples of train, else the weights."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        plain, ready, file = (Path(folder) / name for name in ("plain", "ready", "int8"))
        plain.write_bytes(data)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        if any(node.op_type == "Conv" for node in onnx.load(ready).graph.node):
            batches = iter(parts(train))
            reader: Any = SimpleNamespace(get_next=lambda: next(batches, None))
            quantize_static(ready, file, reader, op_types_to_quantize=["Conv", "MatMul", "Gemm"], per_channel=True)
        else:
            quantize_dynamic(ready, file, op_types_to_quantize=["MatMul", "Gemm", "LSTM"], per_channel=True)
        return file.read_bytes()


def measured(run: Run, served: Served, test: Raw, targets: Tensor) -> dict[str, float]:
    """Accuracy, or the mean absolute error in the targets' standard deviations; the median time of a batch."""
    scores, times = [], []
    for part, wanted in zip(parts(test), targets.split(BATCH), strict=True):
        begin = time.perf_counter()
        found = run(part)
        times.append(time.perf_counter() - begin)
        if "probabilities" in found:
            scores.append((found["probabilities"].argmax(-1) == wanted.numpy())[wanted.numpy() >= 0].mean())
        else:
            points = zip([*found.values()][:: len(found) // len(served.units)], served.units, strict=True)
            scaled = np.stack([(one - mean) / std for one, (_, mean, std) in points], -1)
            scores.append(np.nanmean(np.abs(scaled - wanted.numpy().reshape(scaled.shape))))
    mean = np.average(scores, weights=[len(one) for one in targets.split(BATCH)])
    return {"accuracy" if "probabilities" in found else "error": float(mean), "batch_sec": statistics.median(times)}
