"""What the columns of a series are for, and figures of those that are numbers."""

from typing import Any

import polars as pl

from src.data.columns import Column
from src.data.frame import require
from src.data.report import Cleaning
from src.run.errors import DataError

Plain = dict[str, Any]


def numbers(roles: Plain) -> list[str]:
    return [*roles["targets"], *roles["past"], *roles["known"]]


def find_roles(columns: list[Column], given: Plain) -> Plain:
    """What each option names, with its default where it is None; raises DataError where there is no such column."""
    roles, dates = {**given}, [c["name"] for c in columns if c["kind"] == "date"]
    if given["time"] is None and len(dates) != 1:
        hint = "say which is with data.types, and data.date_format"
        what = f"{' and '.join(dates)} are dates -> name one" if dates else f"no column is a date -> {hint}"
        raise DataError(f"data.time: {what}")
    roles["time"] = require("time", given["time"] or dates[0], columns, "date")["name"]
    named = [roles["time"], *([require("group", given["group"], columns)["name"]] if given["group"] else [])]
    named += [*roles["past"], *roles["known"]]
    if given["targets"] is None:
        roles["targets"] = [c["name"] for c in columns if c["kind"] == "number" and c["name"] not in named]
    if not roles["targets"]:
        kinds = ", ".join(f"{c['name']} ({c['kind']})" for c in columns[:12])
        raise DataError(f"data.targets: no column of numbers is left to forecast among {kinds} -> see data.types")
    named += roles["targets"]
    for option in ("targets", "past", "known"):
        for name in roles[option]:
            require(option, name, columns, "number")
            if named.count(name) > 1:
                raise DataError(f"data.{option}: column {name} is named twice -> name it once")
    return roles


def fit(train: pl.DataFrame, columns: list[Column], roles: Plain, explicit: bool, cleaning: Cleaning) -> Plain:
    """Plain data: columns and what they are for, their means and standard deviations in train. A target that says
    nothing there is an error where it is named, else it is left out."""
    found: Any = {name: train[name].drop_nulls() for name in numbers(roles)}
    for name in (name for name, values in found.items() if values.n_unique() < 2):
        is_target = name in roles["targets"]
        what = f"column {name} is {found[name][0] if len(found[name]) else 'missing'} in all of train"
        if is_target and (explicit or roles["targets"] == [name]):
            raise DataError(f"data.targets: {what}: nothing can be learned of it -> leave it out")
        cleaning.notes.append(f"{what}: it is not forecast" if is_target else what)
        roles = {**roles, "targets": [one for one in roles["targets"] if one != name]}
    names = numbers(roles)
    means, stds = [found[n].mean() or 0.0 for n in names], [found[n].std(ddof=0) or 1.0 for n in names]
    inputs: Plain = {"names": names, "mean": means, "std": stds}
    targets = {key: values[: len(roles["targets"])] for key, values in inputs.items()}
    used = [c for c in columns if c["name"] in {roles["time"], roles["group"], *names}]
    return {"targets": targets, "inputs": inputs, "roles": roles, "columns": used}
