"""Look at runs without an account.

    python -m src.runs                                                # all runs under logs/: how each ended, and why
    python -m src.runs logs/digits_cnn/first                          # one: its end, time, metrics and curves
    python -m src.runs logs/digits_cnn/first logs/digits_cnn/second   # side by side
    python -m src.runs --filter "test/acc>0.9" --sort -test/acc       # those of all runs, the most accurate first
    python -m src.runs logs/digits_cnn --best val/loss                # the path of the best run, for scripts
    python -m src.runs logs/digits_cnn --html report.html             # one file to send, which needs no network

Side by side: the keys in which the configs differ, the metrics, and the curves as compare.png in the last folder named,
or --output FILE.png. Runs of one code that differ in their seed alone are one column: mean and standard deviation.
A NAME is a dotted key of the config, a metric of the test, another metric as it was at the best checkpoint, or one of
status, steps, seconds, and time, when the run was last started.
"""

import argparse
import csv
import io
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from src.config.request import CommandParser
from src.loggers import curves as drawing
from src.loggers.records import AXES, Record, best, known, matching, ordered
from src.run import figures
from src.run.command import command
from src.run.errors import CheckpointError, ConfigError
from src.run.files import write_text
from src.run.folder import LOGS, is_free
from src.run.ledger import shares
from src.run.terminal import console, duration, rank_zero_print, relative_path

Groups = dict[str, list[Record]]  # by letter, of runs that differ in their seed alone; or by the value of a key
SEEDS = ("seed_everything", "data.seed")
SHOWN = 6  # metrics of a run in the overview


@command
def main(args: Sequence[str]) -> int:
    options = parse(list(args))
    records = found(options.run or [LOGS])
    for condition in options.filter:
        records = matching(records, condition)
    if not records:
        raise CheckpointError(f"--filter {options.filter[-1]}: no run is left -> name another value")
    records = ordered(records, options.sort) if options.sort else records
    if options.best:
        print(best(records, options.best).path)
        return 0
    groups, files = grouped(records, options.group), [path for path in (options.csv, options.html) if path]
    show(*overview(records))
    if len(records) == 1 and "ledger" in (summary := records[0].folder.summary):
        ledger, first = summary["ledger"], summary.get("first_step")
        rank_zero_print(f"\nof the last process, which went on after step {first}:" if first else "")
        shown = [(part, share) for part, share in shares(ledger) if share >= 0.0005]
        show(["time in", "s", "share"], [[part, f"{ledger[part]:.2f}", f"{share:.1%}"] for part, share in shown])
    if options.csv:
        write_text(options.csv, as_csv(records))
    if options.html:
        from src.loggers.report import report

        tables = {"Runs": overview(records), "What differs": differences(groups), "Metrics": measured(groups)}
        write_text(options.html, report(groups, options.x, tables if len(records) > 1 else {}))
    if options.run and not files:
        files = [options.output or options.run[-1] / "compare.png"]
        compare(groups, options.x, files[0])
    elif options.group:
        show(*measured(groups))
    if files:
        rank_zero_print(f"\nWritten: {', '.join(map(relative_path, files))}")
    return 0


def parse(args: list[str]) -> argparse.Namespace:
    how = argparse.RawDescriptionHelpFormatter
    parser = CommandParser("python -m src.runs", description=__doc__, formatter_class=how, allow_abbrev=False)
    add = parser.add_argument
    add("run", nargs="*", type=Path, help="run folders, or folders of such folders")
    add("--filter", action="append", default=[], metavar="NAME=VALUE", help="or !=, <, <=, >, >=; * is any text")
    add("--sort", metavar="NAME", help="the least first; with a - before it, the greatest")
    add(
        "--group",
        metavar="NAME",
        help="mean and spread of the runs of each value; `auto`: of those that differ in seeds",
    )
    add("--best", metavar="NAME", help="print nothing but the path of the best run")
    add("--x", choices=AXES, default="step", help="what the curves are drawn over")
    for kind, what in {"png": "the curves", "csv": "a table of the runs", "html": "a report in one file"}.items():
        add("--output" if kind == "png" else f"--{kind}", type=Path, metavar=f"FILE.{kind}", help=f"write {what}")
    add("--debug", action="store_true", help="show a traceback with an error")
    if "--sort" in args[:-1]:  # what follows may begin with a -, which would be a flag of its own
        i = args.index("--sort")
        args[i : i + 2] = [f"--sort={args[i + 1]}"]
    options = parser.parse_args(args)
    for name, path in {"output.png": options.output, "csv.csv": options.csv, "html.html": options.html}.items():
        if path and path.suffix != Path(name).suffix:
            raise ConfigError(f"--{Path(name).stem} {path}: the name must end in {Path(name).suffix}")
        if path and not path.parent.is_dir():
            raise ConfigError(f"--{Path(name).stem} {path}: there is no folder {path.parent} -> make it")
    return options


def found(paths: list[Path]) -> list[Record]:
    records: list[Record] = []
    for path in paths:
        files = sorted(path.rglob("run.json"))
        if not files:
            raise CheckpointError(f"{path}: no run is here -> name a folder under logs/, or train one")
        records += [Record(file.parent) for file in files]
    return records


def overview(records: list[Record]) -> tuple[list[str], list[list[str]]]:
    """A line for each run: how it ended, and why."""
    return ["run", "state", "steps", "time", "result", "why"], list(map(line, records))


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


def show(header: list[str], lines: Iterable[list[str]]) -> None:
    table = Table(*header, box=None, pad_edge=False)
    for line in lines:
        table.add_row(*map(Text, line))  # else rich would take [brackets] for its own
    out = console()
    with out.capture() as text:
        out.print(table)
    rank_zero_print("\n".join(line.rstrip() for line in text.get().splitlines()))


def grouped(records: list[Record], key: str | None) -> Groups:
    groups: dict[tuple[str, int], list[Record]] = {}
    if key not in (None, "auto"):
        by: Groups = {}
        for record in known(records, key, "--group"):
            by.setdefault(str(record.get(key)), []).append(record)
        return by
    times: Counter[str] = Counter()  # one group has no run twice
    for record in records:
        facts = compared(record)
        alike, same = (repr(sorted(k for k in facts.items() if k[0] not in free)) for free in (SEEDS, ()))
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
        show(*differ)
    elif len(groups) > 1:
        rank_zero_print("the same config and code")
    show(*measured(groups))
    curves = {label: [record.curves(axis) for record in group] for label, group in groups.items()}
    figures.save(drawing.curves(curves, AXES[axis]), output)


def differences(groups: Groups) -> tuple[list[str], list[list[str]]]:
    """The keys in which the configs of groups differ."""
    configs = [list(map(compared, group)) for group in groups.values()]
    keys = sorted({key for group in configs for config in group for key in config})
    values = ([key, *(",".join(dict.fromkeys(c.get(key, "-") for c in group)) for group in configs)] for key in keys)
    return ["config", *groups], [line for line in values if len(set(line[1:])) > 1]


def measured(groups: Groups) -> tuple[list[str], list[list[str]]]:
    """The test's metrics, and the last of the others."""
    runs = [[record.tested | record.last for record in group] for group in groups.values()]
    names = dict.fromkeys(name for group in runs for run in group for name in run)
    lines = [[name, *(spread([run[name] for run in group if name in run]) for group in runs)] for name in names]
    return ["metric", *(groups if len(groups) > 1 else ["value"])], lines


def spread(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.4g}" if values else "-"
    return f"{statistics.fmean(values):.4g} ± {statistics.stdev(values):.2g} (n={len(values)})"


def as_csv(records: list[Record]) -> str:
    """A line for each run: how it ended, its metrics, and the keys in which the configs differ."""
    keys = sorted({key for record in records for key in record.config})
    columns = dict.fromkeys(name for record in records for name in (*record.ended, *record.metrics))
    columns |= dict.fromkeys(k for k in keys if len({repr(record.config.get(k)) for record in records}) > 1)
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["run", *columns], *([r.path, *map(r.get, columns)] for r in records)])
    return text.getvalue()


if __name__ == "__main__":
    sys.exit(main())
