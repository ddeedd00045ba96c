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

BATCH, MOST = 32, 2**31  # samples that are measured at once; bytes of an ONNX file
Raw = dict[str, np.ndarray]  # by the names of `inputs`
Run = Callable[[Raw], Raw]


class Served(nn.Module):
    """Raw input, words as their codes -> named answers."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).to(memory_format=torch.contiguous_format)  # others make torch warn
        self.inputs, self.units = model.data.inputs(), units(model.data)

    def forward(self, raw: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.model.named_outputs(self.model.data.from_raw(raw))

    def coded(self, raw: Raw) -> dict[str, Tensor]:
        known = {name: about["codes"] for name, about in self.inputs.items() if "codes" in about}
        words = {name: np.array([codes.get(word, 0) for word in raw[name]]) for name, codes in known.items()}
        return {name: torch.as_tensor(values) for name, values in (raw | words).items()}

    def samples(self, split: str, most: int) -> tuple[Raw, Tensor, dict[str, Tensor]]:
        """Of a split, spread over it: as raw input, their targets, and what the model says of them."""
        data = self.model.data
        index = torch.linspace(0, len(data.splits[split]) - 1, min(len(data.splits[split]), most)).long()
        batch = data.splits[split][index]
        with torch.no_grad():
            expected = self.model.named_outputs(data.on_after_batch_transfer(batch, 0))
        return {name: np.asarray(v) for name, v in data.raw(split, index).items()}, batch["targets"], expected

    def file(self, kind: str, raw: Raw, answers: list[str]) -> tuple[bytes, Run]:
        """The model as a file of that format, and what runs it as it is read back; `answers` are their names.

        Raises:
            ConfigError: the format cannot carry the network, or not for any size of a batch.
        """
        if kind == "onnx" and sum(one.nbytes for one in self.state_dict().values()) >= MOST:
            raise ConfigError("the weights are over the 2 GiB that an ONNX file holds -> take --format torch_export")
        if kind == "onnx" and (twice := {*answers} & {*raw}):
            raise ConfigError(f"{min(twice)}: an input and an answer -> rename the column, or --format torch_export")
        three = self.coded({name: values[[0, -1, 0]] for name, values in raw.items()})
        try:
            with torch.no_grad():
                sizes = {name: {0: Dim("N", min=1)} for name in three}
                program = torch.export.export(self, (three,), dynamic_shapes=(sizes,), strict=False)
            return self.onnx(program, answers) if kind == "onnx" else self.pt2(program)
        except Exception as e:  # what torch and exporters raise has no common base
            line = next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)[:200]
            why = f"{type(self.model.network).__name__} does not go into {kind}: {line}"
            raise ConfigError(f"{why} -> mend its forward, or take --format safetensors") from e

    def pt2(self, program: Any) -> tuple[bytes, Run]:
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # names folders of this machine
        torch.export.save(program, file := io.BytesIO())
        self.inputs = {n: {**one, "dtype": "int64"} if "codes" in one else one for n, one in self.inputs.items()}
        loaded = torch.export.load(io.BytesIO(file.getvalue())).module()
        return file.getvalue(), lambda raw: {k: v.numpy() for k, v in loaded(self.coded(raw)).items()}

    def onnx(self, program: Any, answers: list[str]) -> tuple[bytes, Run]:
        """Columns of words are LabelEncoders of the words in it."""
        import onnx

        names: Any = {"input_names": [*self.inputs], "output_names": answers}
        made: Any = torch.onnx.export(program, (), **names, dynamo=True, verbose=False)
        graph = (model := made.model_proto).graph
        for node in graph.node:
            del node.metadata_props[:]  # name folders of this machine
        for value in [one for one in graph.input if "codes" in self.inputs[one.name]]:
            code, codes = f"{value.name} coded", self.inputs[value.name]["codes"]
            for node in graph.node:
                node.input[:] = [code if name == value.name else name for name in node.input]
            how: Any = {"keys_strings": [*codes], "values_int64s": [*codes.values()], "default_int64": 0}
            encoder = onnx.helper.make_node("LabelEncoder", [value.name], [code], domain="ai.onnx.ml", **how)
            graph.node.insert(0, encoder)
            value.type.tensor_type.elem_type = onnx.TensorProto.STRING
        model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 3))
        onnx.checker.check_model(model)
        return (content := model.SerializeToString()), onnx_run(content)

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

    def measured(self, run: Run, raw: Raw, targets: Tensor) -> dict[str, float]:
        """Accuracy, or the mean absolute error in the targets' standard deviations; the median time of a batch."""
        scores, times = [], []
        for part, wanted in zip(parts(raw), targets.split(BATCH), strict=True):
            begin = time.perf_counter()
            found = {name: torch.from_numpy(values) for name, values in run(part).items()}
            times.append(time.perf_counter() - begin)
            if "probabilities" in found:
                scores.append((found["probabilities"].argmax(-1) == wanted)[wanted >= 0].double())
            else:
                points = zip([*found.values()][:: len(found) // len(self.units)], self.units, strict=True)
                scaled = torch.stack([(one - mean) / std for one, (_, mean, std) in points], -1)
                scores.append((scaled - wanted.view_as(scaled)).abs().flatten())
        name = "accuracy" if "probabilities" in found else "error"
        return {name: float(torch.cat(scores).nanmean()), "batch_sec": statistics.median(times)}


def onnx_run(content: bytes) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda raw: dict(zip((one.name for one in session.get_outputs()), session.run(None, raw), strict=True))


def parts(raw: Raw) -> list[Raw]:
    count = len(next(iter(raw.values())))
    return [{name: values[at : at + BATCH] for name, values in raw.items()} for at in range(0, count, BATCH)]


def int8(content: bytes, train: Raw) -> bytes:
    """The ONNX file in int8: with convolutions activations too, calibrated on samples of train, else the weights."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        plain, ready, file = (Path(folder) / name for name in ("plain", "ready", "int8"))
        plain.write_bytes(content)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        if any(node.op_type == "Conv" for node in onnx.load(ready).graph.node):
            batches = iter(parts(train))  # dynamic ones are slower than float32
            reader: Any = SimpleNamespace(get_next=lambda: next(batches, None))
            quantize_static(ready, file, reader, op_types_to_quantize=["Conv", "MatMul", "Gemm"], per_channel=True)
        else:
            quantize_dynamic(ready, file, op_types_to_quantize=["MatMul", "Gemm", "LSTM"], per_channel=True)
        return file.read_bytes()
