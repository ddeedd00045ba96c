import fnmatch
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights, list_models

from src.run import checkpoint
from src.run.errors import CheckpointError, ConfigError, EnvironmentFault, nearest

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
OWN = "the network's own"  # weights, where its argument `pretrained` is true
HOLDERS = ("state_dict", "model", "model_state_dict")  # under which a file may have the weights of a network
WRAPPERS = re.compile(r"(network|module|model|_orig_mod)\.")  # which put this before the names of weights
# What weights expect of their input, and the key for it.
KEYS = {"in_channels": "data.channels", "image_size": "data.image_size", "mean": "data.mean", "std": "data.std"}


def load_weights(network: nn.Module, source: str, own: Callable[[], nn.Module], data: dict[str, Any]) -> str:
    """Take over what fits a network by name and shape; gives a line that says what was taken and what was not, and one
    of what the weights expect otherwise. `own` makes the network with the weights of OWN."""
    wanted = network.state_dict()
    by_name = re.fullmatch(r"\w+Weights\.\w+", source) and not Path(source).exists()
    given = fetched(source, own) if by_name or source == OWN else read_weights(Path(source), wanted)
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
    return line + unlike(expected_images(source, network), data)


def listed(state: dict[str, Tensor]) -> str:
    first = [f"{name} {list(t.shape)}" for name, t in list(state.items())[:4]]
    return ", ".join(first) + (f" and {len(state) - 4} more" if len(state) > 4 else "")


def read_weights(path: Path, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by their names in the network, of a run folder's best checkpoint or of a file."""
    saved = checkpoint.read(path / "checkpoints" / "best.ckpt" if path.is_dir() else path)
    state = next((saved[name] for name in HOLDERS if isinstance(saved.get(name), dict)), saved)
    return {in_network(str(name), wanted): t for name, t in state.items() if isinstance(t, Tensor)}


def in_network(name: str, wanted: dict[str, Tensor]) -> str:
    name = name.replace("._orig_mod.", ".")  # a compiled part
    while name not in wanted and (wrapper := WRAPPERS.match(name)):
        name = name[wrapper.end() :]
    return name


@cache
def torchvisions() -> dict[str, Any]:
    enums = [get_model_weights(model) for model in list_models()]
    return {f"{enum.__name__}.{member}": enum[member] for enum in enums for member in enum.__members__}


def fetched(source: str, own: Callable[[], nn.Module]) -> dict[str, Tensor]:
    known = torchvisions().get(source)
    if not known and source != OWN:
        raise ConfigError(f"model.init_from: torchvision has no weights {source}{nearest(source, torchvisions())}")
    try:
        return known.get_state_dict(progress=False, check_hash=True, weights_only=True) if known else own().state_dict()
    except ConfigError:  # there are no such weights
        raise
    except Exception as e:  # what a broken file makes torch raise has no common base
        what = f"model.init_from: {known.url}" if known else "model.network.pretrained"
        todo = "fetch it where there is a network and give its path to model.init_from"
        todo += f", or put it into {torch.hub.get_dir()}/checkpoints" if known else ""
        raise EnvironmentFault(f"{what}: {str(e).partition(chr(10))[0]} -> {todo}") from e


def expected_images(source: str, network: nn.Module) -> dict[str, Any]:
    """What torchvision's weights expect, also of a file that is called as there, or timm's of such a network."""
    file, theirs = f"/{Path(source).name}", dict(getattr(network, "pretrained_cfg", {}))
    found = [w.transforms() for name, w in torchvisions().items() if source == name or w.url.endswith(file)]
    if found and hasattr(found[0], "crop_size"):
        theirs = vars(found[0]) | {"input_size": [3, *found[0].crop_size * 2]}
    if "input_size" in theirs:
        theirs |= {"in_channels": theirs["input_size"][0], "image_size": theirs["input_size"][1:]}
    return theirs if not Path(source).is_dir() else {}  # a run


def unlike(wanted: dict[str, Any], data: dict[str, Any]) -> str:
    differ = []
    for name in [name for name in KEYS if name in wanted and name in data]:
        want, have = torch.tensor(wanted[name]), torch.tensor(data[name])
        if (want - have).abs().max() > 0.01:
            here = [round(value, 3) for value in have.flatten().tolist()]
            differ.append(f"{name} {wanted[name]}, here {here} -> {KEYS[name]}")
    return f"\nweights   expect {'; '.join(differ)}" if differ else ""


def chosen(network: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters that patterns of `model.freeze` name."""
    parameters, found = dict(network.named_parameters()), dict[str, nn.Parameter]()
    for pattern in patterns:
        names = fnmatch.filter(parameters, pattern)
        if not names:
            parts = ", ".join(f"{name}.*" for name, _ in network.named_children())
            raise ConfigError(f"model.freeze: no parameter is called {pattern}; there are {parts}")
        found |= {name: parameters[name] for name in names}
    return found


def freeze(network: nn.Module, patterns: Sequence[str], frozen: bool = True, gradients: bool = False) -> None:
    """Take parameters out of training, or back; a batch norm whose weight is frozen keeps its statistics, too. With
    `gradients` these are computed all the same."""
    named = chosen(network, patterns)
    if all(name in named or not p.requires_grad for name, p in network.named_parameters()):
        raise ConfigError("model.freeze: nothing is left to train -> freeze less")
    for p in named.values():
        p.requires_grad_(gradients or not frozen)
    for name, module in network.named_modules():
        if isinstance(module, BATCH_NORMS) and f"{name}.weight" in named:
            module.train(not frozen)  # Lightning puts back each module's own mode after validation
