"""Batches in the order of index tensors, fetched in this process or by workers that are watched."""

import copy
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import wait
from threading import Thread
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset, get_worker_info

from src.data.order import EvalOrder, TrainOrder
from src.data.placing import sent
from src.run.command import end_with_parent
from src.run.errors import DataError, EnvironmentFault, KnownError
from src.run.faults import out_of_memory
from src.run.private import worker_processes

POLL_SEC = 1.0
SHOWN = 5  # samples that an error names
Batch = dict[str, Tensor]  # x, targets, and index: which samples of their split these are, -1 for padding


class Arrays(Dataset):
    """One split in memory or memory-mapped. `arrays[index]` takes a whole batch at once."""

    def __init__(self, x: Tensor, targets: Tensor) -> None:
        if not (isinstance(x, Tensor) and isinstance(targets, Tensor) and len(x) == len(targets)):
            given = f"{type(x).__name__} of {len(x)} and {type(targets).__name__} of {len(targets)}"
            raise DataError(f"Arrays: x and targets are {given} -> give two tensors of one length")
        self.x, self.targets = x, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: Tensor) -> Batch:
        rows = index.clamp(min=0)  # padding repeats the first sample
        return {"x": self.x[rows], "targets": self.targets[rows], "index": index}

    def moved(self, move: Callable[[Tensor], Tensor]) -> "Arrays":
        """The same, with each tensor that batches are taken from as `move` gives it."""
        out = copy.copy(self)
        out.x, out.targets = move(self.x), move(self.targets)
        return out


class Watched(Dataset):
    """Arrays that note which samples each worker takes, where the main process sees it, and name those that fail."""

    def __init__(self, arrays: Dataset, num_workers: int) -> None:
        self.arrays = arrays
        self.fetching = torch.full((max(1, num_workers), SHOWN), -1).share_memory_()  # the first ones of a batch

    def __getitem__(self, index: Tensor) -> Batch:
        info = get_worker_info()
        if info:
            self.fetching[info.id] = pad(index[:SHOWN], (0, SHOWN - len(index[:SHOWN])), value=-1)
        try:
            return self.arrays[index]
        except Exception as e:
            if not info and (isinstance(e, KnownError) or out_of_memory(e)):
                raise
            text = f"{f'data worker {info.id}' if info else 'the data'} failed, {told(index[:SHOWN])}: "
            if out_of_memory(e):
                raise EnvironmentFault(f"{text}out of memory -> lower data.num_workers") from e
            text += f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
            raise DataError(f"{text} -> mend or leave out the bad one (--debug: where)") from e

    def last_samples(self, worker: int) -> str:
        return told(self.fetching[worker])


def told(index: Tensor) -> str:
    samples = [str(n) for n in index.tolist() if n >= 0]
    return f"last at samples {', '.join(samples)}, ... of its split" if samples else "at no samples yet"


class Loader:
    """Batches in the order of index tensors, fetched in this process or by workers. `device`: where the arrays are, if
    not on the host. Raises DataError where samples cannot be fetched, EnvironmentFault where a worker died or gave
    nothing for `worker_timeout_sec`."""

    def __init__(
        self,
        arrays: Dataset,
        order: TrainOrder | EvalOrder,
        num_workers: int = 0,
        worker_timeout_sec: float = 120.0,
        device: torch.device | None = None,
    ) -> None:
        self.order, self.num_workers, self.device = order, num_workers, device
        self.worker_timeout_sec, self.watched = worker_timeout_sec, Watched(arrays, num_workers)
        self.while_waiting: Callable[[], None] = lambda: None  # called every `POLL_SEC` without a batch
        self.workers: DataLoader | None = None

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        if self.num_workers == 0:
            yield from map(self.take, self.order)
            return
        self.workers = self.workers or self.start_workers()
        fetched, number, since = iter(self.workers), 0, time.monotonic()
        while True:
            try:
                batch = next(fetched)
            except StopIteration:
                return
            except KnownError as e:  # a worker's comes as its whole traceback
                raise type(e)(str(e).splitlines()[-1].partition(": ")[2]) from e
            except (RuntimeError, OSError, EOFError) as e:
                if not str(e).startswith("DataLoader timed out"):
                    raise self.lost_worker(e) or e from e
                if 0 < self.worker_timeout_sec < time.monotonic() - since:
                    worker = number % self.num_workers  # torch gives them batches in turn
                    how = f"gave nothing for {self.worker_timeout_sec:g} s"
                    raise self.fault(worker, how, "mend that, or raise data.worker_timeout_sec") from e
                self.while_waiting()
            else:
                yield batch
                number, since = number + 1, time.monotonic()

    def take(self, index: Tensor) -> Batch:
        """A batch, in this process."""
        if self.device is not None:
            return self.watched[sent(index, self.device)]
        return pinned(self.watched[index]) if torch.cuda.is_available() else self.watched[index]

    def start_workers(self) -> DataLoader:
        return DataLoader(
            self.watched,
            sampler=self.order,  # with batch_size=None a "sample" is whatever an item of the sampler gives
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=True,
            timeout=POLL_SEC,
            worker_init_fn=bind_to_parent,
            generator=torch.Generator(),  # without one, each new iterator would draw from torch's own generator
        )

    def lost_worker(self, e: Exception) -> EnvironmentFault | None:
        """The worker that died, where torch says so: it raises that wherever its signal finds training, or the end of
        a connection while a batch is handed over."""
        is_lost = isinstance(e, (ConnectionError, EOFError)) or str(e).startswith("DataLoader worker (pid")
        if self.workers is None or not is_lost:
            return None
        processes = worker_processes(self.workers)
        with suppress(RuntimeError):  # the signal may come only now
            wait([process.sentinel for process in processes], timeout=1)
        for worker, code in enumerate(process.exitcode for process in processes):
            if code is not None:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                return self.fault(worker, how, "mend that (is memory short?)")
        return None

    def fault(self, worker: int, how: str, hint: str) -> EnvironmentFault:
        samples = self.watched.last_samples(worker)
        return EnvironmentFault(f"data worker {worker} {how}, {samples} -> {hint}; the same command goes on")

    # The order follows from (seed, epoch, step), so there is nothing to save; having these two methods tells
    # Lightning that this loader goes on in mid-epoch.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def pinned(batch: Batch) -> Batch:
    """The host need not wait for the copy of page-locked memory to a GPU."""
    return {name: t.pin_memory() for name, t in batch.items()}


def bind_to_parent(worker: int) -> None:
    end_with_parent(signal.SIGKILL)  # Linux; elsewhere in 5 s, unless it hangs
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=heed_parent, daemon=True).start()


def heed_parent() -> None:
    """End by the parent's SIGTERM alone: one to the whole process group leaves it a step to end with these batches."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
