"""What bfloat16 gains or costs on this processor, against float32: what `trainer.precision: auto` decides by.

    python -m benchmarks.precision --repeats 5

Forward and backward of the network of `cifar10_resnet`, and the matrix iteration of Muon for one of its kernels, on a
CPU with one thread. Both precisions run in turn; the first turn is not counted.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch.nn import functional as F

from src.models.factory import channels_last
from src.networks.resnet import ResNet
from src.optim import muon
from src.run.device import has_bfloat16

Task = Callable[[torch.dtype], object]


def tasks(batch_size: int) -> dict[str, Task]:
    network = channels_last(ResNet([0, 1, 1, 1], [32, 64, 256, 256], pool=True))
    x = torch.rand(batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    targets, kernel = torch.randint(10, (batch_size,)), torch.randn(1, 256, 256 * 9)

    def step(dtype: torch.dtype) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = F.cross_entropy(network(x).float(), targets)
        loss.backward()

    def iterate(dtype: torch.dtype) -> None:
        with patch.object(muon, "has_bfloat16", lambda _: dtype == torch.bfloat16):
            muon.orthogonal(kernel)

    return {"forward and backward": step, "Muon's iteration": iterate}


def seconds(task: Task, dtype: torch.dtype) -> float:
    t0 = time.perf_counter()
    task(dtype)
    return time.perf_counter() - t0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"this processor {'computes in' if has_bfloat16(torch.device('cpu')) else 'emulates'} bfloat16")
    for name, task in tasks(args.batch_size).items():
        turns = [(seconds(task, torch.float32), seconds(task, torch.bfloat16)) for _ in range(1 + args.repeats)][1:]
        ratios = [bf16 / f32 for f32, bf16 in turns]
        f32, bf16 = (statistics.median(side) for side in zip(*turns, strict=True))
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name}: float32 {f32:.3f} s, bfloat16 {bf16:.3f} s, ratio {spread}")


if __name__ == "__main__":
    main()
