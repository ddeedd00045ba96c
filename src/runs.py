"""Look at runs without an account.

    python -m src.runs                                                # all runs under logs/: how each ended, and why
    python -m src.runs logs/digits_cnn/first                          # one: its end, time, metrics and curves
    python -m src.runs logs/digits_cnn/first logs/digits_cnn/second   # side by side
    python -m src.runs --filter "test/acc>0.9" --sort=-test/acc       # those of all runs, the most accurate first
    python -m src.runs --group data.batch_size                        # mean and spread of each batch size
    python -m src.runs logs/digits_cnn --best val/loss                # the path of the best run, for scripts
    python -m src.runs logs/digits_cnn --html report.html             # one file to send, which needs no network

Side by side: the keys in which the configs differ, the metrics, and the curves as compare.png in the last folder named,
or --output FILE.png. Runs of one code that differ in their seed alone are one column: mean and standard deviation.
A name is any dotted key of the config, a metric (the test's; others as they were at the best checkpoint), status,
steps, seconds or time, when the run was started.
"""

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from src.config.request import CommandParser
from src.loggers import curves as drawing
from src.loggers.records import AXES, Record, as_csv, best, known, matching, ordered
from src.run import figures
from src.run.command import command
from src.run.errors import CheckpointError, ConfigError
from src.run.files import write_text
from src.run.folder import LOGS, is_free
from src.run.ledger import shares
from src.run.terminal import console, duration, rank_zero_print, relative_path

Groups = dict[str, list[Record]]  # by letter; the runs of one differ in their seed alone, or share the key asked for
SEEDS = ("seed_everything", "data.seed")
SHOWN = 6  # metrics of a run in the overview


@command
def main(args: Sequence[str]) -> int:
    options = parse(args)
    records = found(options.run or [LOGS])
    for condition in options.filter:
        records = matching(records, condition)
    if not records:
        raise CheckpointError("no run is left by --filter -> see them all without it")
    records = ordered(records, options.sort) if options.sort else records
    if options.best:
        print(best(records, options.best).path)
        return 0
    groups = grouped(records, options.group)
    overview(records) if options.group is None else overview_of(groups, options.group)
    if len(records) == 1 and "ledger" in (summary := records[0].folder.summary):
        show_ledger(summary)
    if options.csv:
        write_text(options.csv, as_csv(records))
        rank_zero_print(f"\nTable: {options.csv}")
    if options.html:
        from src.loggers.report import report

        write_text(options.html, report(records, groups, options.x))
        rank_zero_print(f"\nReport: {options.html}")
    if options.run and not (options.csv or options.html):
        compare(groups, options.x, options.output or options.run[-1] / "compare.png")
    return 0


def parse(args: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(
        "python -m src.runs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", nargs="*", type=Path, help="run folders, or folders of such folders")
    add("--filter", action="append", default=[], metavar="KEY=VALUE", help="or !=, <, <=, >, >=; * is any text")
    add("--sort", metavar="NAME", help="the least first; with a - before the name, the greatest")
    add("--group", metavar="KEY", help="mean and spread of the runs with one value of a key; auto: that differ in seeds")
    add("--best", metavar="METRIC", help="print nothing but the path of the best run")
    add("--x", choices=AXES, default="step", help="what the curves are drawn over")
    add("--output", type=Path, metavar="FILE.png", help="where to draw the curves")
    add("--csv", type=Path, metavar="FILE.csv", help="write a table of the runs, their keys that differ and metrics")
    add("--html", type=Path, metavar="FILE.html", help="write a report in one file")
    add("--debug", action="store_true", help="show a traceback with an error")
    args = [f"--sort={args[i + 1]}" if a == "--sort" and i + 1 < len(args) else a for i, a in enumerate(args)]
    options = parser.parse_args([a for i, a in enumerate(args) if not i or args[i - 1] != f"--sort={a}"])
    for name, suffix in {"output": ".png", "csv": ".csv", "html": ".html"}.items():
        path = getattr(options, name)
        if path and path.suffix != suffix:
            raise ConfigError(f"--{name} {path}: the name must end in {suffix}")
        if path and not path.absolute().parent.is_dir():
            raise ConfigError(f"--{name} {path}: there is no folder {path.parent} -> make it, or name another")
    return options


def found(paths: list[Path]) -> list[Record]:
    records = []
    for path in paths:
        files = sorted(path.rglob("run.json"))
        if not files:
            raise CheckpointError(f"{path}: no run is here -> name a folder under logs/, or train one")
        records += [Record(file.parent) for file in files]
    return records


def overview(records: list[Record]) -> None:
    """A line for each run: how it ended, and why."""
    show(["run", "state", "steps", "time", "result", "why"], [line(record) for record in records])


def line(record: Record) -> list[str]:
    ended = record.ended
    tested = [f"{name.removeprefix('test/')} {value:.4f}" for name, value in results(record).items()]
    time = duration(ended["seconds"]) if "seconds" in ended else ""
    time += f" after step {ended['first_step']}" if time and ended.get("first_step") else ""  # what the last process did
    why = f"exit code {ended.get('exit_code')}: {ended['error']}" if "error" in ended else ""
    why = f"stopped by {ended['stopped_by']}" if "stopped_by" in ended else why
    if ended["status"] == "cut short":
        why = f"the same command {'goes on' if 'steps' in ended else 'begins again: there is no checkpoint'}"
    steps, state = str(ended.get("steps", "")), str(ended["status"])
    return [relative_path(record.path), state, steps, time, ", ".join(tested[:SHOWN]), why]


def results(record: Record) -> dict[str, float]:
    return {k: v for k, v in record.ended.items() if k.startswith("test/") and isinstance(v, (int, float))}


def overview_of(groups: Groups, key: str) -> None:
    """A line for each group: the value of the key, how many runs, mean and spread of what was tested."""
    names = list(dict.fromkeys(name for group in groups.values() for record in group for name in results(record)))[:SHOWN]
    lines = []
    for label, group in groups.items():
        tested = ([results(record)[name] for record in group if name in results(record)] for name in names)
        lines.append([label, str(len(group)), *map(spread, tested), relative_path(group[0].path)])
    show(["group" if key == "auto" else key, "runs", *(n.removeprefix("test/") for n in names), "first of them"], lines)


def show_ledger(summary: dict[str, Any]) -> None:
    ledger, first = summary["ledger"], summary.get("first_step")
    shown = [[part, f"{ledger[part]:.2f}", f"{share:.1%}"] for part, share in shares(ledger) if share >= 0.0005]
    rank_zero_print(f"\nof the last process, after step {first}:" if first else "")
    show(["time in", "s", "share"], shown)


def show(header: list[str], lines: Iterable[list[str]]) -> None:
    table = Table(*header, box=None, pad_edge=False)
    for line in lines:
        table.add_row(*map(Text, line))  # else rich would take [brackets] for its own
    out = console()
    with out.capture() as text:
        out.print(table)
    rank_zero_print("\n".join(line.rstrip() for line in text.get().splitlines()))


def grouped(records: list[Record], key: str | None = None) -> Groups:
    """Runs that differ in their seed alone, by letter; or those with one value of a key, by that."""
    groups: dict[Any, list[Record]] = {}
    if key not in (None, "auto"):
        known(records, key, "--group")
        for record in records:
            groups.setdefault(str(record.get(key, "-")), []).append(record)
        return groups
    times: Counter[str] = Counter()  # one group has no run twice
    for record in records:
        facts = compared(record)
        alike, same = (repr(sorted(k for k in facts.items() if k[0] not in free)) for free in (SEEDS, ()))
        groups.setdefault((alike, times[same]), []).append(record)
        times[same] += 1
    return {chr(ord("A") + i % 26) + ("" if i < 26 else str(i // 26)): g for i, g in enumerate(groups.values())}


def compared(record: Record) -> dict[str, str]:
    """The code of a run, and the keys of its config on which its results may depend."""
    code = {"code (src_sha256)": (record.folder.state.get("code") or {}).get("src_sha256", "-")[:8]}
    return code | {k: str(v) for k, v in record.config.items() if v is not None and not is_free(k)}


def compare(groups: Groups, axis: str, output: Path) -> None:
    for letter, group in groups.items():
        more = f" and {len(group) - 1} more with other seeds" if len(group) > 1 else ""
        rank_zero_print(f"\n{letter}: {relative_path(group[0].path)}{more}" if len(groups) > 1 or more else "")
    if differ := differences(groups):
        show(["config", *groups], differ)
    elif len(groups) > 1:
        rank_zero_print("the same config and code")
    show(["metric", *(groups if len(groups) > 1 else ["value"])], measured(groups))
    curves = {label: [record.curves(axis) for record in group] for label, group in groups.items()}
    figures.save(drawing.curves(curves, AXES[axis]), output)
    rank_zero_print(f"\nCurves: {relative_path(output)}")


def differences(groups: Groups) -> list[list[str]]:
    """The keys in which the configs of groups differ, and their values."""
    configs = [list(map(compared, group)) for group in groups.values()]
    keys = sorted({key for group in configs for config in group for key in config})
    values = ([key, *(",".join(dict.fromkeys(c.get(key, "-") for c in group)) for group in configs)] for key in keys)
    return [line for line in values if len(set(line[1:])) > 1]


def measured(groups: Groups) -> list[list[str]]:
    """The test's metrics, and the last of the others."""
    runs = [[metrics_of(record) for record in group] for group in groups.values()]
    names = dict.fromkeys(name for group in runs for run in group for name in run)
    return [[name, *(spread([run[name] for run in group if name in run]) for group in runs)] for name in names]


def metrics_of(record: Record) -> dict[str, float]:
    last = {name: float(values[-1]) for name, (_, values) in record.curves("step").items()}
    return {**results(record), **last}


def spread(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.4g}" if values else "-"
    return f"{statistics.fmean(values):.4g} ± {statistics.stdev(values):.2g} (n={len(values)})"


if __name__ == "__main__":
    sys.exit(main())
