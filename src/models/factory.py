"""The network, groups of parameters and schedule that a config names, made with what is known of data and run."""

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from src.run.errors import ConfigError, KnownError
from src.run.faults import out_of_memory
from src.run.terminal import relative_path

WHOLE = (int, "int", int | None, "int | None")
TIMM = {"in_channels": "in_chans", "image_size": "img_size"}  # what timm calls these facts


def accepted(factory: Callable[..., Any]) -> dict[str, bool]:
    """The arguments that a class or function takes, and whether each is a whole number.

    Of a class with **kwargs also those of its bases; of a function with **kwargs, such as torchvision's resnet18, those
    of the class that it is annotated to return.
    """
    target: Any = factory.func if isinstance(factory, partial) else factory
    if target is getattr(sys.modules.get("timm"), "create_model", None):  # gives all to the function that it names
        name = str(getattr(factory, "keywords", {}).get("model_name")).partition(".")[0]
        target = vars(sys.modules["timm.models"]).get(name, target)
    made = target if inspect.isclass(target) else inspect.signature(target).return_annotation
    takers = [] if made is target else [target]
    takers += [base.__init__ for base in getattr(made, "__mro__", ()) if "__init__" in vars(base)]
    found: dict[str, bool] = {}
    for taker in takers:
        parameters = inspect.signature(taker).parameters
        found = {name: type(p.default) is int or p.annotation in WHOLE for name, p in parameters.items()} | found
        if all(p.kind != p.VAR_KEYWORD for p in parameters.values()):
            break
    return found


def build_network(factory: Callable[..., nn.Module], facts: dict[str, Any]) -> nn.Module:
    """The network, with those facts of the data that it takes by name.

    Raises:
        ConfigError: the config contradicts a fact, or the network cannot be built so.
    """
    stated = getattr(factory, "keywords", {})
    takes = accepted(factory)
    called = {name if name in takes else TIMM.get(name, name): value for name, value in facts.items()}
    used = {name: one_side(value) if takes[name] else value for name, value in called.items() if name in takes}
    for name, value in used.items():
        if name in stated and one_side(stated[name]) != one_side(value):
            raise ConfigError(f"model.network.{name}: {stated[name]} in the config, {value} in the data -> drop it")
    try:
        return channels_last(factory(**used))
    except Exception as e:  # what the constructors of others raise has no common base
        if isinstance(e, (KnownError, OSError)) or out_of_memory(e):
            raise
        raise ConfigError(f"model.network: {e} (from the data: {used}){origin(e)}") from e


def check_takes(factory: Callable[..., nn.Module], facts: dict[str, str]) -> None:
    """Raise ConfigError where a network has no argument for a fact, whose value says what to do then."""
    for name, hint in facts.items():
        if name not in accepted(factory):
            target = factory.func if isinstance(factory, partial) else factory
            raise ConfigError(f"model.network: {target.__name__} takes no {name}, which the data have -> {hint}")


def one_side(fact: Any) -> Any:
    """The side of a square, for networks that take one number as height and width; other facts as they are."""
    if isinstance(fact, (tuple, list)):
        return fact[0] if len(set(fact)) == 1 else tuple(fact)
    return fact


def channels_last(network: nn.Module) -> nn.Module:
    """The kernels of 2-d convolutions with channels innermost: the whole network then computes so, which is faster."""
    for p in network.parameters():
        if p.dim() == 4:  # Module.to(memory_format=...) would fail at 3-d convolutions
            p.data = p.data.to(memory_format=torch.channels_last)
    return network


def try_network(network: nn.Module, x: Tensor, wanted: list[int], hint: Callable[[str], str]) -> int | None:
    """Check that a network gives logits of the wanted shape for x; `hint` says what to do about a message of torch.

    Returns:
        FLOPs of one sample; None where the network cannot be tried so.
    """
    name = f"model.network: {type(network).__name__}"
    try:
        flops, logits = forward_flops(network, x)
    except (RuntimeError, TypeError, ValueError) as e:
        what, todo = " ".join(str(e).split())[:200], hint(str(e))
        todo = f" -> {todo}" if todo else ""
        raise ConfigError(f"{name} cannot take x {list(x.shape)}: {what}{origin(e)}{todo}") from e
    if flops is None:
        return None
    given = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if given != wanted:
        wrong = f"{name} gives {given} for x {list(x.shape)}, where logits {wanted} are wanted"
        raise ConfigError(f"{wrong} -> let forward return these alone, and size its last layer by a fact of the data")
    return flops // len(x)


def forward_flops(network: nn.Module, x: Tensor) -> tuple[int | None, Any]:
    """Floating-point operations, two for a multiply-add, of one forward pass, and its output.

    A training step takes about three times as many (Kaplan et al., Scaling Laws for Neural Language Models, 2020). They
    are counted on the meta device, without arithmetic and memory. A network that this is not enough for, because it
    looks at its numbers or makes tensors on a device of its choice, is run; if it has no numbers, both are None.
    """
    tensors = dict([*network.named_parameters(), *network.named_buffers()])
    device = next((t.device for t in tensors.values()), x.device)
    modes = [(module, module.training) for module in network.modules()]
    network.eval()  # batch norm must not count this pass
    try:
        return count_flops(network, {name: t.detach().to("meta") for name, t in tensors.items()}, x.to("meta"))
    except (RuntimeError, TypeError, ValueError) as e:
        if device.type != "meta":
            return count_flops(network, {}, x.to(device))
        if isinstance(e, NotImplementedError):
            return None, None
        raise
    finally:
        for module, training in modes:
            module.training = training


def count_flops(network: nn.Module, tensors: dict[str, Tensor], x: Tensor) -> tuple[int, Any]:
    """Operations and output of one pass with these tensors in place of the network's own."""
    eager = torch.compiler.set_stance("force_eager")
    with eager, FlopCounterMode(display=False) as counter, torch.no_grad():
        output = functional_call(network, tensors, (x,))
    return counter.get_total_flops(), output


def origin(e: BaseException) -> str:
    """` in FILE:LINE`, the last line that an error went through outside of torch and of what calls a network."""
    others = (f"{torch.__path__[0]}{os.sep}", __file__)
    frames = [f for f in traceback.extract_tb(e.__traceback__) if not f.filename.startswith(others)]
    return f" in {relative_path(Path(frames[-1].filename))}:{frames[-1].lineno}" if frames else ""


def parameter_groups(
    model: nn.Module, network: nn.Module, blocks: list[nn.Module], later: Collection[nn.Parameter] = ()
) -> list[dict[str, Any]]:
    """The parameters that are trained, or will be `later`, in groups for any optimizer.

    Weights decay; what has one dimension (biases, norms) or is not called a weight (tokens, positions) does not. A
    group says with `hidden` whether it holds the matrices that Muon is for: those inside the network's blocks.
    """
    weights = [p for name, p in network.named_parameters() if is_weight(name, p)]
    hidden = {p for block in blocks for p in block.parameters()}.intersection(weights) if blocks else {*weights[1:-1]}
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad or p in later:
            decays = is_weight(name, p)
            how = {"hidden": p in hidden} | ({} if decays else {"weight_decay": 0.0})
            groups.setdefault((decays, p in hidden), {"params": [], **how})["params"].append(p)
    return list(groups.values())


def is_weight(name: str, p: nn.Parameter) -> bool:
    return p.ndim > 1 and "weight" in name.rpartition(".")[2]


def build_schedule(factory: Callable[..., Any], optimizer: Optimizer, num_steps: float) -> Any:
    """The schedule, with the number of optimizer steps of the run, which may be infinite, if it asks for it."""
    names = accepted(factory).keys() & {"num_steps", "total_steps"}
    if names and num_steps == float("inf"):
        raise ConfigError("model.schedule: training has no end -> set trainer.max_steps, or leave the schedule out")
    return build("schedule", partial(factory, **{name: int(num_steps) for name in names}), optimizer)


def build(name: str, factory: Callable[..., Any], argument: Any) -> Any:
    try:
        return factory(argument)
    except (TypeError, ValueError, RuntimeError) as e:
        raise ConfigError(f"model.{name}: {e}") from e
