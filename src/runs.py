"""Look at runs without an account.

    python -m src.runs                                                # all runs under logs/: how each ended, and why
    python -m src.runs logs/digits_cnn/first                          # one: its end, time, metrics and curves
    python -m src.runs logs/digits_cnn/first logs/digits_cnn/second   # side by side

Side by side: the keys in which the configs differ, the metrics, and the curves as compare.png in the last folder named,
or --output FILE.png. Runs of one code that differ in their seed alone are one column: mean and standard deviation.
"""

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from src.config.request import CommandParser
from src.loggers import curves as drawing
from src.run import figures
from src.run.command import command
from src.run.errors import CheckpointError, ConfigError
from src.run.folder import LOGS, RunFolder, ending, flat, is_free
from src.run.ledger import shares
from src.run.terminal import console, duration, rank_zero_print, relative_path

Groups = dict[str, list[RunFolder]]  # by letter; the runs of one differ in their seed alone
SEEDS = ("seed_everything", "data.seed")
SHOWN = 6  # metrics of a run in the overview


@command
def main(args: Sequence[str]) -> int:
    parser = CommandParser(
        "python -m src.runs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="*", type=Path, help="run folders, or folders of such folders")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to draw the curves, a .png file")
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    options = parser.parse_args(list(args))
    if options.output and options.output.suffix != ".png":
        raise ConfigError(f"--output {options.output}: the name must end in .png")
    folders: list[RunFolder] = []
    for path in options.run or [LOGS]:
        found = sorted(path.rglob("run.json"))
        if not found:
            raise CheckpointError(f"{path}: no run is here -> name a folder under logs/, or train one")
        folders += [RunFolder(file.parent) for file in found]
    overview(folders)
    if len(folders) == 1 and "ledger" in folders[0].summary:
        ledger = folders[0].summary["ledger"]
        rank_zero_print("")
        shown = [(part, share) for part, share in shares(ledger) if share >= 0.0005]
        show(["time in", "s", "share"], [[part, f"{ledger[part]:.2f}", f"{share:.1%}"] for part, share in shown])
    if options.run:
        compare(grouped(folders), options.output or options.run[-1] / "compare.png")
    return 0


def overview(folders: list[RunFolder]) -> None:
    """A line for each run: how it ended, and why."""
    lines = []
    for folder in folders:
        summary = ending(folder)
        tested = [f"{n.removeprefix('test/')} {v:.4f}" for n, v in summary.items() if n.startswith("test/")]
        result = ", ".join(tested[:SHOWN])
        time = duration(summary["seconds"]) if "seconds" in summary else ""
        why = f"exit code {summary['exit_code']}: {summary['error']}" if "error" in summary else ""
        why = f"stopped by {summary['stopped_by']}" if "stopped_by" in summary else why
        if summary["status"] == "cut short":
            why = f"the same command {'goes on' if 'steps' in summary else 'begins again: there is no checkpoint'}"
        lines.append([relative_path(folder.path), summary["status"], str(summary.get("steps", "")), time, result, why])
    show(["run", "state", "steps", "time", "result", "why"], lines)


def show(header: list[str], lines: Iterable[list[str]]) -> None:
    table = Table(*header, box=None, pad_edge=False)
    for line in lines:
        table.add_row(*map(Text, line))  # else rich would take [brackets] for its own
    out = console()
    with out.capture() as text:
        out.print(table)
    rank_zero_print("\n".join(line.rstrip() for line in text.get().splitlines()))


def grouped(folders: list[RunFolder]) -> Groups:
    groups: dict[tuple[str, int], list[RunFolder]] = {}
    times: Counter[str] = Counter()  # one group has no run twice
    for folder in folders:
        facts = compared(folder)
        alike, same = (repr(sorted(k for k in facts.items() if k[0] not in free)) for free in (SEEDS, ()))
        groups.setdefault((alike, times[same]), []).append(folder)
        times[same] += 1
    return {chr(ord("A") + i % 26) + ("" if i < 26 else str(i // 26)): g for i, g in enumerate(groups.values())}


def compared(folder: RunFolder) -> dict[str, str]:
    """The code of a run, and the keys of its config on which its results may depend."""
    code = {"code (src_sha256)": folder.state.get("code", {}).get("src_sha256", "-")[:8]}
    return code | {k: str(v) for k, v in flat(folder.config()).items() if v is not None and not is_free(k)}


def compare(groups: Groups, output: Path) -> None:
    from src.loggers.metrics_csv import read_curves  # loads Lightning, which takes seconds

    for letter, group in groups.items():
        more = f" and {len(group) - 1} more with other seeds" if len(group) > 1 else ""
        rank_zero_print(f"\n{letter}: {relative_path(group[0].path)}{more}" if len(groups) > 1 or more else "")
    show_differences(groups)
    curves = {letter: [read_curves(f.path, ("train/", "val/", "perf/")) for f in g] for letter, g in groups.items()}
    metrics = [list(map(metrics_of, group, curves[letter])) for letter, group in groups.items()]
    names = dict.fromkeys(name for group in metrics for run in group for name in run)
    lines = ([name, *(spread([run[name] for run in group if name in run]) for group in metrics)] for name in names)
    show(["metric", *(groups if len(groups) > 1 else ["value"])], lines)
    figures.save(drawing.curves(curves), output)
    rank_zero_print(f"\nCurves: {relative_path(output)}")


def show_differences(groups: Groups) -> None:
    """The keys in which the configs of groups differ."""
    configs = [list(map(compared, group)) for group in groups.values()]
    keys = sorted({key for group in configs for config in group for key in config})
    values = ([key, *(",".join(dict.fromkeys(c.get(key, "-") for c in group)) for group in configs)] for key in keys)
    if differ := [line for line in values if len(set(line[1:])) > 1]:
        show(["config", *groups], differ)
    elif len(groups) > 1:
        rank_zero_print("the same config and code")


def metrics_of(folder: RunFolder, curves: dict[str, drawing.Curve]) -> dict[str, float]:
    """The test's metrics, and the last of the others."""
    test = {name: value for name, value in folder.summary.items() if name.startswith("test/")}
    return {**test, **{name: float(values[-1]) for name, (_, values) in curves.items()}}


def spread(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.4g}" if values else "-"
    return f"{statistics.fmean(values):.4g} ± {statistics.stdev(values):.2g} (n={len(values)})"


if __name__ == "__main__":
    sys.exit(main())
