"""What a network costs."""

import math
from typing import Any

import torch
from lightning.pytorch.accelerators import XLAAccelerator
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


def forward_flops(network: nn.Module, x: Tensor) -> tuple[int | None, Any]:
    """Floating-point operations, two for a multiply-add, of the matrix products, convolutions and attention of one
    forward pass. A training step takes about three times as many (Kaplan et al., Scaling Laws for Neural Language
    Models, 2020). They are counted on the meta device, without arithmetic and memory; a network that this is not enough
    for, because it looks at its numbers or makes tensors on a device of its choice, is run.

    Returns:
        Their number and what the network gives; twice None where an operation needs real numbers, but it has none.

    Raises:
        RuntimeError, TypeError, ValueError: the network cannot take `x`.
    """
    tensors = dict([*network.named_parameters(), *network.named_buffers()])
    device = next((t.device for t in tensors.values()), x.device)
    modes = [(module, module.training) for module in network.modules()]
    network.eval()  # batch norm must not count this pass
    try:
        return counted(network, {name: t.detach().to("meta") for name, t in tensors.items()}, x.to("meta"))
    except (RuntimeError, TypeError, ValueError) as e:
        if device.type != "meta":
            return counted(network, {}, x.to(device))
        if isinstance(e, NotImplementedError):
            return None, None
        raise
    finally:
        for module, training in modes:
            module.training = training


def counted(network: nn.Module, tensors: dict[str, Tensor], x: Tensor) -> tuple[int, Any]:
    """Operations and output of one pass with these tensors in place of the network's own."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = functional_call(network, tensors, (x,))
    return counter.get_total_flops(), output


def count(n: float, unit: str = "") -> str:
    """1,234 as it is, larger numbers with K, M, G, T or P."""
    power = min(int(math.log10(max(n, 1))) // 3, 5)
    return f"{n:,.0f} {unit}".strip() if n < 10_000 else f"{n / 1000**power:.4g} {' KMGTP'[power]}{unit}"


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 itself. One that emulates it is slow: a CPU took 17 times as long as with
    float32 (benchmarks/precision.py)."""
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
