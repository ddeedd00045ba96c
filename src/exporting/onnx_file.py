"""The graph as an ONNX file, which takes words and gives the names of classes."""

import copy
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper

from src.exporting.graph import Raw, Run, Served


def onnx_file(served: Served) -> tuple[bytes, Run]:
    names = {"input_names": [*served.inlet.inputs], "output_names": [*served.outputs]}
    program = served.traced()
    try:
        made: Any = torch.onnx.export(program, (), **names, dynamo=True, verbose=False)
        model = named(made.model_proto, served)
        onnx.checker.check_model(model)
        return (data := model.SerializeToString()), runner(data, served)
    except Exception as e:  # what exporters raise has no common base
        raise served.refused("ONNX", e) from e


def named(model: onnx.ModelProto, served: Served) -> onnx.ModelProto:
    """Words and classes in place of their codes, free sizes by their letters, no folders of this machine."""
    graph, known = model.graph, served.inlet.inputs | served.outputs
    encoder = partial(helper.make_node, "LabelEncoder", domain="ai.onnx.ml")
    for node in graph.node:
        del node.metadata_props[:]
    for value in [*graph.input, *graph.output]:
        kind, about, code = value.type.tensor_type, known[value.name], f"{value.name}, coded"
        for dim, size in zip(kind.shape.dim, about["shape"], strict=True):
            if isinstance(size, str):
                dim.dim_param = size
        words = about.get("codes") or dict(enumerate(about.get("classes", ())))
        if not words:
            continue
        kind.elem_type = TensorProto.STRING
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [code if name == value.name else name for name in names]
        if "codes" in about:
            how = {"keys_strings": [*words], "values_int64s": [*words.values()], "default_int64": 0}
            graph.node.insert(0, encoder([value.name], [code], **how))
        else:
            graph.node.append(encoder([code], [value.name], keys_int64s=[*words], values_strings=[*words.values()]))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return model


def runner(data: bytes, served: Served) -> Run:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(raw: Raw) -> dict[str, Any]:
        found = dict(zip(served.outputs, session.run(None, feeds(raw, served)), strict=True))
        for name in [name for name, about in served.outputs.items() if "classes" in about]:
            found[name] = np.array([served.outputs[name]["classes"].index(word) for word in found[name]])
        return found

    return run


def feeds(raw: Raw, served: Served) -> dict[str, np.ndarray]:
    return {name: np.asarray(raw[name]) for name in served.inlet.inputs}
