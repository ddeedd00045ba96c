"""One experiment over several seeds: each is a run of its own, and one summary holds their mean and spread."""

import math
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.config.request import CommandParser, Request
from src.run.errors import ConfigError, EnvironmentFault
from src.run.files import read_json, write_json
from src.run.folder import LOGS, RunFolder, digest
from src.run.resume import latest, new_path
from src.run.terminal import console, rank_zero_print, relative_path, rows

SUFFIX = "_seeds"


def train_seeds(request: Request, parser: CommandParser, args: Sequence[str]) -> int:
    """Train with `--seeds` seeds from `seed_everything` on, one after the other; the same command goes on.

    Returns:
        The exit code of the first run that did not end well, or 0.
    """
    count, first = request.options.seeds, request.config["seed_everything"]
    if count < 1:
        raise ConfigError(f"--seeds: {count} is less than 1")
    folder = group_folder(request, count)
    rank_zero_print(f"{count} seeds: {relative_path(folder)}")
    options, flags = parser.parse_known_args(list(args))
    given = [part for path in options.config or [] for part in ("--config", path)]
    given += ["--debug"] if options.debug else []
    given += [*flags, "--wandb.group", f"{request.experiment}/{folder.name}"]
    folders = {seed: folder / f"seed-{seed}" for seed in range(first, first + count)}
    for seed, path in folders.items():
        rank_zero_print(f"\nSeed {seed}")
        code = run([*given, "--seed_everything", str(seed), "--run_dir", str(path)])
        if code:
            return code
    metrics = summarize([RunFolder(path).summary for path in folders.values()])
    write_json(folder / "summary.json", {"status": "finished", "seeds": count, "metrics": metrics})
    rank_zero_print(f"\nOver {count} seeds, mean and standard deviation (least to greatest):")
    console().print(rows({name: spread(values) for name, values in metrics.items()}))
    rank_zero_print(f"\nNext:\n  {relative_path(Path(sys.executable))} -m src.runs {relative_path(folder)}")
    return 0


def run(args: list[str]) -> int:
    """Train in a process of its own, which gets the signals that this one gets."""
    child = subprocess.Popen([sys.executable, "-m", "src.train", *args])
    before = {s: signal.signal(s, lambda number, _: child.send_signal(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = child.wait()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return code if code >= 0 else 128 - code


def group_folder(request: Request, count: int) -> Path:
    """`--run_dir`, or the newest group of the experiment if it has this config and is not complete, or a new one."""
    kind = {"seeds": count, "config_sha256": digest(request.config)}
    if request.options.run_dir:
        folder = Path(request.options.run_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise EnvironmentFault(f"{folder}: cannot be made: {e.strerror} -> name another --run_dir") from e
        if (folder / "config.yaml").exists():
            raise ConfigError(f"{folder}: one run is in it, not a group -> give another --run_dir")
    else:
        last = latest((LOGS / request.experiment).glob(f"*{SUFFIX}/seeds.json"))
        if last and read_json(last) == kind and not (last.parent / "summary.json").exists():
            return last.parent
        folder = new_path(LOGS / request.experiment, SUFFIX)
    if not (folder / "seeds.json").exists():
        write_json(folder / "seeds.json", kind)
    return folder


def summarize(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation (of a sample), least, greatest and all values of each metric."""
    out = {}
    for name in (name for name in summaries[0] if name.startswith("test/")):
        v = [summary[name] for summary in summaries]
        std = statistics.stdev(v) if len(v) > 1 and all(map(math.isfinite, v)) else None
        out[name] = {"mean": statistics.fmean(v), "std": std, "min": min(v), "max": max(v), "values": v}
    return out


def spread(measured: dict[str, Any]) -> str:
    if measured["std"] is None:
        return f"{measured['mean']:.4f}"
    return "{mean:.4f} ± {std:.4f} ({min:.4f} to {max:.4f})".format(**measured)
