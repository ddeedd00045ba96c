"""One experiment over several seeds: each is a run of its own, and one summary holds their mean and spread."""

import argparse
import math
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.run import folder as run
from src.run.errors import ConfigError, EnvironmentFault
from src.run.files import latest, new_path, read_json, write_json
from src.run.folder import RunFolder, digest
from src.run.terminal import console, rank_zero_print, relative_path, rows

SUFFIX = "_seeds"


def train_seeds(count: int, experiment: str, config: dict[str, Any], args: Sequence[str]) -> int:
    """Train with `count` seeds from `seed_everything` on, one after the other; the same command goes on.

    Args:
        args: the command line.

    Returns:
        The exit code of the first run that did not end well, or 0.
    """
    if count < 1:
        raise ConfigError(f"--seeds: {count} is less than 1")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--seeds")
    parser.add_argument("--run_dir")
    options, given = parser.parse_known_args(list(args))
    folder = group_folder(options.run_dir, experiment, {"seeds": count, "config_sha256": digest(config)})
    rank_zero_print(f"{count} seeds: {relative_path(folder)}")
    first = config["seed_everything"]
    folders = {seed: folder / f"seed-{seed}" for seed in range(first, first + count)}
    for seed, path in folders.items():
        rank_zero_print(f"\nSeed {seed}")
        group = ["--wandb.group", f"{experiment}/{folder.name}"]
        if code := train([*given, *group, "--seed_everything", str(seed), "--run_dir", str(path)]):
            if [file.name for file in folder.iterdir()] == ["seeds.json"]:  # the first was refused, and left nothing
                (folder / "seeds.json").unlink()
                folder.rmdir()
            return code
    metrics = summarize([RunFolder(path).summary for path in folders.values()])
    write_json(folder / "summary.json", {"status": "finished", "seeds": count, "metrics": metrics})
    rank_zero_print(f"\nOver {count} seeds, mean and standard deviation (least to greatest):")
    console().print(rows({name: spread(values) for name, values in metrics.items()}))
    rank_zero_print(f"\nNext:\n  {relative_path(Path(sys.executable))} -m src.runs {relative_path(folder)}")
    return 0


def train(args: list[str]) -> int:
    """Train in a process of its own, which gets the signals that this one gets."""
    child = subprocess.Popen([sys.executable, "-m", "src.train", *args])
    before = {s: signal.signal(s, lambda number, _: child.send_signal(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = child.wait()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return code if code >= 0 else 128 - code


def group_folder(run_dir: str | None, experiment: str, kind: dict[str, Any]) -> Path:
    """`--run_dir`, or the newest group of the experiment if it has this config and is not complete, or a new one."""
    if run_dir:
        folder = Path(run_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise EnvironmentFault(f"{folder}: cannot be made: {e.strerror} -> name another --run_dir") from e
        if (folder / "config.yaml").exists():
            raise ConfigError(f"{folder}: one run is in it, not a group -> give another --run_dir")
    else:
        last = latest((run.LOGS / experiment).glob(f"*{SUFFIX}/seeds.json"))
        if last and read_json(last) == kind and not (last.parent / "summary.json").exists():
            return last.parent
        folder = new_path(run.LOGS / experiment, SUFFIX)
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
