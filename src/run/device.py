"""What a device computes in."""

import torch
from lightning.pytorch.accelerators import XLAAccelerator


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 itself. One that emulates it is slow: a CPU took 17 times as long as with
    float32 (docs/results.md)."""
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def fastest_precision(accelerator: str) -> str:
    """What `trainer.precision: auto` stands for: bf16-mixed on a GPU or CPU that computes in bfloat16, else 32-true."""
    if accelerator == "tpu" or (accelerator == "auto" and XLAAccelerator.is_available()):
        return "32-true"  # in which a TPU multiplies in bfloat16 of its own accord
    found = None if accelerator == "cpu" else torch.accelerator.current_accelerator(check_available=True)
    return "bf16-mixed" if has_bfloat16(found or torch.device("cpu")) else "32-true"
