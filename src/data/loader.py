"""Batches in the order of index tensors, fetched in this process or by workers that are watched."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import Thread
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset, get_worker_info

from src.data.order import EvalOrder, TrainOrder
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


class Watched(Dataset):
    """Arrays that note which samples each worker takes, where the main process sees it, and name those that fail."""

    def __init__(self, arrays: Dataset, num_workers: int) -> None:
        self.arrays = arrays
        self.fetching = torch.full((max(1, num_workers), SHOWN), -1).share_memory_()  # the first ones of a batch

    def __getitem__(self, index: Tensor) -> Batch:
        info = get_worker_info()
        worker = info.id if info else 0
        self.fetching[worker] = pad(index[:SHOWN], (0, SHOWN - len(index[:SHOWN])), value=-1)
        try:
            return self.arrays[index]
        except Exception as e:
            if not info and (isinstance(e, KnownError) or out_of_memory(e)):
                raise
            text = f"{f'data worker {worker}' if info else 'the data'} failed, {self.last_samples(worker)}: "
            if out_of_memory(e):
                raise EnvironmentFault(f"{text}out of memory -> lower data.num_workers") from e
            text += f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
            raise DataError(f"{text} -> mend or leave out the bad one (--debug: where)") from e

    def last_samples(self, worker: int) -> str:
        index = [str(n) for n in self.fetching[worker].tolist() if n >= 0]
        return f"last at samples {', '.join(index)}, ... of its split" if index else "at no samples yet"


class Loader:
    """Batches in the order of index tensors, fetched in this process or by workers.

    Args:
        worker_timeout_sec: how long to wait for a worker's batch.
    """

    def __init__(
        self, arrays: Dataset, order: TrainOrder | EvalOrder, num_workers: int = 0, worker_timeout_sec: float = 120.0
    ) -> None:
        self.arrays, self.order, self.num_workers = arrays, order, num_workers
        self.worker_timeout_sec = worker_timeout_sec
        self.watched, self.received = Watched(arrays, num_workers), 0
        self.while_waiting: Callable[[], None] = lambda: None  # called every `POLL_SEC` without a batch
        self.workers: DataLoader | None = None

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        """Raises:
        DataError: samples cannot be fetched.
        EnvironmentFault: a worker died, or gave nothing in time.
        """
        if self.num_workers == 0:
            batches = map(self.watched.__getitem__, self.order)
            yield from map(pinned, batches) if torch.cuda.is_available() else batches
            return
        self.workers, self.received = self.workers or self.start_workers(), 0
        fetched, since = iter(self.workers), time.monotonic()
        while True:
            try:
                batch = next(fetched)
            except StopIteration:
                return
            except KnownError as e:  # a worker's comes as its whole traceback
                raise type(e)(str(e).splitlines()[-1].partition(": ")[2]) from e
            except (RuntimeError, OSError, EOFError) as e:
                if timed_out(e) and not 0 < self.worker_timeout_sec < time.monotonic() - since:
                    self.while_waiting()
                    continue
                if fault := self.lost_worker(e):
                    raise fault from e
                raise
            self.received += 1
            yield batch
            since = time.monotonic()

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
        """What torch says of a worker that died (it raises wherever the signal finds training) or timed out."""
        broken = isinstance(e, (ConnectionError, EOFError))  # the death of a worker while it hands over a batch
        slow = timed_out(e)
        if self.workers is None or not (broken or slow or str(e).startswith("DataLoader worker (pid")):
            return None
        worker = self.received % self.num_workers  # batch n is always fetched by worker n % num_workers
        how, what = f"gave nothing for {self.worker_timeout_sec:g} s", "mend that, or raise data.worker_timeout_sec"
        if not slow:
            processes = worker_processes(self.workers)
            with suppress(RuntimeError):  # the signal may come only now
                for process in processes if broken else ():
                    process.join(1)
            codes = {k: process.exitcode for k, process in enumerate(processes) if process.exitcode}
            if broken and not codes:
                return None
            worker, code = next(iter(codes.items()), (worker, None))
            how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
            what = "mend that (is memory short?)"
        samples = self.watched.last_samples(worker)
        return EnvironmentFault(f"data worker {worker} {how}, {samples} -> {what}; the same command goes on")

    # The order follows from (seed, epoch, step), so there is nothing to save; having these two methods tells
    # Lightning that this loader goes on in mid-epoch.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def timed_out(e: Exception) -> bool:
    return str(e).startswith("DataLoader timed out")


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
