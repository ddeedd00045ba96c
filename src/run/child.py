"""A function in a process of its own: its end, however that comes, ends nothing else."""

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from src.run.command import end_with_parent, exit_code, one_line
from src.run.errors import EnvironmentFault, KnownError
from src.run.faults import out_of_memory

# A fork has loaded torch already, and this process never uses a GPU. macOS's libraries do not bear forks.
PROCESSES: Any = multiprocessing.get_context("spawn" if sys.platform == "darwin" else "fork")


class Child:
    """Calls `function(pipe, *arguments)`, and sends what that gives through the pipe, too.

    Args:
        log: gets what it prints; nothing else is written.
    """

    def __init__(self, log: Path, function: Callable[..., Any], *arguments: Any) -> None:
        self.pipe, there = PROCESSES.Pipe()
        self.process = PROCESSES.Process(target=serve, args=(there, log, function, arguments))
        self.process.start()
        there.close()

    def answer(self) -> Any:
        """Waits for it. Where the function raises or the process ends: the error as `failed`, the exit `code` that a
        command would have, and whether `memory` ran out."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            is_kernel = code == -signal.SIGKILL  # which it sends where memory runs out
            how += ": out of memory?" if is_kernel else ""
            return {"failed": how, "code": EnvironmentFault.code, "memory": is_kernel}

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def serve(pipe: Any, log: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    end_with_parent(signal.SIGKILL)
    with suppress(OSError):  # where memory runs out, it is this process that goes
        Path("/proc/self/oom_score_adj").write_text("1000")
    sys.stdout = sys.stderr = open(log, "a", buffering=1)  # noqa: SIM115
    os.dup2(sys.stdout.fileno(), 1)
    os.dup2(sys.stdout.fileno(), 2)
    torch.set_num_threads(torch.get_num_threads())  # a fork's pool of threads is made anew
    try:
        pipe.send(function(pipe, *arguments))
    except BaseException as e:
        pipe.send(failure(e))


def failure(e: BaseException) -> dict[str, Any]:
    traceback.print_exc()
    text = " ".join(one_line(e).split())[:1000]
    text = text if isinstance(e, (KnownError, OSError, SystemExit)) else f"{type(e).__name__}: {text}"
    return {"failed": text, "code": exit_code(e), "memory": out_of_memory(e) or out_of_memory(e.__cause__ or e)}
