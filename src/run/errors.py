"""What can go wrong outside our own code: one line for the user, one exit code for scripts."""

import difflib
from collections.abc import Iterable
from importlib.util import find_spec


class KnownError(Exception):
    """One line that says what is wrong, where, and what to change; `code` is the exit code of the process, `told`
    whether another one prints it."""

    code = 1
    told = False


class ConfigError(KnownError):
    code = 2  # a wrong key, type, value, class or flag


class DataError(KnownError):
    """Data that cannot be trained on; `removed` has each file or row that is to blame, where the line is about many."""

    code = 3

    def __init__(self, message: str, removed: Iterable[dict[str, str]] = ()) -> None:
        super().__init__(message)
        self.removed = list(removed)


class CheckpointError(KnownError):
    code = 4  # a checkpoint or run folder that is missing, damaged or of another model


class NumericsError(KnownError):
    code = 5  # a loss or gradient that is not finite; it has not reached the weights


class EnvironmentFault(KnownError):
    code = 75  # the machine's fault (EX_TEMPFAIL): trying again later, or elsewhere, can help


class Stopped(KnownError):
    """A signal asked the run to stop, and a checkpoint was written."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.code = 128 + signum


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean ...?`, or nothing where no name is near."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def need(module: str, extra: str) -> None:
    """Ask for an optional package before anything is begun.

    Raises:
        ConfigError: it is not installed.
    """
    if find_spec(module) is None:
        raise ConfigError(f'{module} is not installed -> pip install -e ".[{extra}]"')
