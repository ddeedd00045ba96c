"""What devices can do, by their makers' data sheets: dense figures, which are half of those "with sparsity"."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from src.run.errors import ConfigError, nearest


@dataclass(frozen=True)
class Device:
    """`memory_gib` is what a process finds, which is less than the label's round number; matrix products in TFLOP/s;
    `link` is GB/s to another device of the machine. 0: it has no such arithmetic, or nobody knows."""

    name: str
    kind: str
    memory_gib: float = 0.0
    bf16: float = 0.0
    fp16: float = 0.0
    tf32: float = 0.0
    fp32: float = 0.0
    link: float = 25.0  # PCIe 4.0 x16

    def peak(self, precision: str) -> float:
        """FLOP/s in a precision of Lightning's."""
        half = (self.bf16 or self.fp16) if "16" in precision else 0.0  # 16-mixed is planned as bf16-mixed
        tf32 = self.tf32 if torch.get_float32_matmul_precision() != "highest" else 0.0
        return 1e12 * (half or tf32 or self.fp32)


TABLE = {
    device.name: device
    for device in (
        # NVIDIA A100 datasheet, 2021; H100 datasheet, 2023 (SXM, PCIe, NVL); H200 datasheet, 2024
        Device("a100_40", "cuda", 39.4, 312, 312, 156, 19.5, 300),
        Device("a100_80", "cuda", 79.1, 312, 312, 156, 19.5, 300),
        Device("a100_40_pcie", "cuda", 39.4, 312, 312, 156, 19.5),
        Device("a100_80_pcie", "cuda", 79.1, 312, 312, 156, 19.5),
        Device("h100", "cuda", 79.1, 989, 989, 495, 67, 450),
        Device("h100_pcie", "cuda", 79.1, 756, 756, 378, 51),
        Device("h100_nvl", "cuda", 93.1, 835, 835, 417, 60, 300),
        Device("h200", "cuda", 139.8, 989, 989, 495, 67, 450),
        # NVIDIA DGX B200 datasheet, 2024, an eighth of it
        Device("b200", "cuda", 178.3, 2250, 2250, 1125, 75, 900),
        # NVIDIA L4, L40S, T4, V100 (SXM2) and A10G datasheets
        Device("l4", "cuda", 22.0, 121, 121, 60, 30.3),
        Device("l40s", "cuda", 44.4, 362, 362, 183, 91.6),
        Device("t4", "cuda", 14.6, 0, 65, 0, 8.1, 12),
        Device("v100_16", "cuda", 15.8, 0, 125, 0, 15.7, 150),
        Device("v100_32", "cuda", 31.7, 0, 125, 0, 15.7, 150),
        Device("a10g", "cuda", 22.0, 70, 70, 35, 31.5),
        # NVIDIA whitepapers: Ampere GA102; Ada GPU architecture; RTX Blackwell; sums in float32
        Device("rtx3090", "cuda", 23.6, 71, 71, 35.6, 35.6),
        Device("rtx4090", "cuda", 23.6, 165, 165, 82.6, 82.6),
        Device("rtx5090", "cuda", 31.3, 209, 209, 105, 105, 50),
        # AMD Instinct MI300X data sheet, 2023
        Device("mi300x", "cuda", 191.5, 1307, 1307, 654, 163, 448),
        # Google Cloud TPU documentation, links in one direction; float32 is multiplied in bfloat16
        Device("tpu_v4", "xla", 31.0, 275, 0, 0, 275, 300),
        Device("tpu_v5e", "xla", 15.5, 197, 0, 0, 197, 200),
        Device("tpu_v5p", "xla", 94.0, 459, 0, 0, 459, 600),
        Device("tpu_v6e", "xla", 31.0, 918, 0, 0, 918, 400),
    )
}

# Words that make another device of a name, often a slower one.
OTHERS = {"pcie", "nvl", "laptop", "mobile", "max", "ti", "d", "mig"}


def named(name: str) -> Device:
    """Raises ConfigError for one that is not in the table."""
    known = TABLE.get(name.lower().replace("-", "_"))
    if known is None:
        raise ConfigError(f"--device: {name} is not known{nearest(name, TABLE) or f' -> take one of {[*TABLE]}'}")
    return known


def here(device: torch.device) -> Device:
    """A device of this machine; a GPU has the speeds of the table, if it is in it."""
    if device.type != "cuda":
        return Device(device.type, device.type, host_memory() / 2**30)
    found = torch.cuda.get_device_properties(device)
    gib = found.total_memory / 2**30
    return replace(called(found.name) or Device("", "cuda"), name=found.name, memory_gib=gib)


def called(name: str) -> Device | None:
    """The device of the table that a driver calls so ("NVIDIA A100-SXM4-80GB"), by whole words."""
    words = {*re.split(r"[^a-z0-9]+", name.lower().replace("rtx ", "rtx"))}
    words = {word.removesuffix("gb") for word in words}
    for key in sorted(TABLE, key=len, reverse=True):
        own = {*key.split("_")}
        if own <= words and not words & OTHERS - own:
            return TABLE[key]
    return None


def host_memory() -> int:
    """Bytes of main memory that this process may use: the machine's, or its container's if that has a limit."""
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(pages, int(text)) if text.isdigit() else pages
