"""Which folder a run takes, and where in training it begins: afresh, where it was cut short, or where another was."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

from src.run import checkpoint
from src.run import folder as run
from src.run.errors import CheckpointError, ConfigError, EnvironmentFault
from src.run.files import write_text
from src.run.folder import KEPT, RunFolder, lock, src_sha256
from src.run.launch import meet
from src.run.private import cluster_environment
from src.run.terminal import rank, rank_zero_print, relative_path

TRY_AGAIN = (75, 130, 143)  # exit codes of runs that the same command continues


def choose(run_dir: str | None, resume: str, experiment: str, config: dict[str, Any]) -> RunFolder:
    """The folder that is named, or the last one of this experiment if it was cut short, or a new one.

    Args:
        resume: `auto`, `none`, or the run folder or checkpoint that a new run begins with.
    """
    origin = None if resume in ("auto", "none") else str(Path(resume).absolute())
    if run_dir:
        folder = RunFolder(Path(run_dir), origin)
        if rank() == 0 and not folder.state:
            check_origin(origin, config)
        elif rank() == 0 and (resume == "none" or folder.origin != folder.state.get("origin")):
            text = f"--resume {resume}: {run_dir} holds a run already -> leave --resume out, or give another --run_dir"
            raise ConfigError(text)
        return folder
    if "RUN_DIR_OF_ALL_PROCESSES" in os.environ:  # set below, for processes of further devices
        return RunFolder(Path(os.environ["RUN_DIR_OF_ALL_PROCESSES"]))
    slurm = os.environ.get("SLURM_NTASKS", "1") if SLURMEnvironment.detect() else "1"
    if max(int(os.environ.get("WORLD_SIZE", "1")), int(slurm)) > 1:
        raise ConfigError("several processes were started: they must agree on a folder -> give --run_dir")
    found = None if resume == "none" else cut_short(run.LOGS / experiment, config, origin)
    if found is None:
        check_origin(origin, config)
        found = RunFolder(new_path(run.LOGS / experiment), origin)
    os.environ["RUN_DIR_OF_ALL_PROCESSES"] = str(found.path)
    return found


def check_origin(origin: str | None, config: dict[str, Any]) -> None:
    """Refuse a checkpoint to begin with that cannot be loaded, and say how the config differs from its own."""
    if origin is None:
        return
    file = checkpoint_at(Path(origin))
    checkpoint.load(file, filled=False)
    before = RunFolder(file.parent.parent)
    differ = before.differences(config) if before.state else []
    for words in differ:
        if words.startswith(KEPT):
            raise ConfigError(f"--resume: {words}, but both go on as they were -> leave it, or set model.init_from")
    if differ:
        rank_zero_print(f"Not as in {relative_path(before.path)}: {', '.join(differ)}")


def checkpoint_at(path: Path) -> Path:
    """The checkpoint that --resume names; of a run folder, the last."""
    if path.is_dir() and not (path / "checkpoints").is_dir():
        raise CheckpointError(f"{path}: neither a run folder nor a checkpoint file (other folders are never read)")
    file = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    if not file.exists():
        raise CheckpointError(f"{file}: there is no such checkpoint -> name a run folder or a checkpoint")
    while file.is_symlink():  # only the link itself: the folder of checkpoints may be one, to another disk
        file = file.parent / file.readlink()
    return file


def cut_short(parent: Path, config: dict[str, Any], origin: str | None) -> RunFolder | None:
    """The run begun last, if it has this config (but for free keys), code and origin, and was cut short."""
    states = sorted(parent.glob("*/run.json"), key=lambda file: file.stat().st_mtime_ns)
    folder = RunFolder(states[-1].parent) if states else None
    if folder is None or folder.summary.get("exit_code", 75) not in TRY_AGAIN:
        return None
    try:
        if origin not in (None, folder.origin) or folder.differences(config):
            return None
    except CheckpointError:  # its config is damaged
        return None
    same = folder.state.get("code", {}).get("src_sha256") == src_sha256()
    return folder if same and lock(folder.lock_file(0)) else None


def new_path(parent: Path) -> Path:
    """A folder named by the time, made here, so that two commands given at once get two."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:  # such as a link that leads nowhere
        raise EnvironmentFault(f"{parent}: cannot be made: {e.strerror} -> give --run_dir") from e
    while True:
        path = parent / time.strftime("%Y-%m-%d_%H-%M-%S")
        with suppress(FileExistsError):
            path.mkdir()
            return path
        time.sleep(0.1)


def begin(trainer: Trainer, folder: RunFolder) -> Path | None:
    """The checkpoint that training begins with, the same in all processes, or None."""
    start = find_start(folder) if rank() == 0 else None
    if trainer.world_size > 1 and not isinstance(cluster_environment(trainer), LightningEnvironment):
        meet(trainer)
        start = trainer.strategy.broadcast(start)
    elif rank() != 0:  # Lightning started this one later: the first process has made it the last one, or removed that
        last = folder.checkpoints / "last.ckpt"
        start = last.resolve() if last.exists() else None
    if rank() != 0:
        folder.lock = lock(folder.lock_file(rank()))
    folder.first_step = checkpoint.read_manifest(start)["global_step"] if start else 0
    return start


def find_start(folder: RunFolder) -> Path | None:
    """The newest checkpoint that is whole, or that of the run's origin; says which, and which are damaged."""
    start, refused = checkpoint.newest(folder.checkpoints)
    for line in refused:
        rank_zero_print(f"Not used: {line}")
    words = "going on" if start else "starting from scratch"
    if start is None and folder.origin:
        start = fork(checkpoint_at(Path(folder.origin)), folder)
        words = f"forked from {relative_path(Path(folder.origin))}, going on"
    steps = f" after {checkpoint.read_manifest(start)['global_step']} steps" if start else ""
    rank_zero_print(f"Run: {relative_path(folder.path)}, {words}{steps}")
    return start


def fork(file: Path, folder: RunFolder) -> Path:
    """Make a checkpoint, the best one up to it, and the metrics until then this folder's own.

    The best comes last: until it is there the other one is not taken, so that a fork that is cut short begins anew.
    """
    saved, before = checkpoint.load(file, filled=False), RunFolder(file.parent.parent)
    path = folder.checkpoints / f"step-{saved['global_step']:08d}.ckpt"
    best = file.with_name(saved["best"] or path.name)
    apart = best.name != path.name
    if apart and not best.exists():
        rank_zero_print(f"Its best checkpoint {best.name} is not beside it: the best of what follows will be taken.")
        saved["best"], apart = path.name, False
    if before.state:
        write_text(folder.path / "metrics.csv", (before.path / "metrics.csv").read_text())
    checkpoint.copy(file, path, checkpoint.position_of(saved))
    if apart:
        best_saved = checkpoint.load(best, filled=False)
        checkpoint.copy(best, path.with_name(best.name), checkpoint.position_of(best_saved))
    checkpoint.point_to(path)
    return path
