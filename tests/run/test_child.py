"""What a process of one function tells of its end, whatever that is."""

import os
import signal

import pytest
import torch

from src.run.child import Child
from src.run.errors import DataError


def answers(pipe, what):
    print("seen", what)
    pipe.send(what)
    return 2 * what


def raises(pipe, error):
    raise error


def ends(pipe, signum):
    os.kill(os.getpid(), signum)


def leaves(pipe):
    os._exit(3)


def test_it_sends_what_it_finds_on_the_way_and_what_it_gives(tmp_path):
    child = Child(tmp_path / "log", answers, 21)
    assert [child.answer(), child.answer()] == [21, 42]
    child.stop()
    assert (tmp_path / "log").read_text() == "seen 21\n"


@pytest.mark.parametrize(
    ("function", "arguments", "failed", "code", "memory"),
    [
        (raises, [DataError("a.csv: no rows -> another file")], "a.csv: no rows -> another file", 3, False),
        (raises, [ValueError("odd\n number")], "ValueError: odd number", 1, False),
        (raises, [MemoryError()], "MemoryError: ", 1, True),
        (raises, [torch.OutOfMemoryError("CUDA out of memory")], "OutOfMemoryError: CUDA out of memory", 1, True),
        (ends, [signal.SIGKILL], "killed by SIGKILL: out of memory?", 75, True),
        (ends, [signal.SIGTERM], "killed by SIGTERM", 75, False),
        (leaves, [], "ended with exit code 3", 75, False),
    ],
)
def test_its_end_is_told(function, arguments, failed, code, memory, tmp_path):
    child = Child(tmp_path / "log", function, *arguments)
    assert child.answer() == {"failed": failed, "code": code, "memory": memory}
    child.stop()
    assert not child.process.is_alive()
