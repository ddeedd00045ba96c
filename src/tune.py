"""Find the settings with which this experiment trains fastest on this machine, by measuring; suggest a learning rate.

    python -m src.tune --config configs/experiment/text_gpt.yaml
    python -m src.tune --config configs/experiment/text_gpt.yaml --minutes 3 --only precision,threads

Real steps of the config as it is and of a change are measured in turn, in processes of their own: threads, precision,
fused optimizer, micro-batch, workers, compile. What is faster beyond noise is kept if short trainings of the same seeds
end at most 1 % higher than those of the config; the next is tried on top. A range test suggests a learning rate, which
is not taken: src.sweep compares whole runs. Results are in logs/<experiment>/tune/, or
--run_dir: table, picture, overlay. The same command goes on where it was stopped; with another config, data, machine or
code it begins anew. What a flag sets stays. Nothing else is written: no run, no W&B. The exit code is 0 also where
nothing is faster.
"""

import copy
import hashlib
import shutil
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from src.config.check import check
from src.config.request import CommandParser, Request, command_parser, merge, positive, read_request, with_defaults
from src.run.command import command, command_line
from src.run.errors import ConfigError, EnvironmentFault, KnownError, nearest
from src.run.files import write_json, write_text
from src.run.folder import LOGS, hardware, lock, src_sha256
from src.run.terminal import console, print_table, rank_zero_print, relative_path

WHAT = ("threads", "precision", "fused", "micro_batch_size", "num_workers", "compile", "lr")
Row = dict[str, Any]


def tune_parser() -> CommandParser:
    parser = command_parser("tune", __doc__)
    parser.add_argument("--minutes", type=positive, default=10.0, metavar="M", help="about as long as it may take: 10")
    parser.add_argument("--only", default=",".join(WHAT), metavar="A,B", help=f"what to try, of {', '.join(WHAT)}")
    return parser


@command
def main(args: Sequence[str]) -> int:
    request = read_request(tune_parser(), args)
    options = request.options
    options.only = [name.strip() for name in options.only.split(",")]
    for name in set(options.only) - {*WHAT}:
        raise ConfigError(f"--only: {name} is none of {', '.join(WHAT)}{nearest(name, WHAT)}")
    if options.print_config:
        from src.config.build import Experiment  # loads torch, which takes seconds

        Experiment(request)
    folder = Path(options.run_dir or LOGS / request.experiment / "tune")
    if (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder}: a run is there -> name another --run_dir")
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        locked = lock(folder / ".lock")
    except OSError as e:
        raise EnvironmentFault(f"{folder}: cannot be written: {e.strerror} -> name another --run_dir") from e
    if locked is None:
        raise ConfigError(f"{folder}: another tune is at work there -> wait for it, or name another --run_dir")
    with locked:
        config = yaml.safe_dump(with_defaults(request.config))
        holds = {"config": hashlib.sha256(config.encode()).hexdigest(), "code": src_sha256(), **hardware()}
        holds |= {name: version(name) for name in ("torch", "lightning")}
        try:
            search(request, folder, holds, args)
        except KnownError:
            if is_new and not (folder / "trials.jsonl").is_file():  # it was refused before anything was measured
                shutil.rmtree(folder)
            raise
    return 0


def search(request: Request, folder: Path, holds: Row, args: Sequence[str]) -> None:
    from src.tuning.candidates import candidates
    from src.tuning.choose import choose
    from src.tuning.search import Search

    options, out, rows = request.options, console(), list[Row]()
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn(), console=out,
        auto_refresh=False, expand=True, disable=not out.is_terminal, transient=True,
    )  # fmt: skip
    task = bar.add_task("the config as it is", total=None)

    def tell(row: Row) -> None:
        rows.append(row)
        bar.update(task, advance=1, description=row["name"])
        if not out.is_terminal:
            out.print("  ".join(line(row)))

    with bar, Search(request, folder, holds, 60 * options.minutes, bar.refresh) as found:
        found.begin()
        if found.journal.is_other:
            out.print("Config, data, code, machine or versions are not those of the tune before: it begins anew.")
        changes = [one for one in candidates(request, found.facts) if one[0].rpartition(".")[2] in options.only]
        with_rate = "lr" in options.only
        bar.update(task, total=len(changes) + 1 + with_rate)
        what = f"{found.facts['steps']:,} steps of {1000 * found.facts['step_sec']:.3g} ms, {found.facts['text']}"
        out.print(f"{what}; {len(changes)} changes to try, in {options.minutes:g} min or less")
        overlay = choose(found, changes, with_rate, tell)
    print_table(["change", "time of a step", "kept", "why"], map(line, rows))
    draw(rows, f"{request.experiment}, {found.facts['text']}", folder / "tune.png")
    write_json(folder / "tune.json", {**found.holds, "device": found.facts["text"], "overlay": overlay, "tried": rows})
    head = [command_line("src.tune", args), f"{time.strftime('%Y-%m-%d')}, {holds['host']}, {found.facts['text']}"]
    head += [f"Python {holds['python']}, torch {holds['torch']}, lightning {holds['lightning']}"]
    head += [", ".join(line(row)) for row in rows if row["kept"]]
    write(request, folder / "tuned.yaml", overlay, head, args)


def line(row: Row) -> list[str]:
    spread = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})" if "ratio" in row else "-"
    return [row["name"], spread, "yes" if row["kept"] else "no", row["why"]]


def write(request: Request, file: Path, overlay: Row, head: list[str], args: Sequence[str]) -> None:
    """The overlay, if there is one: checked as a run would. Another that was there stays beside it."""
    text = "".join(f"# {line}\n" for line in head) + yaml.safe_dump(overlay, sort_keys=False)
    if file.is_file() and yaml.safe_load(old := file.read_text()) != overlay:
        write_text(file.with_name("tuned_before.yaml"), old)
        rank_zero_print(f"tuned.yaml of before is now tuned_before.yaml: {old.splitlines()[0].lstrip('# ')}")
    if not overlay:
        file.unlink(missing_ok=True)
        rank_zero_print("No overlay is written: nothing is kept.")
        return
    check(merge(copy.deepcopy(request.config), overlay), {})
    write_text(file, text)
    files = [part for path in (*request.options.config, relative_path(file)) for part in ("--config", path)]
    rank_zero_print(f"\nNext:\n  {command_line('src.train', [*files, *tune_parser().parse_known_args(args)[1]])}")


def draw(rows: list[Row], title: str, path: Path) -> None:
    """The time of a step with each change, over that without, and the range test of rates."""
    from src.run.figures import figure, save

    timed, ranges = [row for row in rows if "ratio" in row], [row for row in rows if row.get("rates")]
    fig = figure(6 + 4 * len(ranges), 1.6 + 0.35 * max(len(timed), 6))
    axes, *others = fig.subplots(1, 1 + len(ranges), squeeze=False)[0]
    for row in timed:
        axes.barh(row["name"], row["ratio"], color="C2" if row["kept"] else "C7")
        axes.plot(row["ratios"], [row["name"]] * len(row["ratios"]), ".", color="black")
    axes.axvline(1, color="black", linestyle="--")
    axes.set_xlim(0, 2)  # what is slower still need not be seen
    axes.invert_yaxis()
    axes.set(xlabel="time of a step, times that without it; green: kept", title=title)
    for row, other in zip(ranges, others, strict=True):
        other.semilogx(row["rates"], row["losses"])
        for name in [name for name in ("config", "suggested") if name in row]:
            other.axvline(row[name], color="black", linestyle=":" if name == "config" else "--", label=name)
        other.set(xlabel="learning rate", ylabel="loss, smoothed", title="range test")
        other.legend(fontsize=8)
    save(fig, path)


if __name__ == "__main__":
    sys.exit(main())
