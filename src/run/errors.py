"""What can go wrong outside our own code: one line for the user, one exit code for scripts."""

import difflib
from collections.abc import Iterable


class KnownError(Exception):
    """One line that says what is wrong, where, and what to change; `code` is the exit code of the process."""

    code = 1


class ConfigError(KnownError):
    """A wrong key, type, value, class or flag."""

    code = 2


class DataError(KnownError):
    """Data that cannot be trained on; `removed` has each file or row that is to blame, where the line is about many."""

    code = 3

    def __init__(self, message: str, removed: Iterable[dict[str, str]] = ()) -> None:
        super().__init__(message)
        self.removed = list(removed)


class CheckpointError(KnownError):
    """A checkpoint or run folder that is missing, damaged or of another model."""

    code = 4


class NumericsError(KnownError):
    """A loss or gradient that is not finite; it has not reached the weights."""

    code = 5


class EnvironmentFault(KnownError):
    """The machine's fault: trying again later, or elsewhere, can help (EX_TEMPFAIL)."""

    code = 75


class Stopped(KnownError):
    """A signal asked the run to stop, and a checkpoint was written: 128 + the signal's number."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.code = 128 + signum


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean ...?`, or nothing where no name is near."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""
