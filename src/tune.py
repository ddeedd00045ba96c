"""Find the settings with which this experiment trains fastest on this machine, by measuring, then a learning rate.

    python -m src.tune --config configs/experiment/text_gpt.yaml
    python -m src.tune --config configs/experiment/text_gpt.yaml --minutes 3 --only precision,threads
    python -m src.train --config configs/experiment/text_gpt.yaml --config logs/text_gpt/tune/tuned.yaml

Real steps of the config as it is and of a change are measured in turn, in processes of their own: threads, precision,
fused optimizer, micro-batch, workers, compile. What is faster beyond noise is kept if short trainings end where those of
the config do, within what seeds make; then the next is tried on top. A range test suggests a learning rate, which is
taken if trainings with it end lower. Results are in logs/<experiment>/tune/, or --run_dir: table, picture, and the
overlay tuned.yaml. The same command goes on where it was stopped; with another config, machine or code it begins anew.
What a flag sets is left as it is. Nothing else is written: no run, no W&B. Exit code 0, also where nothing is faster.
"""

import copy
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from src.config.check import check
from src.config.request import CommandParser, Request, command_parser, merge, read_request, with_defaults
from src.run.command import command, command_line
from src.run.errors import ConfigError, EnvironmentFault, nearest
from src.run.files import write_json, write_text
from src.run.folder import LOGS, hardware, lock, src_sha256
from src.run.terminal import console, duration, rank_zero_print, relative_path

if TYPE_CHECKING:
    from src.tuning.choose import Row

WHAT = ("threads", "precision", "fused", "micro_batch", "workers", "compile", "lr")


def tune_parser() -> CommandParser:
    parser = command_parser("tune", __doc__)
    parser.add_argument("--minutes", type=minutes, default=10.0, metavar="M", help="about as long as it may take: 10")
    parser.add_argument("--only", type=names, default=WHAT, metavar="A,B", help=f"of {','.join(WHAT)}")
    parser.add_argument("--no_lr", action="store_true", help="leave the learning rate as it is")
    return parser


def minutes(text: str) -> float:
    value = float(text)
    if not 0 < value < 10_000:
        raise ValueError
    return value


def names(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(","))
    if unknown := [name for name in found if name not in WHAT]:
        raise ConfigError(f"--only: {unknown[0]} is none of {', '.join(WHAT)}{nearest(unknown[0], WHAT)}")
    return found


minutes.__name__ = "number of minutes"  # in argparse's message


@command
def main(args: Sequence[str]) -> int:
    request = read_request(tune_parser(), args)
    # This loads torch, which takes seconds; what is wrong in a file was found before.
    from src.config.build import Experiment

    if request.options.print_config:
        Experiment(request)
    folder = Path(request.options.run_dir or LOGS / request.experiment / "tune")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        locked = lock(folder / ".lock")
    except OSError as e:
        raise EnvironmentFault(f"{folder}: cannot be written: {e.strerror} -> name another --run_dir") from e
    if locked is None:
        raise ConfigError(f"{folder}: another tune is at work there -> wait for it, or give --run_dir")
    with locked:
        overlay, rows = searched(request, folder)
        written(request, folder, overlay, rows, args)
    return 0


def conditions(request: Request) -> dict[str, Any]:
    """What the figures hold for."""
    config = json.dumps(with_defaults(request.config), sort_keys=True, default=str)
    versions = {name: version(name) for name in ("torch", "lightning")}
    return {"config": hashlib.sha256(config.encode()).hexdigest(), "hardware": hardware() | devices(), **versions,
            "code": src_sha256()}  # fmt: skip


def devices() -> dict[str, str]:
    """GPUs, by what the driver says, so that this process does not begin to use one."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    model = next((line.partition(": ")[2] for line in cpu.splitlines() if line.startswith("model name")), "")
    return {
        "cpu": model,
        "gpus": ", ".join(file.read_text().partition("Model:")[2].split("\n")[0].strip() for file in files),
    }


def searched(request: Request, folder: Path) -> tuple[dict[str, Any], list["Row"]]:
    from src.tuning.candidates import candidates
    from src.tuning.choose import choose
    from src.tuning.search import Ledger, Search

    options, out = request.options, console()
    only = [name for name in options.only if not (options.no_lr and name == "lr")]
    ledger = Ledger(folder / "trials.jsonl", conditions(request))
    if ledger.is_other:
        rank_zero_print("Config, machine, versions or code have changed since the last tune here: it begins anew.")
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn(), console=out,
        auto_refresh=False, expand=True, disable=not out.is_terminal, transient=True,
    )  # fmt: skip
    task = bar.add_task("the config as it is")

    def tell(row: "Row") -> None:
        if not out.is_terminal:
            out.print(*line(row).values(), sep="  ")
        bar.update(task, advance=1, description=row["name"])

    with bar, Search(request, folder, ledger, 60 * options.minutes, bar.refresh) as search:
        search.begin()
        tried = [one for one in candidates(request, search.facts) if one.group in only and not one.refused]
        bar.update(task, total=len(tried) + 2)
        sec, steps = search.facts["step_sec"], search.facts["steps"]
        about = min(search.expected_sec(len(tried)), 60 * options.minutes)
        out.print(f"{1000 * sec:.3g} ms a step, {steps:,} steps; {len(tried)} changes to try: {duration(about)} or so")
        return choose(search, only, tell)


def line(row: "Row") -> dict[str, str]:
    spread = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})" if "ratio" in row else ""
    return {"change": row["name"], "time of a step": spread, "kept": "yes" if row["kept"] else "no", "why": row["why"]}


def written(request: Request, folder: Path, overlay: dict[str, Any], rows: list["Row"], args: Sequence[str]) -> None:
    """Print and draw what was found, and write the overlay if it is one."""
    table = Table(*line({"name": "", "kept": False, "why": ""}), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(Text, line(row).values()))
    console().print(table)
    conditions_text = conditions(request)
    write_json(folder / "tune.json", {"conditions": conditions_text, "overlay": overlay, "tried": rows})
    draw(rows, request.experiment, folder / "tune.png")
    file = folder / "tuned.yaml"
    file.unlink(missing_ok=True)
    if not overlay:
        rank_zero_print(
            f"The config is as fast as it gets here; no overlay is written. {relative_path(folder)}/tune.png"
        )
        return
    check(merge(copy.deepcopy(request.config), overlay), {})
    write_text(file, head(conditions_text, rows, args) + yaml.safe_dump(overlay, sort_keys=False))
    given = [part for path in request.options.config or [] for part in ("--config", path)]
    rank_zero_print(
        f"Written: {relative_path(file)}, tune.json, tune.png\n\nNext:\n  "
        + command_line("src.train", [*given, "--config", relative_path(file)])
    )


def head(conditions: dict[str, Any], rows: list["Row"], args: Sequence[str]) -> str:
    where = conditions["hardware"]
    machine = f"{where['cpu']}, {where['cores']} cores{', ' + where['gpus'] if where['gpus'] else ''}"
    versions = f"Python {where['python']}, torch {conditions['torch']}, lightning {conditions['lightning']}"
    gains = [f"{row['name']}: {line(row)['time of a step'] or row['why']}" for row in rows if row["kept"]]
    lines = [command_line("src.tune", args), time.strftime("%Y-%m-%d"), machine, versions, *gains]
    return "".join(f"# {text}\n" for text in lines)


def draw(rows: list["Row"], title: str, path: Path) -> None:
    """The time of a step with each change, times that without, and the range test of rates."""
    from src.run.figures import figure, save

    timed, ranges = [row for row in rows if "ratio" in row], [row for row in rows if "rates" in row]
    fig = figure(5 + 4 * len(ranges), 1.6 + 0.35 * max(len(timed), 6))
    axes, *others = fig.subplots(1, 1 + len(ranges), squeeze=False)[0]
    for row in timed:
        axes.barh(row["name"], row["ratio"], color="C2" if row["kept"] else "C7")
        axes.plot(row["ratios"], [row["name"]] * len(row["ratios"]), ".", color="black")
    axes.axvline(1, color="black", linestyle="--")
    axes.invert_yaxis()
    axes.set(xlabel="time of a step, times that without; kept: green", title=title)
    for row, other in zip(ranges, others, strict=True):
        other.semilogx(row["rates"], row["losses"])
        other.axvline(row["config"], color="C7", label=f"config {row['config']:.2g}")
        other.axvline(row["suggested"], color="C2" if row["kept"] else "C1", label=f"suggested {row['suggested']:.2g}")
        other.set(xlabel="learning rate", ylabel="loss, smoothed")
        other.legend(fontsize=8)
    save(fig, path)


if __name__ == "__main__":
    sys.exit(main())
