"""A data set that needs no file."""

from datetime import datetime

import numpy as np
import polars as pl

DAYS, MISSING_ROWS, MISSING_CELLS = 400, 0.005, 0.005


def seasons() -> pl.DataFrame:
    """Three hourly loads over 400 days: a trend, seasons of a day and a week, noise that lingers, and holes."""
    rng = np.random.default_rng(0)
    hours = np.arange(DAYS * 24)
    weekend = (hours // 24 % 7 >= 5).astype(float)
    columns = {}
    for name, level, phase in (("north", 50.0, 0), ("south", 30.0, 3), ("east", 80.0, 6)):
        day = np.sin(2 * np.pi * (hours - 6 - phase) / 24) + 0.4 * np.sin(4 * np.pi * (hours - phase) / 24)
        noise, weather = rng.normal(0, 1, len(hours)), np.zeros(len(hours))
        for i in range(1, len(hours)):
            weather[i] = 0.97 * weather[i - 1] + 0.2 * noise[i]
        values = level * (1 + 0.0003 * hours / 24 + 0.2 * day * (1 - 0.5 * weekend) - 0.1 * weekend + 0.06 * weather)
        values += rng.normal(0, 0.02 * level, len(hours))
        columns[name] = pl.Series(values.round(3)).set(pl.Series(rng.random(len(hours)) < MISSING_CELLS), None)
    start = pl.Series([datetime(2023, 1, 2)], dtype=pl.Datetime("us")).new_from_index(0, len(hours))
    frame = pl.DataFrame({"time": start + pl.Series(hours * 3_600_000_000).cast(pl.Duration("us")), **columns})
    kept = rng.random(len(hours)) >= MISSING_ROWS
    kept[2000:2030] = False  # the longest hole
    return frame.filter(pl.Series(kept))
