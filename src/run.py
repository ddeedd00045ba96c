"""The run folder: whether it may go on, what state the code is in, and how a command ends."""

import errno
import fcntl
import hashlib
import json
import os
import platform
import select
import shlex
import signal
import socket
import subprocess
import sys
import traceback
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from src.errors import CheckpointError, ConfigError, EnvironmentFault, KnownError
from src.redact import hide, hide_in_configs, redact, secrets_in

ROOT = Path(__file__).parent.parent
LOGS = ROOT / "logs"
# Keys that may differ when a run goes on: the weights do not depend on them, on the micro-batch but for the last bits.
FREE = (
    *("wandb", "pictures", "progress", "throughput", "data.data_dir", "data.cache_dir", "data.num_workers"),
    *("data.worker_timeout_sec", "data.micro_batch_size", "data.auto_micro_batch"),
)
# What a full, read-only, forbidden or broken disk answers.
STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def rank() -> int:
    """The number of this process among those that train together, as its launcher says; 0 does what is done once."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return int(next((os.environ[name] for name in names if name in os.environ), 0))


def say(text: str) -> None:
    if rank() == 0:
        print(hide(text), flush=True)


class RunFolder:
    """`logs/<experiment>/<run>/`: config.yaml, run.json, summary.json, metrics.csv, checkpoints/, wandb/."""

    def __init__(self, path: Path, origin: str | None = None) -> None:
        self.path, self.checkpoints = path, path / "checkpoints"
        self.origin = origin or self.state.get("origin")  # of a fork: the run or checkpoint that it began with
        self.lock: Any = None

    @property
    def summary(self) -> dict[str, Any]:
        return read_json(self.path / "summary.json")

    @property
    def state(self) -> dict[str, Any]:
        return read_json(self.path / "run.json")

    def config(self) -> dict[str, Any]:
        """The resolved config of the run.

        Raises:
            CheckpointError: this is not a run folder, or its config is damaged.
        """
        file, config = self.path / "config.yaml", None
        if not file.is_file():
            raise CheckpointError(f"{self.path}: no run is here (there is no config.yaml) -> name a folder under logs/")
        with suppress(yaml.YAMLError, UnicodeDecodeError):
            config = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise CheckpointError(f"{file}: damaged -> put it back (run.json has the command), or start a new run")
        return config

    def open(self, config: dict[str, Any], command: Sequence[str]) -> None:
        """Make the folder this process's own and write down what is run.

        Raises:
            ConfigError: the folder holds a run with another config, or something else.
            EnvironmentFault: it cannot be written, or another process trains in it.
        """
        if rank() != 0:
            return
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            if not self.take_lock():
                text = f"{self.path}: another process is training there -> wait, or name another --run_dir"
                raise EnvironmentFault(text)
            if any(self.checkpoints.glob("step-*.ckpt")):  # else there is nothing yet that another config would spoil
                self.compare(config)
            for orphan in self.path.glob("*.tmp"):
                orphan.unlink()
            write_text(self.checkpoints / "probe.tmp", "")  # found now, not when the first checkpoint is due
            (self.checkpoints / "probe.tmp").unlink()
            self.write(config, command)
        except OSError as e:
            raise EnvironmentFault(f"{self.path}: cannot be written: {e.strerror} -> name another --run_dir") from e

    def write(self, config: dict[str, Any], command: Sequence[str]) -> None:
        before, code = self.state, code_state(self.path)
        if before.get("code", code)["src_sha256"] != code["src_sha256"]:
            say("The code has changed since this run began: it goes on, but not as it would have.")
        state = {"wandb_id": uuid.uuid4().hex[:8], **before, "origin": self.origin}
        state |= {"command": command, "config_sha256": digest(config), "code": code, "host": hardware()}
        write_json(self.path / "run.json", state)
        (self.path / "summary.json").unlink(missing_ok=True)
        write_text(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False))

    def take_lock(self) -> bool:
        """A lock that the kernel drops with the process, however it ends, and that workers do not inherit."""
        self.lock = open(self.path / ".lock", "a")  # noqa: SIM115
        try:
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # which of the two is the system's choice
            self.lock.close()
            return False
        return True

    def differences(self, config: dict[str, Any]) -> list[str]:
        """How a config differs from the folder's: a line for each key that matters, which begins with it."""
        before, now = flat(self.config()), flat(config)
        differ = [k for k in sorted(before | now) if before.get(k) != now.get(k) and not k.startswith(FREE)]
        return [f"{k} was {before.get(k)!r}, now {now.get(k)!r}" for k in differ]

    def compare(self, config: dict[str, Any]) -> None:
        """Raise ConfigError where the folder's config differs in a key that matters."""
        if differ := self.differences(config):
            shown = ", ".join(differ[:3]) + (f" and {len(differ) - 3} more" if len(differ) > 3 else "")
            raise ConfigError(f"{self.path}: holds a run with another config ({shown}) -> give another --run_dir")

    def close(self, summary: dict[str, Any]) -> None:
        if rank() != 0:
            return
        try:
            write_json(self.path / "summary.json", summary)
        except OSError:
            if summary["status"] == "finished":  # else there is an error already, which says more
                raise
        finally:
            self.lock.close()


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def write_text(path: Path, text: str) -> None:
    """Write a small file so that it holds the old text or the new one, never a part."""
    tmp = path.with_name(path.name + ".tmp")
    with open(tmp, "w", encoding="utf-8", newline="") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    tmp.rename(path)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write_json(path: Path, data: dict[str, Any]) -> None:
    write_text(path, json.dumps(redact(data), indent=1, default=str) + "\n")


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
    return done.stdout if done.returncode in (0, 1) else ""  # 1 is a difference


def code_state(folder: Path) -> dict[str, Any]:
    """Commit, and the difference from it as `code.diff` in the folder; the hash holds without git, too."""
    diff = git("diff", "HEAD", "--", ".")
    for file in git("ls-files", "--others", "--exclude-standard", "src", "configs").splitlines():
        diff += git("diff", "--no-index", "/dev/null", file)
    if diff:
        write_text(folder / "code.diff", hide(hide_in_configs(diff)))
    return {"commit": git("rev-parse", "HEAD").strip() or None, "changed": bool(diff), "src_sha256": src_sha256()}


def hardware() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpu = {"machine": platform.machine(), "cores": os.cpu_count(), "memory_gib": round(memory, 1)}
    return {"host": socket.gethostname(), "python": platform.python_version(), "system": platform.platform(), **cpu}


# How a command ends


def command(main: Callable[[Sequence[str]], int]) -> Callable[..., int]:
    """A decorator: what the function is given are the arguments on the command line, what it gives is the exit code."""
    return partial(run_command, main)


def run_command(main: Callable[[Sequence[str]], int], args: Sequence[str] | None = None) -> int:
    """Run a command and give its exit code: known errors are one line, unknown ones a traceback."""
    args, pid = sys.argv[1:] if args is None else args, os.getpid()

    def end(signum: int, frame: Any) -> None:
        # Not in workers, which get the terminal's signals, too: they end with their parent.
        if os.getpid() == pid:
            raise SystemExit(128 + signum)

    before = {signum: signal.signal(signum, end) for signum in (signal.SIGINT, signal.SIGTERM)}
    before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, lambda *_: None)  # there is nothing to save yet
    try:
        return main(args)
    except (Exception, SystemExit) as e:
        if nobody_reads(e):
            return 128 + signal.SIGPIPE
        code = exit_code(e)
        if "--debug" in args or code == 1:
            print(hide(traceback.format_exc(), secrets_in(args)), file=sys.stderr)
        if code and isinstance(e, (KnownError, OSError, SystemExit)):
            print(f"error: {hide(one_line(e, code), secrets_in(args))}", file=sys.stderr, flush=True)
        return code
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def nobody_reads(e: BaseException) -> bool:
    """Whether it says that the reader of standard output, such as `head`, has left; then nothing more goes there."""
    if isinstance(e, BrokenPipeError):
        (poll := select.poll()).register(sys.stdout, 0)
        if poll.poll(0):  # else another pipe broke
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return True
    return isinstance(e, SystemExit) and e.code == 1 and isinstance(e.__context__, BrokenPipeError)  # from rich


def exit_code(e: BaseException) -> int:
    if isinstance(e, OSError):
        return EnvironmentFault.code if e.errno in STORAGE else 1
    code = e.code if isinstance(e, (KnownError, SystemExit)) else 1
    return code if isinstance(code, int) else 0 if code is None else 1


def one_line(e: BaseException, code: int) -> str:
    if isinstance(e, SystemExit):
        return f"ended at once by {signal.Signals(code - 128).name} -> same command again" if code > 128 else str(e)
    if isinstance(e, OSError):
        return f"{e.filename or 'writing a file'}: {e.strerror} -> mend that, then give the same command again"
    return str(e)


def command_line(module: str, args: Sequence[str]) -> str:
    return shlex.join(["python", "-m", module, *(hide(arg, secrets_in(args)) for arg in args)])
