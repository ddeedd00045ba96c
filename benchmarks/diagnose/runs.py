"""Commands of this project in forked processes, and what came of each as a line of a file: the same call goes on."""

import ast
import hashlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.diagnose.cases import Flags
from src.run.files import ROOT

# Parts of a run's ledger that are not training.
AROUND = ("start", "config", "imports", "wandb", "build", "data", "plan", "test", "pictures", "end")
TIMEOUT_SEC = 600
Line = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A command with its arguments, and how to read what it left in its folder."""

    key: str
    command: str  # the module, whose `main` is called
    args: list[str]
    folder: Path
    read: Callable[[Path, int], Line]
    about: Line = field(default_factory=dict)
    fresh: bool = False  # in an interpreter of its own, which loads all once more


def training(key: str, files: Iterable[Path], seed: int, folder: Path, about: Line, flags: Flags | None = None) -> Job:
    args = [part for file in files for part in ("--config", str(file))]
    args += ["--seed_everything", str(seed), "--run_dir", str(folder / "run")]
    args += [f"--{name}={value}" for name, value in (flags or {}).items()]
    return Job(key, "src.train", args, folder, trained, about)


def trained(folder: Path, code: int) -> Line:
    """Metrics, and seconds of training."""
    file = folder / "run" / "summary.json"
    summary = json.loads(file.read_text()) if file.is_file() else {}
    ledger, best = summary.get("ledger", {}), summary.get("best", {})
    metrics = {name: value for name, value in summary.items() if name.startswith("test/")}
    metrics |= {name: value for name, value in best.items() if name.startswith("val/")}
    known = "forward" in ledger  # else a profiler of Lightning's is in the place of ours, which tells the parts
    seconds = sum(value for name, value in ledger.items() if not known or name not in AROUND)
    return {"metrics": metrics, "fit_sec": round(seconds, 2), "error": summary.get("error", "")}


def digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def config_digest(file: Path) -> str:
    """Of a config, and of the faulty classes where it names one."""
    text = file.read_text()
    return digest(text, faulty() if "benchmarks." in text else "")


@cache
def faulty() -> str:
    return ast.dump(ast.parse(Path(__file__).with_name("faulty.py").read_text()))


def source_digest(*folders: str) -> str:
    return digest(*(path.read_text() for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))))


class Lines:
    """The lines that a file has so far, by key; the last of a key counts."""

    def __init__(self, file: Path) -> None:
        self.file, self.known = file, dict[str, Line]()
        text = file.read_text() if file.is_file() else ""
        if text and not text.endswith("\n"):  # the last line was cut short
            file.write_text(text := text[: text.rfind("\n") + 1])
        self.known = {line["key"]: line for line in map(json.loads, text.splitlines())}

    def add(self, line: Line) -> None:
        self.known[line["key"]] = line
        with self.file.open("a") as f:
            f.write(json.dumps(line) + "\n")


def carry_out(jobs: Iterable[Job], lines: Lines, at_once: int = 1, again: bool = False) -> None:
    """Those whose line is not there yet, some at a time. A crash is an answer: only `again` asks once more."""
    todo = [job for job in jobs if job.key not in lines.known or (again and lines.known[job.key]["exit_code"] == 1)]
    running: dict[int, tuple[Job, float]] = {}
    count = 0
    while todo or running:
        while todo and len(running) < at_once:
            job = todo.pop(0)
            running[start(job)] = job, time.monotonic()
        for pid, (job, since) in [*running.items()]:
            done, status = os.waitpid(pid, os.WNOHANG)
            seconds = time.monotonic() - since
            if not done and seconds > TIMEOUT_SEC:
                os.killpg(pid, signal.SIGKILL)
                done, status = os.waitpid(pid, 0)
            if done:
                del running[pid]
                count += 1
                lines.add(finished(job, os.waitstatus_to_exitcode(status), seconds))
                print(f"{count:4}  {seconds:6.1f} s  {job.key}", file=sys.stderr, flush=True)
        time.sleep(0.02)


def finished(job: Job, code: int, seconds: float) -> Line:
    line = {"key": job.key, **job.about, "exit_code": code, "seconds": round(seconds, 1), "fresh": job.fresh}
    line |= job.read(job.folder, code)
    if code not in (0, 5):  # 5: numbers are not finite, which is a result
        log = job.folder / "log.txt"
        line["log"] = log.read_text()[-600:] if log.is_file() else ""
    shutil.rmtree(job.folder, ignore_errors=True)
    return line


def start(job: Job) -> int:
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code: Any = 1
        try:
            os.setsid()
            log = os.open(job.folder / "log.txt", os.O_WRONLY | os.O_CREAT)
            for number in (1, 2):
                os.dup2(log, number)
            os.environ.pop("RUN_DIR_OF_ALL_PROCESSES", None)
            if job.fresh:
                os.execv(sys.executable, [sys.executable, "-m", job.command, *job.args])
            code = import_module(job.command).main(job.args)
        except SystemExit as e:
            code = e.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else int(code is not None))
    return pid


def preload() -> None:
    """All that a run loads; forked processes have it then."""
    import matplotlib.backends.backend_agg  # noqa: F401
    import torch
    import torchvision.transforms.v2  # noqa: F401

    import src.config.build
    import src.diagnose
    import src.train  # noqa: F401

    torch.set_num_threads(1)
