"""Windows of a series as our loader gives them, against the usual Dataset that slices one and a DataLoader.

    python -m benchmarks.windows --repeats 9 --steps 400

Seven columns of 17,420 rows as ETTh1 has, 96 steps to 96. First batches alone, then whole training steps of DLinear
through the Trainer, which differ in the loader only. The sides run in turn in one process; figures are medians of the
repeats.
"""

import argparse
import io
import statistics
import tempfile
import time
from contextlib import redirect_stdout

import numpy as np
import polars as pl
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.in_process import Stopwatch, built
from src.data.series.module import SeriesDataModule

ROWS, COLUMNS, WINDOW, HORIZON = 17_420, 7, 96, 96


class Slices(Dataset):
    """One window at a time, as it is usually written."""

    def __init__(self, windows):
        self.values, self.targets = windows.rows["values"], windows.rows["targets"]
        self.starts = windows.starts

    def __len__(self):
        return len(self.starts)

    def __getitem__(self, index):
        begin = int(self.starts[index])
        middle = begin + WINDOW
        x, targets = self.values[begin:middle], self.targets[middle : middle + HORIZON]
        return {"x": x, "targets": targets, "index": index}


class UsualDataModule(SeriesDataModule):
    def train_dataloader(self):
        return DataLoader(Slices(self.splits["train"]), self.batch_size, shuffle=True, drop_last=True)


def write(folder):
    rng = np.random.default_rng(0)
    columns = {f"c{i}": rng.normal(size=ROWS) for i in range(COLUMNS)}
    time = pl.Series(np.arange(ROWS) * 3_600_000_000).cast(pl.Datetime("us"))
    pl.DataFrame({"date": time, **columns}).write_csv(f"{folder}/data.csv")


def flags(folder, batch_size):
    return {"file": f"{folder}/data.csv", "cache_dir": f"{folder}/cache", "window": WINDOW, "horizon": HORIZON} | {
        "batch_size": batch_size
    }


def loading(kind, folder, batch_size, steps):
    """Seconds of so many batches."""
    data = kind(**flags(folder, batch_size))
    data.setup("fit")
    loader, done, t0 = data.train_dataloader(), 0, time.perf_counter()
    while True:
        for _batch in loader:
            done += 1
            if done == steps:
                return time.perf_counter() - t0


def training(kind, folder, batch_size, steps):
    """Seconds of so many steps, without the first, which warms up."""
    options = [f"--data.{name}={value}" for name, value in flags(folder, batch_size).items()]
    options += ["--data.dataset", "null", "--trainer.max_epochs", "-1", "--trainer.max_steps", str(steps)]
    options += ["--trainer.limit_val_batches", "0", "--trainer.log_every_n_steps", "50", "--pictures.enabled", "false"]
    config = ["--config", "configs/experiment/seasons_linear.yaml"]
    watch = Stopwatch()
    experiment = built([*config, *options], folder, watch)
    experiment.datamodule.__class__ = kind
    experiment.trainer.fit(experiment.model, datamodule=experiment.datamodule)
    return watch.seconds() * steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[32, 256])
    args = parser.parse_args()
    sides = {"usual": UsualDataModule, "ours": SeriesDataModule}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.repeats} repeats of {args.steps}")
    for measure in (loading, training):
        for batch_size in args.batch_sizes:
            times = {name: [] for name in sides}
            for i in range(args.repeats + 1):
                for name in sorted(sides, reverse=bool(i % 2)):
                    with tempfile.TemporaryDirectory() as folder:
                        write(folder)
                        with redirect_stdout(io.StringIO()):  # the progress of the runs
                            seconds = measure(sides[name], folder, batch_size, args.steps)
                    if i:  # the first round warms up
                        times[name].append(seconds / args.steps * 1e6)
            ratios = [a / b for a, b in zip(times["usual"], times["ours"], strict=True)]
            told = [
                f"{name} {statistics.median(us):6.0f} us ({min(us):.0f} to {max(us):.0f})" for name, us in times.items()
            ]
            told.append(f"ratio {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")
            print(f"{measure.__name__:8} batch {batch_size:4}: {', '.join(told)}")


if __name__ == "__main__":
    main()
