"""What a checkpoint costs, and how long training waits for it.

    python -m benchmarks.checkpoint_stall --parameters 8333333 --repeats 9 --folder logs

A model of N parameters with its AdamW state takes 12 bytes a parameter. First each part of a save by itself, then what
a save adds to a loop of matrix products: where the loop waits for the disk, and where a thread writes, as in src.train.
"""

import argparse
import hashlib
import io
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from src.run.checkpoint import VerifiedCheckpointIO, write

STEPS = 60  # of the loop, between two saves


def timed(act):
    t0 = time.perf_counter()
    out = act()
    return (time.perf_counter() - t0) * 1e3, out


def checkpoint_of(parameters):
    size = parameters // 10
    tensors = {f"{kind}.{i}": torch.randn(size) for kind in ("weight", "exp_avg", "exp_avg_sq") for i in range(10)}
    return {"state_dict": tensors, "global_step": 0, "steps_logged": 0, "best": None}


def parts(checkpoint, folder, i):
    """Milliseconds of each part of one save."""

    def serialize():
        torch.save(checkpoint, file)

    def to_disk():
        with open(folder / f"plain-{i}", "wb") as f:  # a new file, as a checkpoint is
            f.write(file.getbuffer())
            f.flush()
            return timed(lambda: os.fsync(f.fileno()))[0]

    file = io.BytesIO()
    serialized, _ = timed(serialize)
    hashed, _ = timed(lambda: hashlib.sha256(file.getbuffer()).hexdigest())
    both, synced = timed(to_disk)
    path = folder / f"step-{i:08d}.ckpt"
    whole, _ = timed(lambda: write(path, file.getbuffer(), {"global_step": i, "steps_logged": i, "best": None}))
    rest = whole - hashed - both
    return {"serialize": serialized, "hash": hashed, "write": both - synced, "fsync": synced, "manifest, names": rest}


def loop(checkpoint, folder, repeats, how):
    """Milliseconds of a round of STEPS matrix products that begins with a save: none, with waiting, or in a thread."""
    files, x, times = VerifiedCheckpointIO(), torch.randn(512, 512), []
    for i in range(repeats):
        t0 = time.perf_counter()
        if how != "none":
            checkpoint["global_step"] = i
            files.save_checkpoint(checkpoint, folder / f"step-{i:08d}.ckpt", 2)
        stall = time.perf_counter() - t0
        if how == "wait":
            files.finish()
            stall = time.perf_counter() - t0
        for _ in range(STEPS):
            x = torch.nn.functional.normalize(x @ x)
        files.finish()
        times.append((stall * 1e3, (time.perf_counter() - t0) * 1e3))
    return [statistics.median(column) for column in zip(*times, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=8_333_333)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=Path("logs"))
    args = parser.parse_args()
    checkpoint, folder = checkpoint_of(args.parameters), Path(tempfile.mkdtemp(dir=args.folder))
    try:
        rows = [parts(checkpoint, folder, i) for i in range(args.repeats)]
        print(
            f"{args.parameters * 12 / 1e6:.0f} MB, {torch.get_num_threads()} threads, {args.repeats} repeats; median ms"
        )
        for name in rows[0]:
            values = [row[name] for row in rows]
            print(f"{name:16} {statistics.median(values):7.1f}  ({min(values):.1f} to {max(values):.1f})")
        alone = loop(checkpoint, folder, args.repeats, "none")[1]
        for how in ("wait", "thread"):
            stall, whole = loop(checkpoint, folder, args.repeats, how)
            print(f"{how:16} {stall:7.1f} until the loop goes on; a save adds {whole - alone:.1f} to {alone:.0f}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
