"""Where the time of a command goes: every second of the process belongs to one part.

A part that begins within another one takes its time out of it, so that the parts sum to the whole. It loads nothing but
the standard library: it runs before what takes long to load.
"""

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

clock = time.perf_counter


class Ledger:
    """`seconds` of each part so far, in the order in which they began; what runs now is the last of `running`."""

    def __init__(self) -> None:
        self.open()

    def open(self, begun_sec: float = 0.0) -> None:
        """Begin anew, with the part `start`, which began so many seconds ago."""
        self.seconds: dict[str, float] = defaultdict(float)
        self.running, self.since = ["start"], clock() - begun_sec

    def charge(self) -> None:
        now, part = clock(), self.running[-1]
        self.seconds[part] += now - self.since
        self.since = now

    def mark(self, part: str) -> None:
        """From here on it is this part, in place of the one that ran."""
        self.charge()
        self.running[-1] = part

    def begin(self, part: str) -> None:  # it and `end` are `charge`, at a third of the cost
        now, running = clock(), self.running[-1]
        self.seconds[running] += now - self.since
        self.since = now
        self.running.append(part)

    def end(self) -> None:
        now, running = clock(), self.running.pop()
        self.seconds[running] += now - self.since
        self.since = now

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        depth = len(self.running)
        self.begin(part)
        try:
            yield
        finally:
            self.charge()
            del self.running[depth:]  # also what an error left open

    def so_far(self) -> dict[str, float]:
        """Seconds by part, to a thousandth."""
        self.charge()
        return {part: round(seconds, 3) for part, seconds in self.seconds.items()}


def process_age() -> float:
    """Seconds since the kernel started this process; 0 where it does not say."""
    with suppress(OSError, ValueError, AttributeError, IndexError):
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return 0.0


def shares(seconds: dict[str, float]) -> list[tuple[str, float]]:
    """Each part's share of the whole, the largest first."""
    total = sum(seconds.values()) or 1.0
    return sorted(((part, value / total) for part, value in seconds.items()), key=lambda item: -item[1])


LEDGER = Ledger()  # of this process; a command that shows it opens it
