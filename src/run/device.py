"""What devices there are, and what each computes in."""

from typing import Any

import torch
from lightning.pytorch.accelerators import XLAAccelerator

from src.run.errors import ConfigError


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


def check_devices(accelerator: Any, devices: Any) -> None:
    """Raise ConfigError where this machine lacks them; Lightning's own lines name no key."""
    cuda, mps = torch.cuda.device_count(), int(torch.backends.mps.is_available())
    there = {"gpu": cuda or mps, "cuda": cuda, "mps": mps, "tpu": int(XLAAccelerator.is_available())}
    if accelerator not in there:
        return
    if not there[accelerator]:
        why = " (torch_xla's newest, 2.9, is too old for this torch)" if accelerator == "tpu" else ""
        raise ConfigError(f"trainer.accelerator: no {accelerator} is here that torch can use{why} -> take cpu or auto")
    if isinstance(devices, str):  # "3" are three devices, "0,2" these two
        numbers = [int(n) for n in devices.split(",") if n.strip().isdecimal()]
        devices = numbers if "," in devices else sum(numbers)
    number = max(devices, default=-1) + 1 if isinstance(devices, list) else devices or 0
    if accelerator != "tpu" and number > there[accelerator]:
        text = f"trainer.devices: {devices}, but this machine has {there[accelerator]} ({accelerator})"
        raise ConfigError(f"{text} -> take as many or fewer, or auto")


def check_precision(precision: str, device: torch.device) -> None:
    """Raise ConfigError for one that this device has to emulate."""
    lacks = "bf16" in precision and device.type in ("cpu", "cuda") and not has_bfloat16(device)
    if lacks or (device.type == "cpu" and precision.startswith("16")):
        what = f"trainer.precision: {precision}, which this {device.type} has to emulate, many times slower"
        raise ConfigError(f"{what} -> take auto or 32-true")
