"""What grows with the data: resident memory, the time of a step, and the time until the first one, by number of tokens.

    python -m benchmarks.growth --megabytes 10 100 1000 10000 --repeats 1 --steps 100

A small GPT reads bytes, in windows of 128. For each size its prepared data is made in a temporary folder: up to
--prepared megabytes by the command itself from a text, and that time and memory is told; above, tokens of a text that
repeats are written by the same writer, and the text is a file without content, of which only the size is looked at.
Then training starts with it, in a process of its own, as src.train does but for the run folder. Memory is the kernel's
after the last step: resident in all (VmRSS), of that what the process has to itself (RssAnon), and pages of files and
of the memory map (RssFile). The kernel takes these back when it needs them, but until then they are resident and
grow with the data that steps have touched: only a process's own memory does not grow.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.in_process import Stopwatch, built
from benchmarks.side_by_side import conditions
from src.data import cache
from src.data.report import Cleaning
from src.data.text.module import TextDataModule
from src.data.text.reading import topics

VAL_FRAC, FIRST = 0.01, 10
KINDS = {"VmRSS": "resident", "RssAnon": "its own (RssAnon)", "RssFile": "pages of files (RssFile)"}
FLAGS = ["--config", "configs/experiment/text_gpt.yaml", "--config", "configs/trainer/cpu.yaml"]
FLAGS += [
    "--data.tokenizer",
    "bytes",
    "--data.seq_len",
    "128",
    "--data.batch_size",
    "8",
    "--data.val_frac",
    str(VAL_FRAC),
]
FLAGS += [
    "--model.network.dim",
    "64",
    "--model.network.depth",
    "2",
    "--model.network.num_heads",
    "2",
    "--trainer.limit_val_batches",
    "2",
]
FLAGS += ["--pictures.enabled", "false"]


def memory():
    """Of this process in MiB, by the kernel's names."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(status[name].split()[0]) / 1024 for name in (*KINDS, "VmHWM")}


class Watch(Stopwatch):
    """Writes down when steps ended, and the memory at the end of training."""

    def on_train_end(self, *_):
        since = time.time() - time.perf_counter()
        print(f"WATCHED {json.dumps({'ends': [end + since for end in self.ends], **memory()})}")


class Repeated:
    """Bytes of a text, over and over."""

    dtype = np.dtype(np.uint8)

    def __init__(self, text, size):
        self.text, self.shape = np.frombuffer(text, np.uint8), (size,)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, part):
        start, stop, _ = part.indices(len(self))
        first = start % len(self.text)
        return np.resize(np.roll(self.text, -first), stop - start)


def text():
    return "\n".join(topics().values()).encode("ascii", "ignore")


def write_text(file, size):
    with open(file, "wb") as f:
        for start in range(0, size, 2**24):
            f.write(Repeated(text(), size)[start : min(size, start + 2**24)].tobytes())


def write_prepared(file, size, cache_dir):
    """What src.train would look for, for a text of that size."""
    file.touch()
    os.truncate(file, size)
    data = TextDataModule(files=[str(file)], tokenizer="bytes", val_frac=VAL_FRAC, cache_dir=str(cache_dir))
    options, files = data.depends_on()
    name = f"TextDataModule-{cache.fingerprint({**options, 'invalid': 'error'}, files)}"
    held = int(size * VAL_FRAC)
    sizes = {"train": size - held, "val": held + 1, "test": 1}
    figures = {split: {"tokens": n, "bytes": n, "bytes_per_token": 1.0} for split, n in sizes.items()}
    figures["test"] = {"same_as": "val", **figures["val"]}
    report = {"documents": 1, "tokenizer": "bytes", "vocab_size": 256, **figures, **Cleaning().report()}
    splits = {split: {"tokens": Repeated(text(), n)} for split, n in sizes.items()}
    cache.prepare(cache_dir, name, lambda: (splits, report))


def train(flags):
    """In this process."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = built([*FLAGS, *flags], folder, Watch())
        experiment.trainer.fit(experiment.model, datamodule=experiment.datamodule)


def started(folder, file, steps):
    """Figures of one run."""
    flags = ["--data.files", f"[{file}]", "--data.cache_dir", f"{folder}/cache", "--trainer.max_steps", str(steps)]
    t0 = time.time()
    command = [sys.executable, "-m", "benchmarks.growth", "--train", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout[-2000:]}{done.stderr[-2000:]}")
    found = json.loads(re.search(r"WATCHED (.*)", done.stdout)[1])
    each = np.diff(found["ends"])[min(FIRST, steps - 2) :]
    return {"first": found["ends"][0] - t0, "step": float(np.median(each)) * 1e3, **found}


def row(name, run):
    sizes = " | ".join(f"{run[kind]:.0f}" for kind in KINDS)
    print(f"| {name} | {run['first']:.1f} | {run['step']:.1f} | {sizes} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--prepared", type=int, default=10, help="megabytes of text that are really prepared")
    parser.add_argument("--repeats", type=int, default=1, help="runs with each size")
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    sizes = " | ".join(f"{text}, MiB" for text in KINDS.values())
    print(f"| MB of tokens | until the first step, s | ms a step | {sizes} |\n|{'---|' * (3 + len(KINDS))}")
    for megabytes in args.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            file, size = Path(folder, "text.txt"), megabytes * 10**6
            if megabytes <= args.prepared:
                write_text(file, size)
                first = started(folder, file, args.steps)
                row(f"{megabytes:,}, to be prepared (at most {first['VmHWM']:,.0f} MiB)", first)
            else:
                write_prepared(file, size, Path(folder, "cache"))
            runs = [started(folder, file, args.steps) for _ in range(args.repeats)]
            median = {name: statistics.median(run[name] for run in runs) for name in runs[0] if name != "ends"}
            row(f"{megabytes:,}", median)
    print(f"\n{conditions(args.repeats)}")


if __name__ == "__main__":
    train(sys.argv[2:]) if sys.argv[1:2] == ["--train"] else main()
