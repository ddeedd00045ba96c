"""Beginning with weights that are there, and keeping some of them as they are."""

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import get_model_weights, list_models

from src.run import checkpoint as files
from src.run.errors import CheckpointError, ConfigError, EnvironmentFault, nearest


def load_weights(network: nn.Module, path: str) -> str:
    """Take over what fits a network by name and shape.

    Args:
        path: a run folder, of which the best checkpoint is taken; a checkpoint; a file of weights alone; or the name of
            torchvision's own weights, which are downloaded once.

    Returns:
        A line that says what was taken and what was not.

    Raises:
        CheckpointError: the file is missing or damaged, or no parameter fits.
        ConfigError, EnvironmentFault: torchvision has no such weights, or they cannot be fetched.
    """
    by_name = re.fullmatch(r"\w+Weights\.\w+", path) and not Path(path).exists()
    given, own = pretrained(path) if by_name else read_weights(Path(path)), network.state_dict()
    fits = {name: t for name, t in given.items() if name in own and t.shape == own[name].shape}
    if not fits.keys() & dict(network.named_parameters()).keys():
        raise CheckpointError(
            f"model.init_from: nothing in {path} fits {type(network).__name__}: "
            f"there {listed(given)}; here {listed(own)} -> take the weights of such a network"
        )
    network.load_state_dict(fits, strict=False)
    new = {name: t for name, t in own.items() if name not in fits}
    unused = {name: t for name, t in given.items() if name not in fits}
    parts = [f"{len(fits)} of {len(own)} tensors from {path}"]
    parts += [f"new here: {listed(new)}"] if new else []
    parts += [f"not used from there: {listed(unused)}"] if unused else []
    return f"weights   {'; '.join(parts)}"


def pretrained(name: str) -> dict[str, Tensor]:
    """Weights of torchvision, such as `ResNet18_Weights.DEFAULT`."""
    known = {
        f"{enum.__name__}.{w}": enum[w] for enum in map(get_model_weights, list_models()) for w in enum.__members__
    }
    if name not in known:
        raise ConfigError(f"model.init_from: torchvision has no weights {name}{nearest(name, known)}")
    url = known[name].url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    try:
        return dict(known[name].get_state_dict(progress=False, check_hash=True, weights_only=True))
    except Exception as e:  # what a broken file makes torch raise has no common base
        if file.exists():
            what = str(e).splitlines()[0] if str(e) else type(e).__name__
            raise CheckpointError(f"model.init_from: {file}: {what} -> delete it, so that it is fetched again") from e
        raise EnvironmentFault(f"model.init_from: {url}: {e} -> put the file into {file.parent} by hand") from e


def read_weights(path: Path) -> dict[str, Tensor]:
    """Names, as the network has them, and tensors."""
    saved = files.read(path / "checkpoints" / "best.ckpt" if path.is_dir() else path)
    state = saved.get("state_dict", saved)
    return {name.removeprefix("network."): t for name, t in state.items() if isinstance(t, Tensor)}


def listed(state: dict[str, Tensor]) -> str:
    first = [f"{name} {list(t.shape)}" for name, t in list(state.items())[:4]]
    return ", ".join(first) + (f" and {len(state) - 4} more" if len(state) > 4 else "")


def freeze(network: nn.Module, patterns: Sequence[str]) -> None:
    """Take parameters out of training; a batch norm whose weight is frozen keeps its statistics, too.

    Raises:
        ConfigError: a pattern matches no parameter, or none is left to train.
    """
    parameters = dict(network.named_parameters())
    for pattern in patterns:
        found = fnmatch.filter(parameters, pattern)
        if not found:
            groups = [f"{name}.*" for name, _ in network.named_modules() if name]
            tops = ", ".join(f"{name}.*" for name, _ in network.named_children())
            hint = nearest(pattern, [*parameters, *groups]) or f"; there are {tops}"
            raise ConfigError(f"model.freeze: no parameter is called {pattern}{hint}")
        for name in found:
            parameters[name].requires_grad_(False)
    if not any(p.requires_grad for p in parameters.values()):
        raise ConfigError("model.freeze: nothing is left to train -> freeze less")
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.weight is not None and not module.weight.requires_grad:
            module.eval()  # Lightning puts back each module's own mode after validation
