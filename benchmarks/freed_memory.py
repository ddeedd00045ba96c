"""What a training step on a CPU gains where freed memory is kept for the next step, as `src/config/build.py` has it.

    python -m benchmarks.freed_memory --repeats 5 --steps 6

Forward and backward of the network of `cifar10_resnet`, without data and optimizer, in bfloat16 where the processor has
it. Both sides run in turn, each time in a process of its own; a side's time is the median of its steps.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time


def step_seconds(keeps: bool, batch_size: int, steps: int) -> list[float]:
    import torch
    from torch.nn import functional as F

    from src.config.build import keep_freed_memory
    from src.models.factory import channels_last
    from src.networks.resnet import ResNet
    from src.run.device import has_bfloat16

    if keeps:
        keep_freed_memory()
    torch.set_num_threads(1)
    network = channels_last(ResNet([0, 1, 1, 1], [32, 64, 256, 256], pool=True))
    x, targets = torch.rand(batch_size, 3, 32, 32), torch.randint(10, (batch_size,))
    x, seconds = x.contiguous(memory_format=torch.channels_last), []
    for _ in range(2 + steps):  # the first two find the memory
        t0 = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16(torch.device("cpu"))):
            loss = F.cross_entropy(network(x).float(), targets)
        loss.backward()
        seconds.append(time.perf_counter() - t0)
    return seconds[2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--side", choices=["keeps", "frees"], help="one side, in this process")
    args = parser.parse_args()
    if args.side:
        print(statistics.median(step_seconds(args.side == "keeps", args.batch_size, args.steps)))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        return
    found: dict[str, list[list[float]]] = {"keeps": [], "frees": []}
    for i in range(args.repeats):
        for side in sorted(found, reverse=bool(i % 2)):
            command = [sys.executable, "-m", "benchmarks.freed_memory", "--side", side]
            command += ["--batch_size", str(args.batch_size), "--steps", str(args.steps)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[side].append([float(line) for line in done.stdout.split()])
    for side, pairs in found.items():
        seconds, gib = zip(*pairs, strict=True)
        times = f"{statistics.median(seconds):.3f} s a step ({min(seconds):.3f} to {max(seconds):.3f})"
        print(f"{side}  {times}, at most {max(gib):.2f} GiB")
    ratios = [a[0] / b[0] for a, b in zip(found["keeps"], found["frees"], strict=True)]
    print(f"ratio  {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
