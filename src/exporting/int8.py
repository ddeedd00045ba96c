"""An ONNX file in int8: weights alone or activations too, measured by onnxruntime before and after."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from src.exporting.graph import Raw, Run, Served
from src.exporting.onnx_file import feeds, runner
from src.run.errors import ConfigError

BATCH = 32  # samples that are taken at once
TOLERANCE = 0.01  # of a loss: a share of the samples, a hundredth of a standard deviation, of a nat


class Batches(CalibrationDataReader):
    def __init__(self, batches: list[Raw], served: Served) -> None:
        self.feeds = iter([feeds(batch, served) for batch in batches])

    def get_next(self) -> Any:
        return next(self.feeds, None)


def batches(raw: Raw) -> list[Raw]:
    count = len(next(iter(raw.values())))
    return [{k: v[at : at + BATCH] for k, v in raw.items()} for at in range(0, count, BATCH)]


def quantized(data: bytes, run: Run, served: Served, train: Raw, test: Raw, targets: Tensor) -> tuple[bytes, dict[str, Any]]:
    """The file in int8, in the way that loses least, and figures of both.

    Raises:
        ConfigError: neither way makes it smaller.
    """
    made = {"float32": (data, run)} | ways(data, served, train)
    figures = {way: measured(*one, served, batches(test), targets) for way, one in made.items()}
    smaller = [way for way in made if figures[way]["bytes"] < len(data)]
    if not smaller:
        raise ConfigError(f"--int8: {type(served.model.network).__name__} gets no smaller by it -> leave it out")
    best = min(smaller, key=lambda way: (max(figures[way]["value"], figures["float32"]["value"]), figures[way]["batch_sec"]))
    lost = figures[best]["value"] - figures["float32"]["value"]
    return made[best][0], {"float32": figures["float32"], "int8": {"way": best, **figures[best]}, "lost": lost}


def ways(data: bytes, served: Served, train: Raw) -> dict[str, tuple[bytes, Run]]:
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, file = (Path(folder) / name for name in ("plain.onnx", "ready.onnx", "int8.onnx"))
        plain.write_bytes(data)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        kinds = {node.op_type for node in onnx.load(ready).graph.node}
        if "Conv" in kinds:
            how = {"op_types_to_quantize": ["Conv", "MatMul", "Gemm"], "per_channel": True}
            quantize_static(ready, file, Batches(batches(train), served), **how)
            out["static"] = file.read_bytes()
        if kinds & {"MatMul", "Gemm", "LSTM"}:
            quantize_dynamic(ready, file, op_types_to_quantize=["MatMul", "Gemm", "LSTM"], per_channel=True)
            out["dynamic"] = file.read_bytes()
    return {way: (one, runner(one, served)) for way, one in out.items()}


def measured(data: bytes, run: Run, served: Served, test: list[Raw], targets: Tensor) -> dict[str, Any]:
    """The model's score, and the median time of a batch."""
    times, scores = [], []
    for part, wanted in zip(test, targets.split(BATCH), strict=True):
        begin = time.perf_counter()
        answers = {name: torch.as_tensor(values) for name, values in run(part).items()}
        times.append(time.perf_counter() - begin)
        name, score = served.model.score(answers, wanted)
        scores += [float(score)] * len(wanted)
    return {"metric": name, "value": statistics.fmean(scores), "bytes": len(data), "batch_sec": statistics.median(times)}
