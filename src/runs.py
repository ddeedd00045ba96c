"""Look at runs without an account.

    python -m src.runs                                                # all runs under logs/: how each ended, and why
    python -m src.runs logs/digits_cnn/first                          # one: its end, time, metrics and curves
    python -m src.runs logs/digits_cnn/first logs/digits_cnn/second   # side by side
    python -m src.runs --filter "test/acc>0.9" --sort -test/acc       # of all runs those, the most accurate first
    python -m src.runs logs/digits_cnn --best val/loss                # the path of the best run, for scripts

Side by side: the keys in which the configs differ, the metrics, and the curves as compare.png in the last folder named,
or --output FILE.png. Runs of one code that differ in their seed alone are one column: mean and standard deviation.
A NAME is a key of the config, a metric (of the best checkpoint), or status, steps, seconds or time of the last start.
"""

import argparse
import csv
import math
import re
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from src.config.request import CommandParser
from src.config.strict_yaml import read_text
from src.loggers import curves as drawing
from src.run import figures
from src.run.command import command
from src.run.errors import CheckpointError, ConfigError, nearest
from src.run.files import read_json, write_text
from src.run.folder import LOGS, RunFolder, ending, flat, is_free
from src.run.ledger import shares
from src.run.page import filled_in, svg
from src.run.redact import redact
from src.run.terminal import duration, print_table, rank_zero_print, relative_path

HEADER = ["run", "state", "steps", "time", "result", "why"]
SHOWN, DRAWN = 6, 12  # metrics of a run in the overview; groups, of which more cannot be told apart
BETTER = {"max": "acc|f1|auroc|r2|mfu|samples_per_sec", "min": "loss|perplexity|bpb|rmse|mae|mse|seconds|sec|frac"}
short = partial(re.sub, r"\d+\.\d{5,}(e[-+]\d+)?", lambda number: f"{float(number[0]):.4g}")  # the numbers in a text


class Record:  # what is known of a run, whatever state it is in
    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, RunFolder(path)
        self.ended = {"time": (path / "run.json").stat().st_mtime, **flat(ending(self.folder))}
        self.tested = {k: v for k, v in self.ended.items() if k.startswith("test/") and isinstance(v, float)}
        self.config: dict[str, Any] = {}
        with suppress(CheckpointError, OSError):
            self.config = flat(self.folder.config())

    def curves(self, axis: str = "step") -> dict[str, drawing.Curve]:
        with suppress(ValueError):  # of a damaged file
            return drawing.read_curves(self.path, ("train/", "val/", "perf/"), drawing.AXES[axis][0])
        return {}

    @cached_property
    def metrics(self) -> dict[str, float]:
        best = self.ended.get("best.step") or math.inf
        until = {name: values[steps < best] for name, (steps, values) in self.curves().items()}
        return {name: float(values[-1]) for name, values in until.items() if len(values)}

    def get(self, name: str) -> Any:
        known = self.ended if name in self.ended else self.metrics if "/" in name else self.config
        return known.get(name, self.config.get(f"{name}.class_path"))


Groups = dict[str, list[Record]]  # by letter, of runs that differ in their seed alone; or by the value of a key


@command
def main(args: Sequence[str]) -> int:
    options = parse(args)
    records = found(options.run or [LOGS])
    for condition in options.filter:
        if not (records := matching(records, condition)):
            raise CheckpointError(f"--filter {condition}: no run is left -> name another value")
    records = ordered(records, options.sort) if options.sort else records
    if options.best:
        print(best(records, options.best).path)
        return 0
    groups = grouped(records, options.group)
    print_table(HEADER, map(line, records))
    if len(records) == 1 and "ledger" in (summary := records[0].folder.summary):
        rank_zero_print("")
        seconds = summary["ledger"]
        parts = [[part, f"{seconds[part]:.2f}", f"{share:.1%}"] for part, share in shares(seconds) if share >= 0.0005]
        print_table(["time in", "s", "share"], parts)
    if options.csv:
        write_csv(options.csv, records)
    if options.html:
        write_report(options.html, groups, options.x)
    if options.run and not (options.csv or options.html):
        compare(groups, options.x, options.output or options.run[-1] / "compare.png")
    elif options.group:
        print_table(*measured(groups))
    return 0


def parse(args: Sequence[str]) -> argparse.Namespace:
    how = argparse.RawDescriptionHelpFormatter
    parser = CommandParser("python -m src.runs", description=__doc__, formatter_class=how, allow_abbrev=False)
    add = parser.add_argument
    add("run", nargs="*", type=Path, help="run folders, or folders of such folders")
    add("--filter", action="append", default=[], metavar="NAME=VALUE", help="or !=, <, >; * is any text")
    add("--sort", metavar="NAME", help="the least first; with a - before it, the greatest")
    add("--group", metavar="NAME", help="mean and spread of each value; `auto`: of runs that differ in their seeds")
    add("--best", metavar="NAME", help="print nothing but the path of the best run")
    add("--x", choices=drawing.AXES, default="step", help="what the curves are drawn over")
    add("--output", type=Path, metavar="FILE", help="where to draw the curves, a .png file")
    add("--csv", type=Path, metavar="FILE", help="write the runs, the keys in which they differ, and their metrics")
    add("--html", type=Path, metavar="FILE", help="write a report in one file, which needs no network")
    add("--debug", action="store_true", help="show a traceback with an error")
    options = parser.parse_args("\0".join(args).replace("--sort\0-", "--sort=-").split("\0") if args else [])
    if options.output and options.output.suffix != ".png":
        raise ConfigError(f"--output {options.output}: the name must end in .png")
    for path in filter(None, (options.output, options.csv, options.html)):
        path.parent.mkdir(parents=True, exist_ok=True)
    return options


def found(paths: list[Path]) -> list[Record]:
    records: list[Record] = []
    for path in paths:
        files = sorted(path.rglob("run.json"))
        if not files:
            raise CheckpointError(f"{path}: no run is here -> name a folder under logs/, or train one")
        records += [Record(file.parent) for file in files]
    return records


def line(record: Record) -> list[str]:
    ended = record.ended
    result = ", ".join(f"{name.removeprefix('test/')} {value:.4f}" for name, value in [*record.tested.items()][:SHOWN])
    time = duration(ended["seconds"]) if "seconds" in ended else ""
    time += f" from step {ended['first_step']}" if ended.get("first_step") else ""  # what the last process took
    why = f"exit code {ended.get('exit_code')}: {ended['error']}" if "error" in ended else ""
    why = f"stopped by {ended['stopped_by']}" if "stopped_by" in ended else why
    if ended.get("status") == "cut short":
        why = f"the same command {'goes on' if 'steps' in ended else 'begins again: there is no checkpoint'}"
    return [relative_path(record.path), str(ended.get("status")), str(ended.get("steps", "")), time, result, why]


def grouped(records: list[Record], key: str | None) -> Groups:
    groups: dict[tuple[str, int], list[Record]] = {}
    if key not in (None, "auto"):
        values = known(records, key, "--group")
        return {str(value): [r for v, r in values if str(v) == str(value)] for value, _ in values}
    times: Counter[str] = Counter()  # one group has no run twice
    for record in records:
        facts = compared(record)
        alike, same = (
            repr(sorted(k for k in facts.items() if k[0] not in free))
            for free in (("seed_everything", "data.seed"), ())
        )
        groups.setdefault((alike, times[same]), []).append(record)
        times[same] += 1
    return {chr(ord("A") + i % 26) + ("" if i < 26 else str(i // 26)): g for i, g in enumerate(groups.values())}


def compared(record: Record) -> dict[str, str]:
    """The code of a run, and the keys of its config on which its results may depend."""
    code = {"code (src_sha256)": record.folder.state.get("code", {}).get("src_sha256", "-")[:8]}
    return code | {k: str(v) for k, v in record.config.items() if v is not None and not is_free(k)}


def compare(groups: Groups, axis: str, output: Path) -> None:
    for label, group in groups.items():
        more = f" and {len(group) - 1} more" if len(group) > 1 else ""
        rank_zero_print(f"\n{label}: {relative_path(group[0].path)}{more}" if len(groups) > 1 or more else "")
    if (differ := differences(groups))[1]:
        print_table(*differ)
    elif len(groups) > 1:
        rank_zero_print("the same config and code")
    print_table(*measured(groups))
    figures.save(drawing.curves(curves_of(groups, axis), drawing.AXES[axis][1]), output)
    rank_zero_print(f"\nCurves: {relative_path(output)}")


def curves_of(groups: Groups, axis: str) -> dict[str, list[dict[str, drawing.Curve]]]:
    curves = {label: [record.curves(axis) for record in groups[label]] for label in [*groups][:DRAWN]}
    if len(groups) > DRAWN:
        rank_zero_print(f"\nOf {len(groups)} groups the first {DRAWN} are drawn: --filter or --sort to see others")
    if axis == "step" or any(map(any, curves.values())):
        return curves
    raise ConfigError(f"--x {axis}: no run has recorded that -> --x step")


def write_report(file: Path, groups: Groups, axis: str) -> None:
    """A page that holds its pictures and curves, asks no network and runs no script."""
    curves = curves_of(groups, axis)
    panels = {kind: panel(curves, kind, drawing.AXES[axis][1]) for kind in drawing.kinds_of(curves)}
    tools = {tool.__name__: tool for tool in (differences, duration, flat, line, measured, read_json, redact, shares)}
    write_text(file, filled_in("report.html", groups=groups, header=HEADER, panels=panels, **tools))
    rank_zero_print(f"\nReport: {relative_path(file)}")


def panel(runs: drawing.Groups, kind: str, label: str) -> str:
    one = {name: [{k: v for k, v in run.items() if k.endswith(f"/{kind}")} for run in runs[name]] for name in runs}
    return svg(drawing.curves(one, label))


def differences(groups: Groups) -> tuple[list[str], list[list[str]]]:
    configs = [list(map(compared, group)) for group in groups.values()]
    keys = sorted({key for group in configs for config in group for key in config})
    values = ([key, *(",".join(dict.fromkeys(c.get(key, "-") for c in group)) for group in configs)] for key in keys)
    return ["config", *map(short, groups)], [[*map(short, line)] for line in values if len(set(line[1:])) > 1]


def measured(groups: Groups) -> tuple[list[str], list[list[str]]]:
    """The test's metrics, and the last of the others."""
    runs = [[r.tested | {k: float(v[-1]) for k, (_, v) in r.curves().items()} for r in g] for g in groups.values()]
    names = dict.fromkeys(name for group in runs for run in group for name in run)
    lines = [[name, *(spread([run[name] for run in group if name in run]) for group in runs)] for name in names]
    return ["metric", *(map(short, groups) if len(groups) > 1 else ["value"])], lines


def spread(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.4g}" if values else "-"
    return f"{statistics.fmean(values):.4g} ± {statistics.stdev(values):.2g} (n={len(values)})"


def write_csv(file: Path, records: list[Record]) -> None:
    columns = dict.fromkeys(name for record in records for name in (*record.ended, *record.metrics))
    keys = sorted({key for record in records for key in record.config})
    columns |= dict.fromkeys(k for k in keys if len({str(record.config.get(k)) for record in records}) > 1)
    with open(file, "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([["run", *columns], *([r.path, *map(r.get, columns)] for r in records)])


def known(records: list[Record], name: str, flag: str) -> list[tuple[Any, Record]]:
    """What each run has under a name; raises ConfigError where none knows it."""
    found = [(record.get(name), record) for record in records]
    names = {name} if any(v for v, _ in found) else {n for r in records for n in (*r.ended, *r.config, *r.metrics)}
    if name not in names:
        longer = next((f"; did you mean {n}?" for n in sorted(names) if n.endswith((f".{name}", f"/{name}"))), "")
        raise ConfigError(f"{flag} {name}: no run has such a key or metric{longer or nearest(name, names)}")
    return found


def matching(records: list[Record], condition: str) -> list[Record]:
    name, sign, text = [*re.split("(!=|[=<>])", condition, maxsplit=1), "", ""][:3]
    wanted: Any = None
    with suppress(ConfigError):  # of text that is no YAML, such as *a
        wanted = read_text(text, "--filter")[0]
    if not text or (sign in ("<", ">") and not is_number(wanted)):
        raise ConfigError(f"--filter {condition}: not a condition -> NAME=VALUE, NAME!=VALUE, NAME<NUMBER, NAME>NUMBER")
    found = known(records, name, "--filter")
    if sign in ("<", ">"):
        return [r for value, r in found if is_number(value) and (value < wanted if sign == "<" else value > wanted)]
    return [r for v, r in found if (v == wanted or fnmatchcase(str(v), text)) == (sign == "=")]


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def ordered(records: list[Record], name: str) -> list[Record]:
    """By numbers, of -NAME from the greatest down; then by text."""
    sign, found = -1 if name.startswith("-") else 1, known(records, name.removeprefix("-"), "--sort")
    ranks = [((0, sign * value) if is_number(value) else (1, str(value)), record) for value, record in found]
    return [record for _, record in sorted(ranks, key=lambda pair: pair[0])]


def best(records: list[Record], name: str) -> Record:
    """By checkpoints.mode of the runs that monitor such a metric, else by BETTER."""
    kind, having = name.rpartition("/")[2], [pair for pair in known(records, name, "--best") if is_number(pair[0])]
    modes = {r.get("checkpoints.mode") for _, r in having if str(r.get("checkpoints.monitor")).split("/")[-1] == kind}
    if len(modes) != 1:
        modes = {mode for mode, names in BETTER.items() if re.fullmatch(f"(.*_)?({names})(_.*)?", kind)}
    if len(modes) != 1 or not having:
        raise ConfigError(f"--best {name}: not a number of which more or less is better -> --sort {name}, or -{name}")
    return (max if modes == {"max"} else min)(having, key=lambda pair: pair[0])[1]


if __name__ == "__main__":
    sys.exit(main())
