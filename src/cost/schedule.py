"""Time and failures of a whole training."""

import math

DEVICE_HOURS_PER_FAILURE = 50_700  # 419 interruptions in 54 days on 16,384 GPUs (The Llama 3 Herd of Models, 2024)
WRITTEN_PER_SEC = 1e9  # bytes of a checkpoint, to a disk that is shared


def reached(parameters: int, is_language: bool) -> tuple[float, float]:
    """Most and least of a device's peak that is reached, where it is not measured: large language models 0.38 to 0.46
    (Llama 3; PaLM, 2022), with room on both sides; smaller networks far less."""
    return (0.5, 0.3) if is_language and parameters >= 1e9 else (0.3, 0.05)


def checkpoint_interval(size: int, devices: int) -> float:
    """Seconds between two checkpoints of so many bytes that lose least time (Young, A first order approximation to the
    optimum checkpoint interval, 1974)."""
    return math.sqrt(2 * size / WRITTEN_PER_SEC * DEVICE_HOURS_PER_FAILURE * 3600 / devices)
