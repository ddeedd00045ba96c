"""What the columns of a series are for, and figures of those that are numbers."""

from typing import Any

import polars as pl

from src.data.columns import Column
from src.data.frame import require
from src.data.report import Cleaning
from src.data.series.stamps import TIME
from src.run.errors import DataError

FAR = 10  # interquartile ranges beyond the quartiles: outliers
Roles = dict[str, Any]  # time, group; lists of targets, past, known
NUMBERS = ("targets", "past", "known")


def find_roles(columns: list[Column], given: Roles, cleaning: Cleaning) -> Roles:
    """What each option names, with its default where it is None; raises DataError where there is no such column."""
    dates = [c["name"] for c in columns if c["kind"] == "date"]
    if given["time"] is None and len(dates) != 1:
        what = f"{' and '.join(dates)} are dates -> name one" if dates else "no column is a date"
        hint = (
            "" if dates else f" -> say which is, as data.types: {{{columns[0]['name']}: date}}, with data.date_format"
        )
        raise DataError(f"data.time: {what}{hint}")
    roles = {**given, "time": given["time"] or dates[0]}
    require("time", roles["time"], columns, "date")
    if given["group"] is not None:
        require("group", given["group"], columns)
    used = [roles["time"], roles["group"], *roles["past"], *roles["known"]]
    if given["targets"] is None:
        roles["targets"] = [c["name"] for c in columns if c["kind"] == "number" and c["name"] not in used]
    if not roles["targets"]:
        kinds = ", ".join(f"{c['name']} ({c['kind']})" for c in columns[:12])
        raise DataError(f"data.targets: no column of numbers is left to forecast among {kinds} -> see data.types")
    used += roles["targets"]
    for option, name in [(one, name) for one in NUMBERS for name in roles[one]]:
        require(option, name, columns, "number")
        if used.count(name) > 1:
            raise DataError(f"data.{option}: column {name} is named twice -> name it once")
    others = [f"{c['name']} ({c['kind']})" for c in columns if c["name"] not in used]
    if others:
        cleaning.notes.append(f"{len(others)} columns are not used: {', '.join(others[:12])}")
    return roles


def fit(train: pl.DataFrame, roles: Roles, explicit: bool, cleaning: Cleaning) -> dict[str, Any]:
    """Names, means and standard deviations of the columns in train. A target that says nothing there is an error where
    it is named, else it is left out of the roles, too."""
    found = {name: train[name].drop_nulls() for option in NUMBERS for name in roles[option]}
    for name, values in found.items():
        if values.n_unique() > 1:
            continue
        what = f"column {name} is {values[0] if len(values) else 'missing'} in all of train"
        if name in roles["targets"] and explicit:
            raise DataError(f"data.targets: {what}: nothing can be learned of it -> leave it out")
        cleaning.notes.append(what)
        if name in roles["targets"]:
            cleaning.notes[-1] += ": it is not forecast"
            roles["targets"] = [one for one in roles["targets"] if one != name]
    names = [name for option in NUMBERS for name in roles[option]]
    if not roles["targets"]:
        raise DataError(f"data.targets: {'; '.join(cleaning.notes)} -> nothing is left to forecast")
    means = [float(found[name].mean() or 0) for name in names]
    stds = [float(found[name].std(ddof=0) or 1) for name in names]
    return {"names": names, "mean": means, "std": stds}


def note_outliers(frame: pl.DataFrame, names: list[str], cleaning: Cleaning) -> dict[str, int]:
    """How many values of each column are far beyond its quartiles."""
    out = {}
    for name in names:
        values = frame[name]
        low, high = values.quantile(0.25) or 0.0, values.quantile(0.75) or 0.0
        far = ((values < low - FAR * (high - low)) | (values > high + FAR * (high - low))).fill_null(False)
        if high > low and far.any():
            out[name] = int(far.sum())
            at = far.arg_true()[0]
            what = f"{out[name]} values of {name} are beyond {FAR} interquartile ranges"
            cleaning.notes.append(f"{what}, as {values[at]:g} at {frame[TIME][at]}: they stay")
    return out
