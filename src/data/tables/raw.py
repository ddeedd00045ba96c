"""Rows as users have them, to predict, and as an exported model takes them. The functions are methods of the data
module."""

from collections.abc import Iterator
from typing import Any

import polars as pl
from torch import Tensor

from src.data import cells
from src.data.columns import Column, read_columns, typed, with_format
from src.data.delimited import ROW, blocks
from src.data.loader import Batch
from src.data.report import Cleaning
from src.data.tables import features

AT_ONCE = 8192  # rows that are predicted at once


def samples_of(data: Any, raw: Any, cleaning: Cleaning) -> Iterator[tuple[dict[str, Any], Batch]]:
    """Rows of a file or a frame, in parts. Categories that train had not are as those that it had seldom."""
    made, source = data.statistics["features"], data.source_of(raw)
    columns: list[Column] = []
    for block in blocks(source, data.format, cleaning):
        keys = [name for name in data.row_key if name in block.columns]
        used = {*keys, *(feature["column"] for feature in made)}
        columns = columns or [c for c in data.statistics["columns"] if c["name"] in used]
        columns = [with_format(c, block, source, data.format, Cleaning()) for c in columns]
        frame = data.as_trained(typed(block, source, data.format, columns, cleaning), made, "skip")
        for rows in frame.iter_slices(AT_ONCE):
            shown = keys if keys and len(keys) == len(data.row_key) else [*keys, ROW]
            yield {n if n != ROW else "row": rows[n].to_list() for n in shown}, {"x": data.encode(rows)}


def inputs(data: Any) -> dict[str, dict[str, Any]]:
    date, known = "seconds since 1970", data.statistics["columns"]
    units = {c["name"]: date if c["kind"] == "date" else c.get("unit") for c in known}
    word, out = {"dtype": "string", "shape": ["N"], "meaning": "'' where it is missing"}, {}
    for feature in data.statistics["features"]:
        what = f"in {unit}; " if (unit := units[feature["column"]]) else ""
        number = {"dtype": "float64", "shape": ["N"], "meaning": f"{what}NaN where it is missing"}
        codes = dict.fromkeys(sorted({*cells.MISSING, *data.format.missing} - {*data.format.present}), features.MISSING)
        codes |= {name: features.FIRST + i for i, name in enumerate(feature.get("categories", ()))}
        codes |= {name: codes[plain] for name, plain in cells.BOOLEANS.items() if plain in codes}
        out[feature["column"]] = number if feature["kind"] == "number" else {**word, "codes": codes}
    return out


def raw(data: Any, split: str, index: Tensor) -> dict[str, Any]:
    """Of rows that are read once more."""
    made, source = data.statistics["features"], data.files.get(split) or data.file or data.load()
    known = [c for c in data.statistics["columns"] if c["name"] in data.inputs()]
    frame = read_columns(source, data.format, known, Cleaning("skip"))
    rows = pl.DataFrame({ROW: data.stored(split, "rows")[index.numpy()]}, {ROW: frame.schema[ROW]})
    return features.raw(rows.join(frame, on=ROW, how="left", maintain_order="left"), made, coded=False)


def from_raw(data: Any, raw: dict[str, Tensor]) -> Batch:
    return data.on_after_batch_transfer({"x": features.to_x(raw, data.statistics["features"])}, 0)
