"""What is known of runs, by name: how each ended, the keys of its config, its metrics. Nothing here loads torch."""

import csv
import io
import math
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from src.loggers.curves import Curve, number, read_curves
from src.run.errors import ConfigError, nearest
from src.run.folder import FASTEST, RunFolder, ending, flat
from src.run.errors import CheckpointError

AXES = {"step": "optimizer step", "samples": "samples", "time": "seconds", "flops": "operations (3 x forward)"}
KINDS = ("train/", "val/", "perf/")
SIGNS = {"<=": operator.le, ">=": operator.ge, "!=": operator.ne, "<": operator.lt, ">": operator.gt, "=": operator.eq}
# Of metrics that no run monitors. A name such as seasonal_mae_OT has more to it.
LOWER = re.compile(r"(.*_)?(loss|perplexity|bpb|rmse|mae|mse|steps?|seconds|sec|wait_frac|epochs)(_.*)?")
HIGHER = re.compile(r"(.*_)?(acc|f1|auroc|r2|mfu|samples_per_sec)(_.*)?")


class Record(Mapping[str, Any]):
    """A run, also one that is damaged, unfinished or still training. What takes long to read is read when it is asked
    for: the summary has test metrics and the monitored one; config.yaml the keys; metrics.csv all other metrics, as
    they were at the best checkpoint, or else last."""

    def __init__(self, path: Path) -> None:
        self.folder, self.path = RunFolder(path), path

    @cached_property
    def ended(self) -> dict[str, Any]:
        ended = ending(self.folder)
        best = ended.get("best")
        values = {k: v for k, v in ended.items() if not isinstance(v, (dict, list))} | {"status": ended.get("status")}
        with suppress(OSError):
            values["time"] = (self.path / "run.json").stat().st_mtime
        return values | {k: v for k, v in (best if isinstance(best, dict) else {}).items() if k != "step"}

    @cached_property
    def config(self) -> dict[str, Any]:
        with suppress(CheckpointError, OSError):
            return flat(self.folder.config())
        return {}

    @cached_property
    def metrics(self) -> dict[str, float]:
        best = self.folder.summary.get("best")
        step = best.get("step") if isinstance(best, dict) else None  # counts from 1
        found = {}
        for name, (steps, values) in read_curves(self.path, KINDS).items():
            until = values[steps < step] if step else values
            found[name] = float((until if len(until) else values)[-1])
        return found

    def __getitem__(self, name: str) -> Any:
        for part in ("ended", "metrics" if "/" in name else "config"):
            if name in getattr(self, part):
                return getattr(self, part)[name]
        return self.config[f"{name}.class_path"]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.ended, *self.config, *self.metrics]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def curves(self, axis: str) -> dict[str, Curve]:
        """Every metric over one of AXES."""
        curves = read_curves(self.path, KINDS, "perf/seconds" if axis == "time" else "step")
        per_step = {"samples": 1, "flops": 3 * (self.folder.state.get("flops_per_sample") or 0)}.get(axis)
        if per_step is not None:
            per_step *= self.get("data.batch_size") or 0
            curves = {name: ((steps + 1) * per_step, values) for name, (steps, values) in curves.items() if per_step}
        if not curves and (self.path / "metrics.csv").exists():
            raise ConfigError(f"--x {axis}: {self.path} has not recorded that -> --x step")
        return curves


def known(records: Sequence[Record], name: str, flag: str) -> str:
    """The name, which at least one run has; raises ConfigError."""
    if records and not any(name in record for record in records):
        names = sorted({other for record in records for other in record})
        longer = [other for other in names if re.search(rf"[./]{re.escape(name)}$", other)][:1]
        hint = f"; did you mean {longer[0]}?" if longer else nearest(name, names)
        raise ConfigError(f"{flag} {name}: no run has this key or metric{hint}")
    return name


def matching(records: Sequence[Record], condition: str) -> list[Record]:
    """Those of which KEY=VALUE holds, or !=, <, <=, >, >= in place of the =; a value may have * in it."""
    parts = re.fullmatch(r"(.+?)(<=|>=|!=|=|<|>)(.+)", condition)
    if not parts:
        raise ConfigError(f"--filter {condition}: not a condition -> KEY=VALUE, or with !=, <, <=, >, >=")
    name, sign, wanted = parts.groups()
    if sign[0] in "<>" and number(wanted) is None:
        raise ConfigError(f"--filter {condition}: {wanted} is not a number -> {name}=VALUE compares text")
    known(records, name, "--filter")
    return [record for record in records if holds(record.get(name), sign, wanted)]


def holds(value: Any, sign: str, wanted: str) -> bool:
    if sign[0] in "<>":
        return is_number(value) and SIGNS[sign](value, float(wanted))
    equal = fnmatchcase(str(value), wanted) or number(wanted) == value is not None
    with suppress(yaml.YAMLError):  # null, true, [8, 8]
        equal = equal or yaml.load(wanted, FASTEST) == value
    return equal == (sign == "=")


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def ordered(records: Sequence[Record], by: str) -> list[Record]:
    """From the least up, or with a `-` before the name from the greatest down; what has no such value comes last."""
    name = known(records, by.removeprefix("-"), "--sort")
    values = [record.get(name) for record in records]
    if any(map(is_number, values)):
        values = [value if is_number(value) else None for value in values]
    having = sorted((i for i, v in enumerate(values) if v is not None), key=lambda i: sort_key(values[i]))
    having = having[::-1] if by.startswith("-") else having
    return [records[i] for i in (*having, *(i for i, v in enumerate(values) if v is None))]


def sort_key(value: Any) -> Any:
    return value if is_number(value) else str(value)


def best(records: Sequence[Record], name: str) -> Record:
    higher = higher_is_better(records, known(records, name, "--best"))
    having = [record for record in records if is_number(record.get(name))]
    if not having:
        raise ConfigError(f"--best {name}: it is a number in no run -> --sort {name} lists them")
    return (max if higher else min)(having, key=lambda record: record[name])


def higher_is_better(records: Sequence[Record], name: str) -> bool:
    """By checkpoints.mode of the runs that monitor such a metric, else by its name; raises ConfigError."""
    kind = name.rpartition("/")[2]
    monitors = [record for record in records if str(record.get("checkpoints.monitor")).rpartition("/")[2] == kind]
    modes = {record.get("checkpoints.mode") for record in monitors}
    if len(modes) != 1 and not HIGHER.fullmatch(kind) and not LOWER.fullmatch(kind):
        raise ConfigError(f"--best {name}: whether more or less is better is not known -> --sort {name}, or -{name}")
    return modes == {"max"} if len(modes) == 1 else bool(HIGHER.fullmatch(kind))


def as_csv(records: Sequence[Record]) -> str:
    """A line for each run: how it ended, the keys in which the configs differ, the metrics."""
    keys = sorted({key for record in records for key in record.config})
    differ = [key for key in keys if len({repr(record.config.get(key)) for record in records}) > 1]
    ended, metrics = (
        dict.fromkeys(name for record in records for name in getattr(record, part)) for part in ("ended", "metrics")
    )
    columns = dict.fromkeys(["run", *ended, *differ, *metrics])
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([str(record.path), *map(record.get, [*columns][1:])] for record in records)
    return text.getvalue()
