import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights, list_models

from src.run import checkpoint
from src.run.errors import CheckpointError, ConfigError, EnvironmentFault, nearest

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def load_weights(network: nn.Module, source: str) -> str:
    """Take over what fits a network by name and shape.

    Args:
        source: as `init_from` of `src.models.base.Model`.

    Returns:
        A line that says what was taken and what was not.
    """
    by_name = re.fullmatch(r"\w+Weights\.\w+", source) and not Path(source).exists()
    given, wanted = (torchvision_weights(source) if by_name else read_weights(Path(source))), network.state_dict()
    fits = {name: t for name, t in given.items() if name in wanted and t.shape == wanted[name].shape}
    if not fits.keys() & dict(network.named_parameters()).keys():
        raise CheckpointError(
            f"model.init_from: nothing in {source} fits {type(network).__name__}: "
            f"there {listed(given)}; here {listed(wanted)} -> take the weights of such a network"
        )
    network.load_state_dict(fits, strict=False)
    line = f"weights   {len(fits)} of {len(wanted)} tensors from {source}"
    for what, state in (("new here", wanted), ("not used from there", given)):
        rest = {name: t for name, t in state.items() if name not in fits}
        line += f"; {what}: {listed(rest)}" if rest else ""
    return line


def listed(state: dict[str, Tensor]) -> str:
    first = [f"{name} {list(t.shape)}" for name, t in list(state.items())[:4]]
    return ", ".join(first) + (f" and {len(state) - 4} more" if len(state) > 4 else "")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by their names in the network, of a run folder's best checkpoint or of a file."""
    saved = checkpoint.read(path / "checkpoints" / "best.ckpt" if path.is_dir() else path)
    state = saved.get("state_dict", saved)
    return {name.removeprefix("network."): t for name, t in state.items() if isinstance(t, Tensor)}


def torchvision_weights(name: str) -> dict[str, Tensor]:
    enums = [get_model_weights(model) for model in list_models()]
    known = {f"{enum.__name__}.{member}": enum[member] for enum in enums for member in enum.__members__}
    if name not in known:
        raise ConfigError(f"model.init_from: torchvision has no weights {name}{nearest(name, known)}")
    try:
        return dict(known[name].get_state_dict(progress=False, check_hash=True, weights_only=True))
    except Exception as e:  # what a broken file makes torch raise has no common base
        what, folder = str(e).partition("\n")[0], f"{torch.hub.get_dir()}/checkpoints"
        raise EnvironmentFault(f"model.init_from: {known[name].url}: {what} -> put it into {folder} by hand") from e


def freeze(network: nn.Module, patterns: Sequence[str]) -> None:
    """Take parameters out of training; a batch norm whose weight is frozen keeps its statistics, too."""
    parameters = dict(network.named_parameters())
    for pattern in patterns:
        found = fnmatch.filter(parameters, pattern)
        if not found:
            parts = ", ".join(f"{name}.*" for name, _ in network.named_children())
            raise ConfigError(f"model.freeze: no parameter is called {pattern}; there are {parts}")
        for name in found:
            parameters[name].requires_grad_(False)
    if not any(p.requires_grad for p in parameters.values()):
        raise ConfigError("model.freeze: nothing is left to train -> freeze less")
    for module in network.modules():
        if isinstance(module, BATCH_NORMS) and module.affine and not module.weight.requires_grad:
            module.eval()  # Lightning puts back each module's own mode after validation
