"""What devices can do, by their makers' data sheets: dense figures, which are half of those "with sparsity"."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from src.run.errors import ConfigError, nearest

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """Speeds in TFLOP/s; `memory_gib` is what a process finds, less than the label's round number; `link` is GB/s to
    the other devices of a machine, in one direction. A speed of 0: it has no such arithmetic, or nobody knows."""

    name: str
    kind: str
    memory_gib: float
    bandwidth: float  # GB/s
    bf16: float
    fp16: float
    tf32: float
    fp32: float
    link: float = 25.0  # PCIe 4.0 x16, as it is reached

    def peak(self, precision: str) -> float:
        """FLOP/s of matrix products in a precision of Lightning's."""
        half = self.bf16 if "bf16" in precision else self.fp16 if "16" in precision else 0.0
        tf32 = self.tf32 if torch.get_float32_matmul_precision() != "highest" else 0.0
        return 1e12 * (half or tf32 or self.fp32)


# kind, memory, bandwidth, bf16, fp16, tf32, fp32, link
TABLE = {
    # NVIDIA A100 datasheet, 2021
    "a100_40": ("cuda", 39.4, 1555, 312, 312, 156, 19.5, 300),
    "a100_80": ("cuda", 79.1, 2039, 312, 312, 156, 19.5, 300),
    # NVIDIA H100 datasheet, 2023 (SXM, PCIe, NVL); H200 datasheet, 2024
    "h100": ("cuda", 79.1, 3350, 989, 989, 495, 67, 450),
    "h100_pcie": ("cuda", 79.1, 2000, 756, 756, 378, 51, 25),
    "h100_nvl": ("cuda", 93.1, 3900, 835, 835, 417, 60, 300),
    "h200": ("cuda", 139.8, 4800, 989, 989, 495, 67, 450),
    # NVIDIA DGX B200 datasheet, 2024, an eighth of it
    "b200": ("cuda", 178.3, 8000, 2250, 2250, 1125, 75, 900),
    # NVIDIA L4, L40S, T4, V100 (SXM2) and A10G datasheets
    "l4": ("cuda", 22.0, 300, 121, 121, 60, 30.3, 25),
    "l40s": ("cuda", 44.4, 864, 362, 362, 183, 91.6, 25),
    "t4": ("cuda", 14.6, 320, 0, 65, 0, 8.1, 12),
    "v100_16": ("cuda", 15.8, 900, 0, 125, 0, 15.7, 150),
    "v100_32": ("cuda", 31.7, 900, 0, 125, 0, 15.7, 150),
    "a10g": ("cuda", 22.0, 600, 70, 70, 35, 31.5, 25),
    # NVIDIA whitepapers: Ampere GA102, Ada GPU architecture, RTX Blackwell; sums in float32
    "rtx3090": ("cuda", 23.6, 936, 71, 71, 35.6, 35.6, 25),
    "rtx4090": ("cuda", 23.6, 1008, 165, 165, 82.6, 82.6, 25),
    "rtx5090": ("cuda", 31.3, 1792, 209, 209, 105, 105, 50),
    # AMD Instinct MI300X data sheet, 2023
    "mi300x": ("cuda", 191.5, 5300, 1307, 1307, 654, 163, 448),
    # Google Cloud TPU documentation; float32 is multiplied in bfloat16
    "tpu_v4": ("xla", 31.0, 1228, 275, 0, 0, 275, 150),
    "tpu_v5e": ("xla", 15.5, 819, 197, 0, 0, 197, 100),
    "tpu_v5p": ("xla", 94.0, 2765, 459, 0, 0, 459, 300),
    "tpu_v6e": ("xla", 31.0, 1640, 918, 0, 0, 918, 200),
}


def named(name: str) -> Device:
    """Raises ConfigError for one that is not in the table."""
    key = name.lower().replace("-", "_")
    if key not in TABLE:
        hint = nearest(key, TABLE) or f" -> take one of {', '.join(TABLE)}"
        raise ConfigError(f"--device: {name} is not known{hint}")
    return Device(key, *TABLE[key])


def here(device: torch.device) -> Device:
    """The device that training would use on this machine; a GPU has the speeds of the table, if it is in it."""
    if device.type != "cuda":
        return Device(device.type, device.type, host_memory() / GIB, *[0.0] * 5)
    found = torch.cuda.get_device_properties(device)
    words = found.name.lower().replace(" ", "")
    fits = [key for key in TABLE if key.split("_")[0] in words]
    known = named(fits[0]) if fits else Device(found.name, "cuda", 0.0, *[0.0] * 5)
    return Device(found.name, "cuda", found.total_memory / GIB, *list(vars(known).values())[3:])


def host_memory() -> int:
    """Bytes of main memory that this process may use: the machine's, or its container's if that has a limit."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(pages, int(text)) if text.isdigit() else pages
