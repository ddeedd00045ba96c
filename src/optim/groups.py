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
            The layers are the network's `blocks`, what is defined before them, and what is defined after.

    Raises:
        ConfigError: rates by layer, but the network has no `blocks`.
    """
    blocks = list(getattr(network, "blocks", ()))
    if layer_decay != 1 and not blocks:
        raise ConfigError(f"model.layer_decay: {type(network).__name__} has no attribute `blocks` -> leave it out")
    block_of = {p: i for i, block in enumerate(blocks, 1) for p in block.parameters()}
    weights = [p for name, p in network.named_parameters() if is_weight(name, p)]
    hidden = {p for p in weights if p in block_of} if blocks else set(weights[1:-1])
    groups: dict[tuple[bool, bool, float], dict[str, Any]] = {}
    layer = 0
    for name, p in model.named_parameters():
        layer = block_of.get(p, len(blocks) + 1 if layer else 0)
        if not p.requires_grad:
            continue
        key = decays, is_hidden, scale = is_weight(name, p), p in hidden, layer_decay ** (len(blocks) + 1 - layer)
        how = {"hidden": is_hidden, "lr_scale": scale} | ({} if decays else {"weight_decay": 0.0})
        groups.setdefault(key, {"params": [], **how})["params"].append(p)
    return list(groups.values())


def is_weight(name: str, p: nn.Parameter) -> bool:
    return p.ndim > 1 and "weight" in name.rpartition(".")[2]
