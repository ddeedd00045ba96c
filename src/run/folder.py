"""The run folder: whether it may go on, how it ended, and what state the code is in."""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import uuid
from contextlib import suppress
from inspect import signature
from pathlib import Path
from pydoc import locate
from typing import Any, TextIO

import yaml

from src.run.errors import CheckpointError, ConfigError, EnvironmentFault
from src.run.files import ROOT, read_json, write_json, write_text
from src.run.redact import hide
from src.run.terminal import rank, rank_zero_print, relative_path

LOGS = ROOT / "logs"
FASTEST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times, where PyYAML was built with it
# Keys that may differ when a run goes on: the weights do not depend on them, on the micro-batch and on the levers of a
# model that does not fit but for the last bits, and for dropout's numbers where blocks are compiled.
FREE: tuple[str, ...] = ("wandb", "pictures", "progress", "throughput", "threads", "trainer.logger")
FREE += ("data.num_workers", "data.worker_timeout_sec", "data.on_device", "data.micro_batch_size")
FREE += ("model.activation_checkpointing", "model.compile", "model.loss_chunks")
# A batch is the same on other devices: so are the weights, but for last bits, numbers of dropout, and batch norms.
LAYOUT = ("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy")
FREE += LAYOUT
# A fork goes on with the state of its optimizer and schedule, so these would not do what they say.
KEPT = ("model.optimizer", "model.schedule")


class Dumper(yaml.SafeDumper):
    """Puts quotes on text that src/config/strict_yaml.py would read as a number, such as 12e5."""


Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9_]*\.?[0-9_]*[eE][-+]?[0-9]+$"), None)


class RunFolder:
    """`logs/<experiment>/<run>/`: config.yaml, run.json, summary.json, metrics.csv, checkpoints/, wandb/."""

    def __init__(self, path: Path, origin: str | None = None) -> None:
        self.path, self.checkpoints = path, path / "checkpoints"
        self.origin = origin or self.state.get("origin")  # of a fork: the run or checkpoint that it began with
        self.lock: TextIO | None = None
        self.existed = self.was_empty = False
        self.first_step = 0  # at which this process begins to train

    @property
    def summary(self) -> dict[str, Any]:
        return read_json(self.path / "summary.json")

    @property
    def state(self) -> dict[str, Any]:
        return read_json(self.path / "run.json")

    def config(self) -> dict[str, Any]:
        """The resolved config of the run; raises CheckpointError where there is none, or a damaged one."""
        file, config = self.path / "config.yaml", None
        if not file.is_file():
            raise CheckpointError(f"{self.path}: no run is here (there is no config.yaml) -> name a folder under logs/")
        with suppress(yaml.YAMLError, UnicodeDecodeError):
            config = yaml.load(file.read_text(encoding="utf-8"), FASTEST)
        if not isinstance(config, dict):
            raise CheckpointError(f"{file}: damaged -> put it back (run.json has the command), or start a new run")
        return config

    def open(self, config: dict[str, Any], command: str) -> None:
        """Make the folder this process's own and write down what is run."""
        if rank() != 0:
            return
        try:
            self.existed = self.path.exists() and not self.path.is_relative_to(LOGS)
            self.was_empty = not self.path.exists() or not any(self.path.iterdir())
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.lock = lock(self.lock_file(rank()))
            if self.lock is None:
                raise EnvironmentFault(
                    f"{self.path}: another process is training there -> wait, or name another --run_dir"
                )
            self.lock.truncate(0)  # it may hold how an earlier life ended
            if any(self.checkpoints.glob("step-*.ckpt")):  # else there is nothing yet that another config would spoil
                self.compare(config)
                if moved := self.differences(config, of_layout=True):
                    rank_zero_print(f"Other devices than before: {', '.join(moved)}")
            for orphan in (*self.path.glob("*.tmp"), *self.path.glob(".lock?*")):
                orphan.unlink()
            write_text(self.checkpoints / "probe.tmp", "")  # found now, not when the first checkpoint is due
            (self.checkpoints / "probe.tmp").unlink()
            self.write(config, command)
        except OSError as e:
            self.discard()
            raise EnvironmentFault(f"{self.path}: cannot be written: {e.strerror} -> name another --run_dir") from e

    def write(self, config: dict[str, Any], command: str) -> None:
        before, code = self.state, code_state(self.path)
        if before.get("code", code)["src_sha256"] != code["src_sha256"]:
            rank_zero_print("The code has changed since this run began: it goes on, but not as it would have.")
        wandb_id = os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8]  # of W&B's agent, if it has started this
        state = {"wandb_id": wandb_id, **before, "origin": self.origin}
        write_text(self.path / "config.yaml", yaml.dump(config, Dumper=Dumper, sort_keys=False))
        write_json(self.path / "run.json", state | {"command": command, "code": code, "hardware": hardware()})
        (self.path / "summary.json").unlink(missing_ok=True)

    def lock_file(self, rank: int) -> Path:
        return self.path / (f".lock{rank}" if rank else ".lock")

    def ended(self, world_size: int) -> dict[int, int | None]:
        """The other processes of this run that have ended: rank -> exit code, None of one that was killed."""
        others = {n: self.lock_file(n) for n in range(world_size) if n != rank()}
        locks = {n: lock(file) for n, file in others.items() if file.exists()}
        codes = {n: others[n].read_text() for n, free in locks.items() if free}
        return {n: int(code) if code else None for n, code in codes.items()}

    def differences(self, config: dict[str, Any], of_layout: bool = False) -> list[str]:
        """How a config differs from the folder's: a line for each key that matters, or says where the run is, which
        begins with it."""
        before, now = flat(grown(self.config(), config)), flat(config)
        asked = [k for k in sorted(before | now) if (k.startswith(LAYOUT) if of_layout else not is_free(k))]
        return [f"{k} was {before.get(k)!r}, now {now.get(k)!r}" for k in asked if before.get(k) != now.get(k)]

    def compare(self, config: dict[str, Any]) -> None:
        """Raise ConfigError where the folder's config differs in a key that matters."""
        if differ := self.differences(config):
            shown = ", ".join(differ[:3]) + (f" and {len(differ) - 3} more" if len(differ) > 3 else "")
            path, other = (relative_path(p) for p in (self.path, self.path.with_name(f"{self.path.name}_2")))
            fits = not any(line.startswith(("model.class_path", "model.network", *KEPT)) for line in differ)
            how = f"; to train on from this run: the same command with --resume {path} --run_dir {other}"
            text = f"{self.path}: holds a run with another config ({shown}) -> give another --run_dir"
            raise ConfigError(text + (how if fits else ""))

    def close(self, summary: dict[str, Any]) -> None:
        """Write down how the run ended, other processes than the first only for those that wait for them."""
        try:
            if rank() == 0:
                write_json(self.path / "summary.json", summary)
        except OSError:
            if summary["status"] == "finished":  # else there is an error already, which says more
                raise
        finally:
            if self.lock:
                with suppress(OSError), self.lock:
                    print(summary["exit_code"], file=self.lock)

    def discard(self) -> None:
        """Leave nothing of a start that was refused; a folder that held something before stays."""
        if self.was_empty:
            shutil.rmtree(self.path, ignore_errors=True)
            if self.existed:
                self.path.mkdir()
            if self.path.is_relative_to(LOGS):
                with suppress(OSError):
                    self.path.parent.rmdir()  # the experiment's, where this was its first run


def lock(file: Path) -> TextIO | None:
    """A lock that the kernel drops with the process, however it ends, and that workers do not inherit."""
    opened = open(file, "a")  # noqa: SIM115
    try:
        fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # which of the two is the system's choice
        opened.close()
        return None
    return opened


def grown(before: Any, now: Any) -> Any:
    """A config that was written by earlier code, with the arguments that its classes have got since, by default."""
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return [*map(grown, before, now)]
    if not isinstance(before, dict) or not isinstance(now, dict):
        return before
    whole = {key: grown(value, now.get(key)) for key, value in before.items()}
    path, new = now.get("class_path"), {*(now.get("init_args") or ())} - {*(before.get("init_args") or ())}
    if new and path == before.get("class_path", 0) and (known := {k: v for k, v in defaults(path).items() if k in new}):
        whole["init_args"] = known | (whole.get("init_args") or {})
    return whole


def defaults(class_path: str) -> dict[str, Any]:
    """Of the arguments of a class and its bases, or of a function, as a config would hold them."""
    made, found = locate(class_path), dict[str, Any]()
    for maker in [base.__init__ for base in reversed(getattr(made, "__mro__", ()))] or [made]:
        with suppress(TypeError, ValueError):  # of what is not written in Python
            found |= {n: p.default for n, p in signature(maker).parameters.items() if p.default is not p.empty}
    return {name: [*value] if isinstance(value, tuple) else value for name, value in found.items()}


def is_free(key: str) -> bool:
    """Whether a key may differ when a run goes on; what is in the folders of data is compared instead of their path."""
    return key.startswith(FREE) or (key.startswith("data.") and key.endswith("_dir"))


def flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys as users write them."""
    if not isinstance(data, dict) or not data:
        return {prefix: data}
    out: dict[str, Any] = {}
    for key, value in data.items():
        inner = prefix if key in ("init_args", "dict_kwargs") else f"{prefix}.{key}".lstrip(".")
        out |= flat(value, inner)
    return out


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
    """Commit, and the difference from it as `code.diff` in the folder; the hash holds without git, too.

    Configs are left out, because they may hold secrets, and the folder has the whole config of the run.
    """
    no_configs = (":!*.yaml", ":!*.yml")
    diff = git("diff", "HEAD", "--", ".", *no_configs)
    for file in git("ls-files", "--others", "--exclude-standard", "--", "src", *no_configs).splitlines():
        diff += git("diff", "--no-index", "/dev/null", file)
    if diff:
        write_text(folder / "code.diff", hide(diff))
    return {"commit": git("rev-parse", "HEAD").strip() or None, "changed": bool(diff), "src_sha256": src_sha256()}


def hardware() -> dict[str, Any]:
    memory_gib = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    system = {"host": platform.node(), "python": platform.python_version(), "system": platform.platform()}
    return {**system, "cores": os.cpu_count(), "memory_gib": memory_gib}


def ending(folder: RunFolder) -> dict[str, Any]:
    """The summary of a run; of one without, its status (`training`, `cut short`) and the steps to its checkpoint."""
    if folder.summary:
        return folder.summary
    last = (folder.checkpoints / "last.ckpt").resolve()
    manifest = read_json(last.with_suffix(".json"))  # not by src.run.checkpoint, which loads torch
    status = "cut short"
    with suppress(OSError):  # a folder that is only for reading has no process at work
        status = "cut short" if lock(folder.lock_file(0)) else "training"
    return {"status": status} | ({"steps": manifest["global_step"]} if "global_step" in manifest else {})
