"""What is known of a run, by name; whatever state it is in, and without loading torch."""

import math
import operator
import re
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from src.loggers.curves import Curve, number, read_curves
from src.run.errors import CheckpointError, ConfigError, nearest
from src.run.folder import RunFolder, ending, flat

AXES = {"step": "optimizer step", "samples": "samples", "time": "seconds", "flops": "operations, 3 x forward"}
KINDS = ("train/", "val/", "perf/")
SIGNS = {"<=": operator.le, ">=": operator.ge, "!=": operator.ne, "<": operator.lt, ">": operator.gt, "=": operator.eq}
HIGHER = r"(.*_)?(acc|f1|auroc|r2|mfu|samples_per_sec)(_.*)?"  # is better, of what no run monitors
LOWER = r"(.*_)?(loss|perplexity|bpb|rmse|mae|mse|seconds|sec|frac)(_.*)?"


class Record:
    """A run, each part of which is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, RunFolder(path)

    @cached_property
    def ended(self) -> dict[str, Any]:
        return {"time": (self.path / "run.json").stat().st_mtime, **flat(ending(self.folder))}

    @cached_property
    def config(self) -> dict[str, Any]:
        with suppress(CheckpointError, OSError):
            return flat(self.folder.config())
        return {}

    @property
    def tested(self) -> dict[str, float]:
        return {k: v for k, v in self.ended.items() if k.startswith("test/") and isinstance(v, (int, float))}

    @cached_property
    def steps(self) -> dict[str, Curve]:
        return read_curves(self.path, KINDS)

    @property
    def last(self) -> dict[str, float]:
        return {name: float(values[-1]) for name, (_, values) in self.steps.items()}

    @cached_property
    def metrics(self) -> dict[str, float]:
        """As they were at the best checkpoint; before there is one, the last."""
        best = number(self.ended.get("best.step")) or math.inf  # which counts from 1
        until = {name: values[steps < best] for name, (steps, values) in self.steps.items()}
        return {name: float(values[-1]) for name, values in until.items() if len(values)}

    def get(self, name: str) -> Any:
        for part in ("ended", "metrics" if "/" in name else "config"):
            if name in (values := getattr(self, part)):
                return values[name]
        return self.config.get(f"{name}.class_path")

    def curves(self, axis: str) -> dict[str, Curve]:
        """Each metric over one of AXES."""
        if axis == "time":
            curves = read_curves(self.path, KINDS, "perf/seconds")
        else:
            factor = {"step": 1, "flops": 3 * (self.folder.state.get("flops_per_sample") or 0)}.get(axis, 1)
            factor *= 1 if axis == "step" else self.get("data.batch_size") or 0
            curves = {name: ((x + (axis != "step")) * factor, y) for name, (x, y) in self.steps.items() if factor}
        if self.steps and not curves:
            raise ConfigError(f"--x {axis}: {self.path} has not recorded that -> --x step")
        return curves


def known(records: list[Record], name: str, flag: str) -> list[Record]:
    """The runs, one of which has this name at least; raises ConfigError."""
    if all(record.get(name) is None for record in records):
        names = sorted({other for r in records for other in (*r.ended, *r.config, *r.metrics)})
        if name not in names:
            longer = [other for other in names if other.endswith((f".{name}", f"/{name}"))]
            hint = f"; did you mean {longer[0]}?" if longer else nearest(name, names)
            raise ConfigError(f"{flag} {name}: no run has such a key or metric{hint}")
    return records


def matching(records: list[Record], condition: str) -> list[Record]:
    parts = re.fullmatch(r"(.+?)(<=|>=|!=|=|<|>)(.+)", condition)
    if not parts or (parts[2][0] in "<>" and number(parts[3]) is None):
        raise ConfigError(
            f"--filter {condition}: not a condition -> NAME=VALUE, or != and text, or <, <=, >, >= and a number"
        )
    name, sign, wanted = parts.groups()
    return [record for record in known(records, name, "--filter") if holds(record.get(name), sign, wanted)]


def holds(value: Any, sign: str, wanted: str) -> bool:
    if sign[0] in "<>":
        return is_number(value) and SIGNS[sign](value, float(wanted))
    equal = fnmatchcase(str(value), wanted) or (value is not None and number(wanted) == value)
    with suppress(yaml.YAMLError):  # of null, true, [8, 8]
        equal = equal or yaml.safe_load(wanted) == value
    return equal == (sign == "=")


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def ordered(records: list[Record], by: str) -> list[Record]:
    """What lacks the value, or has no number there, comes last."""
    name = by.removeprefix("-")
    values = [(record, record.get(name)) for record in known(records, name, "--sort")]
    numbers = any(is_number(value) for _, value in values)
    having = [(r, v if numbers else str(v)) for r, v in values if (is_number(v) if numbers else v is not None)]
    first = [record for record, _ in sorted(having, key=lambda pair: pair[1], reverse=by.startswith("-"))]
    return first + [record for record in records if record not in first]


def best(records: list[Record], name: str) -> Record:
    """By checkpoints.mode of the runs that monitor such a metric, else by its name."""
    kind = name.rpartition("/")[2]
    having = [record for record in known(records, name, "--best") if is_number(record.get(name))]
    monitors = [record for record in having if str(record.get("checkpoints.monitor")).rpartition("/")[2] == kind]
    modes = {record.get("checkpoints.mode") for record in monitors}
    higher = modes == {"max"} if len(modes) == 1 else bool(re.fullmatch(HIGHER, kind))
    if not having or not (len(modes) == 1 or higher or re.fullmatch(LOWER, kind)):
        raise ConfigError(f"--best {name}: not a number of which more or less is better -> --sort {name}, or -{name}")
    return (max if higher else min)(having, key=lambda record: record.get(name))
