"""What the tests share: runs in processes of their own, and the real data where it is there."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

os.environ.setdefault("WANDB_MODE", "disabled")  # the tests of W&B set it themselves
ROOT = Path(__file__).parent.parent
# What all kinds of data share is tested on data that is no kind: a run of a second or two, 3 epochs of 20 steps.
SMALL = ["--config", "tests/small.yaml"]
# kind: images
DIGITS = ["--config", "configs/experiment/digits_cnn.yaml"]
SMALL_CNN = [*DIGITS, "--trainer.max_epochs", "3", "--model.network.widths", "[8,8]", "--model.network.hidden", "16"]
SMALL_CNN += ["--pictures.enabled", "false"]
# end


class Child:
    """A command in a process forked from this one, which has loaded torch already; its output goes to a file."""

    def __init__(
        self, command: Callable[[Sequence[str]], int], args: Sequence[str], log: Path, first: Callable | None
    ) -> None:
        self.log, self.code = log, None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self.run(command, args, first)

    def run(self, command: Callable[[Sequence[str]], int], args: Sequence[str], first: Callable | None) -> None:
        code = 1
        try:
            os.setsid()
            file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for number in (1, 2):
                os.dup2(file, number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            os.environ.pop("RUN_DIR_OF_ALL_PROCESSES", None)
            if first:
                first()
            code = command(list(args))
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self, timeout: float = 120) -> int:
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

    def kill(self, signum: int = signal.SIGKILL) -> None:
        os.kill(self.pid, signum)

    @property
    def output(self) -> str:
        return self.log.read_text()


@pytest.fixture
def start(tmp_path, monkeypatch):
    """start(args, command=src.train.main, first=None) -> Child; `first` is called in the child before the command."""
    import torch

    import src.config.build  # loads torch here, once
    import src.train

    torch.set_num_threads(1)  # no threads in this process, so that it can be forked
    monkeypatch.chdir(ROOT)
    children = []

    def start(args, command=src.train.main, first=None) -> Child:
        child = Child(command, [str(a) for a in args], tmp_path / f"output{len(children)}.txt", first)
        children.append(child)
        return child

    yield start
    for child in children:
        if child.code is None:
            os.killpg(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)


@pytest.fixture
def run(start):
    """run(args, code=0, ...) -> what a command printed; fails if it ends with another exit code."""

    def run(args, code=0, **how) -> str:
        child = start(args, **how)
        assert child.wait() == code, child.output
        return child.output

    return run


@pytest.fixture
def data_dir() -> Path:
    """The folder of real data sets that a few tests need."""
    folder = os.environ.get("LEYDEN_DATA_DIR")
    if not folder:
        pytest.skip("needs the real data sets: set LEYDEN_DATA_DIR to their folder")
    return Path(folder)
