"""What a network costs."""

from typing import Any

import torch
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
