"""Commands in processes that are forked from the tests' own, which has loaded torch already: that takes 6 s."""

import os
import pickle
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parent.parent
Command = Callable[[Sequence[str]], Any]


def exit_code(command: Command, args: Sequence[str]) -> int:
    """What Python's exit code would be after a command."""
    renew_threads()
    try:
        code = command(list(args))
    except SystemExit as e:
        code = e.code if isinstance(e.code, (int, type(None))) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code or 0


def renew_threads() -> None:
    """After a fork torch's pool of threads is made anew; two threads that do that at once abort the process."""
    torch: Any = sys.modules.get("torch")
    if torch:
        torch.set_num_threads(torch.get_num_threads())


def write_to(log: Path) -> None:
    """All output of this process goes to a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(file, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))


def check_threads() -> None:
    """Raise RuntimeError where a fork would wait for ever for threads of polars, which it has not."""
    tasks = Path("/proc/self/task")
    names = []
    for task in tasks.iterdir() if tasks.is_dir() else ():
        with suppress(FileNotFoundError):  # a thread that has ended meanwhile
            names.append((task / "comm").read_text())
    if any(re.match(r"polars-\d", name) for name in names):
        raise RuntimeError("this process has used polars, so no run can be forked from it -> read files without polars")


def in_fork(function: Callable[[], Any]) -> None:
    """Call a function in a forked process; raises AssertionError with the traceback that it ends with."""
    source, sink = os.pipe()
    pid = os.fork()
    if pid == 0:
        failed = ""
        try:
            renew_threads()
            function()
        except BaseException:
            failed = traceback.format_exc()
        os.write(sink, failed.encode()[-60_000:])
        os._exit(bool(failed))
    os.close(sink)
    with os.fdopen(source) as f:
        failed = f.read()
    if os.waitpid(pid, 0)[1]:
        raise AssertionError(failed or "the forked test died")


class Child:
    """A command in a forked process, the first of its group; its output goes to a file.

    Args:
        first: called there before the command.
        twins: further processes of the run, for as many more devices.
    """

    def __init__(
        self, command: Command, args: Sequence[str], log: Path, first: Callable | None = None, twins: int = 0
    ) -> None:
        self.log, self.code = log, None
        sys.stdout.flush()
        sys.stderr.flush()
        check_threads()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.setsid()
                write_to(log)
                os.environ.pop("RUN_DIR_OF_ALL_PROCESSES", None)
                if first:
                    first()
                if twins:
                    for_lightning([Twin(command, args) for _ in range(twins)])
                code = exit_code(command, args)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(code)
        while os.getpgid(self.pid) != self.pid:
            time.sleep(0.001)

    def wait(self, timeout: float = 240) -> int:
        """The exit code; of a process ended by a signal, minus its number."""
        end = time.monotonic() + timeout
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                os.killpg(self.pid, signal.SIGKILL)
                raise TimeoutError(f"{self.log.read_text()}\nran longer than {timeout} s")
            else:
                time.sleep(0.01)
        return self.code

    def wait_for(self, file: Path, timeout: float = 120) -> None:
        """Wait until the process has made a file."""
        end = time.monotonic() + timeout
        while not file.exists():
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            assert not pid, f"{self.output}\nended ({status}) without {file}"
            assert time.monotonic() < end, f"{self.output}\nno {file} in {timeout} s"
            time.sleep(0.005)

    def wait_for_all(self, timeout: float = 40) -> None:
        """Wait until no process of the group is left."""
        end = time.monotonic() + timeout
        while self.group_is_there():
            assert time.monotonic() < end, f"{self.output}\na process is left after {timeout} s"
            time.sleep(0.05)

    def group_is_there(self) -> bool:
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self, signum: int = signal.SIGKILL) -> None:
        os.kill(self.pid, signum)

    def end(self) -> None:
        """Kill what is left of the group."""
        if self.group_is_there():
            os.killpg(self.pid, signal.SIGKILL)
        if self.code is None:
            os.waitpid(self.pid, 0)

    @property
    def output(self) -> str:
        return self.log.read_text()


class Twin:
    """In place of the `subprocess.Popen` with which Lightning starts the command again for a further device: a process
    that is forked before anything has begun, and waits for its environment."""

    def __init__(self, command: Command, args: Sequence[str]) -> None:
        reader, self.writer = os.pipe()
        self.args, self.returncode, self.lock = args, None, threading.RLock()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.writer)
            try:
                with open(reader, "rb") as pipe:
                    environment = pickle.load(pipe)  # not to the pipe's end, which a later twin holds open
            except EOFError:  # the other process has ended
                os._exit(0)
            os.environ.clear()
            os.environ.update(environment)
            os._exit(exit_code(command, args))
        os.close(reader)

    def begin(self, environment: dict[str, str]) -> "Twin":
        with open(self.writer, "wb") as pipe:
            pipe.write(pickle.dumps(dict(environment)))
        return self

    def poll(self) -> int | None:
        with self.lock:  # an observer of Lightning's asks, too
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = 1e6) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("twin", timeout)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def for_lightning(twins: list[Twin]) -> None:
    """Lightning starts these for its further devices."""
    from lightning.pytorch.strategies.launchers import subprocess_script

    launched = iter(twins)
    subprocess_script.subprocess = SimpleNamespace(
        Popen=lambda command, env, cwd=None: next(launched).begin(env), TimeoutExpired=subprocess.TimeoutExpired
    )


def python(args: Sequence[str], folder: Path, environment: dict[str, str], log: Path) -> Child:
    """`python -m MODULE ...` or `python -c CODE` with the `src` of a folder, as a forked process."""

    def fresh() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("src", "benchmarks")]:
            del sys.modules[name]
        tests = str(ROOT / "tests")  # and folders in it; the environment may lie in ROOT, too
        kept = (path for path in sys.path if path not in ("", str(ROOT)) and not path.startswith(tests))
        sys.path[:] = [str(folder), *kept]
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        warnings.resetwarnings()  # pytest has filters of its own

    def command(args: Sequence[str]) -> None:
        option, what, *sys.argv[1:] = args
        if option == "-c":
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_module(what, run_name="__main__", alter_sys=True)

    return Child(command, args, log, first=fresh)
