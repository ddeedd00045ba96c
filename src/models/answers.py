"""What a trained model says of samples, as named columns, batch by batch."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow
import torch
from torch import Tensor

from src.data.report import Cleaning
from src.run.errors import ConfigError, DataError


def answers(
    model: Any, samples: Iterable[Any], cleaning: Cleaning, top_k: int | None = None, targets: bool = False
) -> Iterator[pyarrow.Table]:
    """A table for each batch: the columns that name its samples, and the prediction."""
    schema, dtype, precision = None, model.dtype, model.precision
    try:
        precision.convert_module(model)
        for keys, batch in samples:
            unknown = {"targets": torch.full((len(batch["x"]),), -1), "index": torch.arange(len(batch["x"]))}
            batch = {name: values.to(model.device) for name, values in (unknown | batch).items()}
            with torch.inference_mode(), precision.forward_context():
                batch = model.data.on_after_batch_transfer(batch, 0)
                outputs = model.predict_step(batch | {"x": precision.convert_input(batch["x"])}, 0)
            real = outputs.pop("index") >= 0  # the rest is padding
            outputs = {name: values[real].cpu() for name, values in outputs.items()}
            if top_k is not None and (top_k < 1 or "probabilities" not in outputs):
                raise ConfigError(f"top_k: {top_k} of {type(model).__name__} -> give 1 or more, to a model of classes")
            given = model.columns(outputs, model.data, *([top_k] if top_k else []))
            found = keys | {n: given[n] for n in given if targets or not n.startswith("target")} | keys  # as exact
            table = pyarrow.table({name: pyarrow.array(values, from_pandas=True) for name, values in found.items()})
            fields = [f.with_type(pyarrow.string()) if pyarrow.types.is_null(f.type) else f for f in table.schema]
            schema = schema or pyarrow.schema(fields)
            yield table.cast(schema)
    finally:
        model.to(dtype)  # users may go on with numbers as they are
    if schema is None:
        raise DataError(f"{cleaning.told() if cleaning.skipped else 'no sample is there'} -> give what can be read")


def rows(model: Any, raw: Any, top_k: int | None) -> Any:
    """All answers for raw input of any form, as a frame."""
    import polars as pl

    cleaning = Cleaning("skip")
    found = [pl.DataFrame(part) for part in answers(model, model.data.samples_of(raw, cleaning), cleaning, top_k)]
    if cleaning.skipped:
        warnings.warn(cleaning.told(), stacklevel=3)
    return pl.concat(found)


def described(model: Any) -> str:
    """What a trained model is, for a notebook."""
    known = {"facts": model.facts, "classes": model.classes, "units": model.units}
    listed = "".join(f"\n  {name}: {value}" for name, value in known.items() if value)
    return f"{type(model).__name__} of {model.run_dir}: {type(model.network).__name__}{listed}"


def ranked(probabilities: Tensor, name: Callable[[int], Any], top_k: int) -> dict[str, Any]:
    """The `top_k` largest of probabilities [N, K], `top_1` the first, each with its name, as columns."""
    best, at = probabilities.topk(min(top_k, probabilities.shape[1]))
    found: dict[str, Any] = {}
    for k, (numbers, chances) in enumerate(zip(at.T.tolist(), best.T, strict=True), 1):
        found |= {f"top_{k}": [name(i) for i in numbers], f"top_{k}_probability": chances.numpy()}
    return found
