"""The run folder: which one, whether it may go on, what state the code is in, and how a command ends."""

import fcntl
import hashlib
import json
import os
import platform
import shlex
import signal
import socket
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from src.errors import CheckpointError, ConfigError, EnvironmentFault, LeydenError

ROOT = Path(__file__).parent.parent
# Keys that may differ when a run goes on, because the weights do not depend on them.
FREE = ("wandb", "progress", "throughput", "data.data_dir", "data.cache_dir", "data.num_workers")
TRY_AGAIN = (75, 130, 143)  # exit codes of runs that the same command continues


def say(text: str) -> None:
    print(text, flush=True)


class RunFolder:
    """`logs/<experiment>/<run>/`: config.yaml, run.json, summary.json, metrics.csv, checkpoints/, wandb/."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock: Any = None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def summary(self) -> dict[str, Any]:
        return read_json(self.path / "summary.json")

    @property
    def state(self) -> dict[str, Any]:
        return read_json(self.path / "run.json")

    @property
    def finished(self) -> bool:
        return self.summary.get("status") == "finished"

    def config(self) -> dict[str, Any]:
        """The resolved config of the run.

        Raises:
            CheckpointError: this is not a run folder.
        """
        file = self.path / "config.yaml"
        if not file.is_file():
            raise CheckpointError(f"{self.path}: no run is here (there is no config.yaml) -> name a folder under logs/")
        return yaml.safe_load(file.read_text())

    def open(self, config: dict[str, Any], command: Sequence[str]) -> None:
        """Make the folder this process's own and write down what is run.

        Raises:
            ConfigError: the folder holds a run with another config, or something else.
            EnvironmentFault: it cannot be written, or another process trains in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.checkpoints.mkdir(exist_ok=True)
            if not self.take_lock():
                raise EnvironmentFault(f"{self.path}: another process is training there -> wait, or give another --run_dir")
        except OSError as e:
            raise EnvironmentFault(f"{self.path}: cannot be written: {e.strerror} -> give another --run_dir") from None
        if (self.path / "config.yaml").exists():
            self.compare(config)
        state = {"wandb_id": uuid.uuid4().hex[:8], **self.state}
        state |= {"command": command, "config_sha256": digest(config), "code": code_state(self.path), "host": hardware()}
        write_json(self.path / "run.json", state)
        (self.path / "summary.json").unlink(missing_ok=True)
        write_text(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False))

    def take_lock(self) -> bool:
        """A lock that the kernel drops with the process, however it ends, and that workers do not inherit."""
        self.lock = open(self.path / ".lock", "a")  # noqa: SIM115
        try:
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.lock.close()
            return False
        return True

    def compare(self, config: dict[str, Any]) -> None:
        """Raise ConfigError where the folder's config differs in a key that matters."""
        before, now = flat(self.config()), flat(config)
        differ = [k for k in sorted(before | now) if before.get(k) != now.get(k) and not k.startswith(FREE)]
        if differ:
            shown = ", ".join(f"{k} was {before.get(k)!r}, now {now.get(k)!r}" for k in differ[:3])
            more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
            raise ConfigError(f"{self.path}: holds a run with another config ({shown}{more}) -> give another --run_dir")

    def close(self, summary: dict[str, Any]) -> None:
        write_json(self.path / "summary.json", summary)
        self.lock.close()


def choose(run_dir: str | None, experiment: str, config: dict[str, Any]) -> RunFolder:
    """The folder that is named, or the last one of this experiment if it was cut short, or a new one."""
    if run_dir:
        return RunFolder(Path(run_dir))
    if "LEYDEN_RUN_DIR" in os.environ:  # set below for the processes that Lightning starts for further devices
        return RunFolder(Path(os.environ["LEYDEN_RUN_DIR"]))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("several processes were started: they must agree on a folder -> give --run_dir")
    folder = cut_short(ROOT / "logs" / experiment, config) or RunFolder(new_path(ROOT / "logs" / experiment))
    os.environ["LEYDEN_RUN_DIR"] = str(folder.path)
    return folder


def new_path(parent: Path) -> Path:
    name = time.strftime("%Y-%m-%d_%H-%M-%S")
    taken = [p.name for p in parent.glob(f"{name}*")]
    return parent / (f"{name}_{len(taken) + 1}" if taken else name)


def cut_short(parent: Path, config: dict[str, Any]) -> RunFolder | None:
    """The newest run, if it has this config and this code, did not end, and no process is at it."""
    runs = sorted((p.parent for p in parent.glob("*/run.json")), key=lambda p: p.name)
    folder = RunFolder(runs[-1]) if runs else None
    if folder is None or folder.summary.get("exit_code", 75) not in TRY_AGAIN:
        return None
    same = folder.state.get("config_sha256") == digest(config)
    if not same or folder.state.get("code", {}).get("src_sha256") != src_sha256() or not folder.take_lock():
        return None
    folder.lock.close()
    return folder


# Small things


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def write_text(path: Path, text: str) -> None:
    tmp = path.with_name(path.name + ".tmp")
    tmp.write_text(text)
    tmp.rename(path)


def write_json(path: Path, data: dict[str, Any]) -> None:
    write_text(path, json.dumps(data, indent=1, default=str) + "\n")


def flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys as users write them."""
    if not isinstance(data, dict) or not data:
        return {prefix: data}
    out: dict[str, Any] = {}
    for key, value in data.items():
        inner = prefix if key in ("init_args", "dict_kwargs") else f"{prefix}.{key}".lstrip(".")
        out |= flat(value, inner)
    return out


def digest(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def src_sha256() -> str:
    files = sorted((ROOT / "src").rglob("*.py"))
    return hashlib.sha256(b"".join(str(f.relative_to(ROOT)).encode() + f.read_bytes() for f in files)).hexdigest()


def git(*args: str) -> str:
    try:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def code_state(folder: Path) -> dict[str, Any]:
    """Commit, and the difference from it as `code.diff` in the folder; the hash holds without git, too."""
    diff = git("diff", "HEAD", "--", ".")
    if diff:
        write_text(folder / "code.diff", diff)
    return {"commit": git("rev-parse", "HEAD").strip() or None, "changed": bool(diff), "src_sha256": src_sha256()}


def hardware() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpu = {"machine": platform.machine(), "cores": os.cpu_count(), "memory_gib": round(memory, 1)}
    return {"host": socket.gethostname(), "python": platform.python_version(), "system": platform.platform(), **cpu}


# How a command ends


def run_command(command: Callable[[Sequence[str]], int], args: Sequence[str] | None, debug: bool = False) -> int:
    """Run a command and give its exit code: known errors are one line, unknown ones a traceback."""
    args = sys.argv[1:] if args is None else args
    try:
        return command(args)
    except LeydenError as e:
        if debug or "--debug" in args:
            traceback.print_exc()
        print(f"error: {e}", file=sys.stderr, flush=True)
        return e.code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr, flush=True)
        return 128 + signal.SIGINT


def command_line(module: str, args: Sequence[str]) -> str:
    return shlex.join(["python", "-m", module, *args])
