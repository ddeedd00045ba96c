"""What each lever of a model that does not fit saves and costs: the peak of memory and the time of a step with it, as a
share of the same step without it.

    python -m benchmarks.levers --repeats 5 --steps 6

A step is forward, loss, backward and optimizer, of a GPT, a ResNet and a ViT on made-up data, on a GPU where there is
one, else on a CPU with one thread, in turn with the side without levers. Memory is what torch's allocator holds at most
in a step, weights and all; the time is the median of a side's steps, on a CPU the processor's time, which other work on
the machine hardly changes. What is compiled is compiled before: that time is told apart.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.models.factory import channels_last
from src.models.language import chunked_losses  # kind: text
from src.models.levers import compile_blocks, recompute_activations
from src.networks.gpt import GPT  # kind: text
from src.networks.resnet import ResNet  # kind: images
from src.networks.vit import ViT  # kind: images

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LEVERS = ("micro-batches", "bf16-mixed", "activation checkpointing", "compile", "checkpointing and compile")
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "GPT": lambda: GPT(dim=192, depth=4, num_heads=4, vocab_size=8192, seq_len=128),  # kind: text
    "ResNet": lambda: channels_last(ResNet([2, 2, 2], [32, 64, 128])),  # kind: images
    "ViT": lambda: ViT(patch_size=4, dim=192, depth=4, num_heads=3, in_channels=3, image_size=(32, 32)),  # kind: images
}
SAMPLES = {"GPT": 8, "ResNet": 64, "ViT": 32}
FEW_STEPS = 2  # before those that are measured: the first allocates the optimizer's states, or compiles


def levers_of(name: str) -> tuple[str, ...]:
    return (*LEVERS, "8-bit states", *(("loss in 8 chunks",) if name == "GPT" else ()))


def data(name: str, share: int) -> tuple[Tensor, Tensor]:
    n = SAMPLES[name] // share
    if name == "GPT":
        tokens = torch.randint(8192, (n, 129), device=DEVICE)
        return tokens[:, :-1], tokens[:, 1:].flatten()
    return torch.randn(n, 3, 32, 32, device=DEVICE), torch.randint(10, (n,), device=DEVICE)


def made(name: str, lever: str) -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], None]]:
    torch.manual_seed(0)
    network: Any = NETWORKS[name]().to(DEVICE)
    blocks = list(network.blocks)
    if "checkpointing" in lever:
        recompute_activations(network, blocks)
    if "compile" in lever:
        compile_blocks(network, blocks, DEVICE)
    optimizer = make_optimizer(network, lever)
    parts = 4 if lever == "micro-batches" else 1

    def step() -> None:
        for _ in range(parts):
            x, targets = data(name, parts)
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=lever == "bf16-mixed"):
                loss = loss_of(network, x, targets, lever)
            (loss / parts).backward()
        optimizer.step()
        optimizer.zero_grad()

    return network, optimizer, step


def loss_of(network: nn.Module, x: Tensor, targets: Tensor, lever: str) -> Tensor:
    # kind: text
    if "chunks" in lever:
        return chunked_losses(network, x, targets, 8).mean()
    # end
    return F.cross_entropy(network(x).flatten(0, -2).float(), targets)


def make_optimizer(network: nn.Module, lever: str) -> torch.optim.Optimizer:
    if lever == "8-bit states":
        from torchao.optim import AdamW8bit

        return AdamW8bit(network.parameters(), lr=1e-4)
    return torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)


def peak_bytes(step: Callable[[], None], held: int) -> int:
    """Of torch's allocator while a step runs; on a CPU from each of its events, where `held` bytes are there before."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    return held + most(profile.profiler.kineto_results.events())


def most(events: list[Any]) -> int:
    """The largest sum of what was allocated less what was freed up to an event."""
    now = largest = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        largest = max(largest, now)
    return largest


def held_bytes(network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Of weights and of the optimizer's states, each once."""
    states = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    plain = [part for t in (*network.parameters(), *network.buffers(), *states) for part in parts_of(t)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in plain}.values())


def parts_of(t: Tensor) -> list[Tensor]:
    """The tensors that one of 8 bits consists of."""
    names = t.__tensor_flatten__()[0] if hasattr(t, "__tensor_flatten__") else ()
    return [getattr(t, name) for name in names] or [t]


def measure(name: str, lever: str, steps: int) -> dict[str, float]:
    gc.collect()
    torch.compiler.reset()  # no more than the files of what was compiled before are left
    network, optimizer, step = made(name, lever)
    t0 = time.perf_counter()
    for _ in range(FEW_STEPS):
        timed(step)
    first = time.perf_counter() - t0
    seconds = statistics.median(timed(step) for _ in range(steps))
    return {
        "seconds": seconds,
        "MiB": peak_bytes(step, held_bytes(network, optimizer)) / 2**20,
        "compiling": max(0.0, first - FEW_STEPS * seconds),
    }


def timed(step: Callable[[], None]) -> float:
    clock = time.perf_counter if DEVICE.type == "cuda" else time.process_time
    t0 = clock()
    step()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return clock() - t0


def spread(values: list[float], form: str = ".2f") -> str:
    middle, least, largest = (f"{v:{form}}" for v in (statistics.median(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({least} to {largest})"


def table(name: str, found: dict[str, list[dict[str, float]]]) -> None:
    base = found[""]
    mib, seconds = (statistics.median(one[key] for one in base) for key in ("MiB", "seconds"))
    print(f"\n{name}, {SAMPLES[name]} samples on {DEVICE.type}: {mib:,.0f} MiB and {1000 * seconds:,.0f} ms a step")
    print("\n| lever | memory | time | compiling, s |\n|---|---|---|---|")
    for lever in list(found)[1:]:
        memory, times = (
            [a[key] / b[key] for a, b in zip(found[lever], base, strict=True)] for key in ("MiB", "seconds")
        )
        compiles = "compile" in lever or "8-bit" in lever
        print(f"| {lever} | {spread(memory)} | {spread(times)} | {first(found[lever]) if compiles else ''} |")


def first(sides: list[dict[str, float]]) -> str:
    """Of the first time alone, because torch keeps what it has compiled for the next ones."""
    return f"{sides[0]['compiling']:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--levers", nargs="+", help="these alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.networks:
        sides = ["", *(args.levers or levers_of(name))]
        found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for i in range(args.repeats):
            for side in reversed(sides) if i % 2 else sides:
                found[side].append(measure(name, side, args.steps))
        table(name, found)


if __name__ == "__main__":
    main()
