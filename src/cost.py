"""What a network costs."""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


def forward_flops(network: nn.Module, x: Tensor) -> int | None:
    """Floating-point operations, two for a multiply-add, of the matrix products, convolutions and attention of one
    forward pass; counted on the meta device, so without arithmetic and memory. A training step takes about three times
    as many (Kaplan et al., Scaling Laws for Neural Language Models, 2020).

    Returns:
        None where an operation needs real numbers.

    Raises:
        RuntimeError, TypeError, ValueError: the network cannot take `x`.
    """
    tensors = [*network.named_parameters(), *network.named_buffers()]
    modes = [(module, module.training) for module in network.modules()]
    network.eval()  # batch norm must not count this pass
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            functional_call(network, {name: t.detach().to("meta") for name, t in tensors}, (x.to("meta"),))
    except NotImplementedError:
        return None
    finally:
        for module, training in modes:
            module.training = training
    return counter.get_total_flops()


def count(n: float, unit: str = "") -> str:
    """1,234 as it is, larger numbers with K, M, G, T or P."""
    power = min(int(math.log10(max(n, 1))) // 3, 5)
    return f"{n:,.0f} {unit}".strip() if n < 10_000 else f"{n / 1000**power:.4g} {' KMGTP'[power]}{unit}"
