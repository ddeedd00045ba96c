from collections.abc import Container
from typing import Any

from torch import nn

from src.run.errors import ConfigError


def parameter_groups(model: nn.Module, network: nn.Module, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """The trainable parameters, in groups for any optimizer of torch.

    Weights decay; what has one dimension (biases, norms) or is not called a weight (tokens, positions) does not. A
    group says with `hidden` whether it holds the matrices that Muon is for, and with `lr_scale` the share of the
    learning rate that its layer gets.

    Args:
        layer_decay: a layer's rate, as a share of that of the next one towards the head (Clark et al., ELECTRA, 2020).
            The layers are the network's `blocks`, what is defined before them, and what is defined after; of a network
            without `blocks` its parts, sequences among them opened.

    Raises:
        ConfigError: rates by layer, but the network has one layer only.
    """
    blocks = getattr(network, "blocks", ())
    hidden = hidden_matrices(network, {p for block in blocks for p in block.parameters()})
    if layer_decay != 1 and not len(blocks):
        blocks = parts(network)[:-1]
        if not blocks:
            raise ConfigError(f"model.layer_decay: {type(network).__name__} has one layer only -> leave it out")
    layer_of = {p: i for i, block in enumerate(blocks, 1) for p in block.parameters()}
    groups: dict[tuple[bool, bool, float], dict[str, Any]] = {}
    layer = 0
    for name, p in model.named_parameters():
        layer = layer_of.get(p, len(blocks) + 1 if layer else 0)
        if p.requires_grad:
            scale = layer_decay ** (len(blocks) + 1 - layer)
            key = (is_weight(name, p), p in hidden, scale)
            group = groups.setdefault(key, {"params": [], "hidden": key[1], "lr_scale": scale})
            group["params"].append(p)
            if not key[0]:
                group["weight_decay"] = 0.0
    return list(groups.values())


def parts(network: nn.Module) -> list[nn.Module]:
    """A network's own modules that have parameters, in order; a sequence counts as what is in it."""
    rows = (m if isinstance(m, (nn.Sequential, nn.ModuleList)) else [m] for m in network.children())
    return [module for row in rows for module in row if any(True for _ in module.parameters())]


def is_weight(name: str, p: nn.Parameter) -> bool:
    return p.ndim > 1 and "weight" in name.rpartition(".")[2]


def hidden_matrices(network: nn.Module, in_blocks: Container[nn.Parameter]) -> set[nn.Parameter]:
    """The weights inside the blocks; of a network without blocks, all but the first and the last."""
    weights = [p for name, p in network.named_parameters() if is_weight(name, p)]
    return {p for p in weights if p in in_blocks} if in_blocks else set(weights[1:-1])
