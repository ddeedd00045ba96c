"""What the run says of its table: what is made of each column, and how its values lie in each split."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from src.data.frame import describe
from src.data.tables import features
from src.data.tables.cleaning import Table
from src.data.tables.features import Feature

MANY_NAMES = 12
PLURALS = {"number": "numbers", "category": "categories", "date": "dates"}


def listed(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:MANY_NAMES]) + (f" and {len(found) - MANY_NAMES} more" if found[MANY_NAMES:] else "")


def decisions(table: Table, made: Iterable[Feature], left_out: dict[str, str], classes: Sequence[str]) -> list[str]:
    """Columns by kind, those that are not learned from, outliers, and classes."""
    used = {feature["column"] for feature in made}
    kinds = Counter(column["kind"] for column in table.columns if column["name"] in used)
    out = [", ".join(f"{n} {kind if n == 1 else PLURALS[kind]}" for kind, n in kinds.items())]
    if others := [f"{name} ({why})" for name, why in left_out.items() if why != "target"]:
        out.append(f"left out: {listed(others)}")
    if found := [f"{f['column']} ({f['outliers']:,})" for f in made if f.get("outliers") and not f["part"]]:
        out.append(f"outliers in train: {listed(found)}")
    return out + ([f"{len(classes)} classes: {listed(classes)}"] if classes else [])


def news(table: Table, made: Iterable[Feature]) -> list[str]:
    """Values of categories that train never had."""
    out = []
    for feature in (feature for feature in made if feature["kind"] == "category"):
        values = table.frame[feature["column"]]
        new = values.filter(values.is_not_null() & ~values.is_in(feature["categories"] + feature["rare"]))
        if len(new):
            out.append(f"{len(new):,} rows have a {values.name} that train has not, as {new[0]!r}")
    return out


def figures(table: Table, rows: dict[str, np.ndarray], made: Iterable[Feature]) -> dict[str, Any]:
    """Of each column its values in the rows of each split, and what is made of it."""
    columns: dict[str, Any] = {}
    shifts: dict[str, dict[str, float]] = {split: {} for split in rows if split != "train"}
    for column in table.columns:  # one at a time, for memory
        found = describe({s: table.frame.select(column["name"])[index] for s, index in rows.items()}, [column])
        columns |= found["columns"]
        for split, shift in found.get("shift", {}).items():
            shifts[split] |= shift
    for feature in made:
        columns[feature["column"]].setdefault("features", []).extend(features.names(feature))
    samples = {split: {"samples": len(index)} for split, index in rows.items()}
    return samples | {"columns": columns} | ({"shift": shifts} if "train" in rows else {})
