"""What a trained model says of samples, as named columns, batch by batch."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow
import torch
from torch import Tensor

from src.data.loader import Batch
from src.data.report import Cleaning
from src.run.errors import ConfigError, DataError

if TYPE_CHECKING:
    from src.models.base import Model

Samples = Iterable[tuple[dict[str, Any], Batch]]  # columns that name the samples of a batch, and the batch
SHOWN = 3  # of what is left out, in one line


def answers(
    model: "Model", samples: Samples, cleaning: Cleaning, top_k: int | None = None, with_targets: bool = False
) -> Iterator[pyarrow.Table]:
    """A table for each batch, all with the same columns: which samples they are, and the prediction. Raises DataError
    where nothing can be used, and ConfigError where there is nothing to rank."""
    schema = None
    for keys, batch in samples:
        unknown = {"targets": torch.full((len(batch["x"]),), -1), "index": torch.arange(len(batch["x"]))}
        batch = {name: values.to(model.device) for name, values in (unknown | batch).items()}
        with torch.inference_mode(), model.precision.forward_context():
            outputs = model.predict_step(model.data.on_after_batch_transfer(batch, 0), 0)
        real = outputs.pop("index") >= 0  # the rest is padding
        outputs = {name: values[real].cpu() for name, values in outputs.items()}
        if top_k is not None and (top_k < 1 or "probabilities" not in outputs):
            raise ConfigError(
                f"top_k: {top_k} of {type(model).__name__} -> give at least 1, to a model of classes only"
            )
        found = model.columns(outputs, model.data, *([top_k] if top_k else []))
        found = {name: values for name, values in found.items() if with_targets or not name.startswith("target")}
        found = keys | found | keys  # what the data know themselves is exact
        table = pyarrow.table({name: pyarrow.array(values, from_pandas=True) for name, values in found.items()})
        fields = [f.with_type(pyarrow.string()) if pyarrow.types.is_null(f.type) else f for f in table.schema]
        schema = schema or pyarrow.schema(fields)
        yield table.cast(schema)
    if schema is None:
        raise DataError(cleaning.first or "no sample is in the input -> name another")


def ranked(probabilities: Tensor, name: Callable[[int], Any], top_k: int) -> dict[str, Any]:
    """Of probabilities [N, K] the `top_k` largest, `top_1` the first: names and probabilities, each a column."""
    best, at = probabilities.topk(min(top_k, probabilities.shape[1]))
    out: dict[str, Any] = {}
    for k, (chances, numbers) in enumerate(zip(best.T, at.T, strict=True), 1):
        out |= {f"top_{k}": [name(i) for i in numbers.tolist()], f"top_{k}_probability": chances.numpy()}
    return out


def left_out(cleaning: Cleaning) -> str:
    """What could not be used, in a line."""
    listed = [f"{one['file']} ({one['reason']}{': ' * bool(one['detail'])}{one['detail']})" for one in cleaning.removed]
    more = f" and {cleaning.skipped - SHOWN:,} more" if cleaning.skipped > SHOWN else ""
    return f"{cleaning.skipped:,} of {cleaning.came_in:,} could not be used: {', '.join(listed[:SHOWN])}{more}"
