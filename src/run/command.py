"""How a command ends: known errors as one line and an exit code, unknown ones as a traceback."""

import atexit
import ctypes
import errno
import gc
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from src.run.errors import EnvironmentFault, KnownError
from src.run.redact import hide, secrets_in

# What a full, read-only, forbidden or broken disk answers.
STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
PR_SET_PDEATHSIG = 1


def command(main: Callable[[Sequence[str]], int]) -> Callable[..., int]:
    """A decorator: the function gets the arguments of the command line, and what it gives is the exit code."""
    return partial(run_command, main)


def run_command(main: Callable[[Sequence[str]], int], args: Sequence[str] | None = None) -> int:
    pid, code, is_process = os.getpid(), 1, args is None and main.__module__ == "__main__"
    args = sys.argv[1:] if args is None else args

    def end(signum: int, frame: Any) -> None:
        if os.getpid() == pid:  # workers, which get the terminal's signals, too, end with their parent
            raise SystemExit(128 + signum)

    before = handle({signal.SIGINT: end, signal.SIGTERM: end, signal.SIGUSR1: lambda *_: None})  # nothing to save
    try:
        code = main(args)
    except (Exception, SystemExit) as e:
        code = report(e, args)
    finally:
        handle(before)
        gc.unfreeze()
        if is_process and of_project(sys.modules["__main__"]) and "src.run.private" in sys.modules:
            from src.run.private import leave

            atexit.register(leave, code)
    return code


def handle(handlers: dict[int, Any]) -> dict[int, Any]:
    """Set handlers of signals; gives those before. None outside the main thread, where Python lets none be set."""
    is_main = threading.current_thread() is threading.main_thread()
    return {signum: signal.signal(signum, handler) for signum, handler in handlers.items()} if is_main else {}


def of_project(module: Any) -> bool:
    """Whether it runs as `python -m src.NAME`; a script may go on after a command."""
    return getattr(module.__spec__, "name", "").startswith("src.")


@contextmanager
def loading() -> Iterator[None]:
    """While modules are loaded. Those of torch and Lightning make some 700,000 objects that stay. To search them for
    what can go, again and again, takes a third of the time, and later would hold up a step."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def report(e: BaseException, args: Sequence[str]) -> int:
    """Print what went wrong; gives the exit code."""
    if isinstance(e, SystemExit) and isinstance(e.__context__, BrokenPipeError):
        return 128 + signal.SIGPIPE  # by rich: the reader of standard output, such as `head`, has left
    code = exit_code(e)
    if "--debug" in args or code == 1:
        print(hide(traceback.format_exc(), secrets_in(args)), file=sys.stderr)
    told = getattr(e, "told", False)  # by another process
    if code and isinstance(e, (KnownError, OSError, SystemExit)) and not told:
        print(f"error: {hide(one_line(e), secrets_in(args))}", file=sys.stderr, flush=True)
    return code


def exit_code(e: BaseException) -> int:
    if isinstance(e, OSError):
        return EnvironmentFault.code if e.errno in STORAGE else 1
    code = e.code if isinstance(e, (KnownError, SystemExit)) else 130 if isinstance(e, KeyboardInterrupt) else 1
    return code if isinstance(code, int) else 0 if code is None else 1


def one_line(e: BaseException) -> str:
    if isinstance(e, (SystemExit, KeyboardInterrupt)) and (code := exit_code(e)) > 128:
        return f"ended at once by {signal.Signals(code - 128).name} -> same command again"
    if isinstance(e, OSError):
        return f"{e.filename or 'writing a file'}: {e.strerror} -> mend that, then give the same command again"
    return str(e)


def command_line(module: str, args: Sequence[str]) -> str:
    return shlex.join(["python", "-m", module, *(hide(arg, secrets_in(args)) for arg in args)])


def end_with_parent(signum: int) -> None:
    """Have the kernel send this process a signal when its parent ends, however that ends; does nothing but on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum)
