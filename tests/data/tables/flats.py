"""A table with a column of each kind, without polars, whose threads would not be in forked runs."""

import csv
from pathlib import Path

import numpy as np

N = 400


def columns(n: int = N, seed: int = 0) -> dict[str, list]:
    """A price that follows from most of the other columns."""
    rng = np.random.default_rng(seed)
    size, city = rng.lognormal(4, 0.5, n).round(2), rng.choice(["Aachen", "Bonn", "Celle"], n)
    day = np.datetime64("2020-01-01") + rng.integers(0, 900, n).astype("timedelta64[D]")
    price = 2000 * size + 40_000 * (city == "Bonn") + rng.normal(0, 20_000, n)
    names = {"listing": [f"A{i:04d}" for i in range(n)], "size": size.tolist(), "city": city.tolist()}
    names |= {"sold": day.astype(str).tolist(), "rooms": rng.integers(1, 7, n).tolist()}
    return names | {"owner": [f"owner {i // 8}" for i in range(n)], "price": price.round(2).tolist()}


def write(path: Path, table: dict[str, list]) -> None:
    with open(path, "w", newline="") as f:
        csv.writer(f).writerows([list(table), *zip(*table.values(), strict=True)])


def read(path: Path) -> list[dict[str, str]]:
    with open(path) as f:
        return list(csv.DictReader(f))
