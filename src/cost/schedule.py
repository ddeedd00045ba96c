"""Time, money and failures of a whole training."""

import math

DEVICE_HOURS_PER_FAILURE = 50_700  # 419 interruptions in 54 days on 16,384 GPUs (The Llama 3 Herd of Models, 2024)
WRITTEN_PER_SEC = 1e9  # bytes of a checkpoint, to a disk that is shared
LARGE = 1_000_000_000  # parameters
# Shares of the peak that are reached without measuring: large language models 0.38 to 0.46 (Llama 3; PaLM, 2022), with
# room on both sides; small networks far less.
REACHED = {True: (0.3, 0.5), False: (0.05, 0.3)}


def step_seconds(flops: float, peak: float, is_large: bool) -> tuple[float, float]:
    """Shortest and longest, of operations and peak of one device; infinite where the peak is not known."""
    low, high = REACHED[is_large]
    return (flops / peak / high, flops / peak / low) if peak else (math.inf, math.inf)


def failures(devices: int, hours: float) -> float:
    return devices * hours / DEVICE_HOURS_PER_FAILURE


def checkpoint_interval(size: int, devices: int) -> float:
    """Seconds between two checkpoints of so many bytes that lose least time (Young, A first order approximation to the
    optimum checkpoint interval, 1974)."""
    between_failures = DEVICE_HOURS_PER_FAILURE * 3600 / devices
    return math.sqrt(2 * size / WRITTEN_PER_SEC * between_failures)
