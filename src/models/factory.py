"""The network, optimizer and schedule that a config names, made with what is known of the data and the run."""

import inspect
import os
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from src.data.loader import out_of_memory
from src.models import cost
from src.optim.groups import parameter_groups
from src.run.errors import ConfigError, KnownError
from src.run.terminal import relative_path

WHOLE = (int, "int", int | None, "int | None")


def accepted(factory: Callable[..., Any]) -> dict[str, bool]:
    """The arguments that a class or function takes, and whether each is a whole number.

    Of a class with **kwargs also those of its bases; of a function with **kwargs, such as torchvision's resnet18, those
    of the class that it is annotated to return.
    """
    target: Any = factory.func if isinstance(factory, partial) else factory
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
    if isinstance(factory, nn.Module):
        raise ConfigError("model.network: a network is given -> give its class, or functools.partial(Class, ...)")
    stated = getattr(factory, "keywords", {})
    takes = accepted(factory)
    used = {name: one_side(value) if takes[name] else value for name, value in facts.items() if name in takes}
    for name, value in used.items():
        if name in stated and one_side(stated[name]) != one_side(value):
            raise ConfigError(f"model.network.{name}: {stated[name]} in the config, {value} in the data -> drop it")
    try:
        return channels_last(factory(**used))
    except Exception as e:  # what the constructors of others raise has no common base
        if isinstance(e, (KnownError, OSError)) or out_of_memory(e):
            raise
        hint = " -> leave out weights, and name them in model.init_from" if stated.get("weights") else ""
        raise ConfigError(f"model.network: {e} (from the data: {used}){origin(e)}{hint}") from e


def one_side(fact: Any) -> Any:
    """The side of a square, for networks that take one number as height and width; other facts as they are."""
    sides = tuple(fact) if isinstance(fact, (tuple, list)) else ()
    return (sides[0] if len({*sides}) == 1 else sides) if sides else fact


def channels_last(network: nn.Module) -> nn.Module:
    """The kernels of 2-d convolutions with channels innermost: the whole network then computes so, which is faster."""
    for p in network.parameters():
        if p.dim() == 4:  # Module.to(memory_format=...) would fail at 3-d convolutions
            p.data = p.data.to(memory_format=torch.channels_last)
    return network


def try_network(network: nn.Module, x: Tensor, wanted: list[int], hint: Callable[[str], str]) -> int | None:
    """Check, without arithmetic, that a network gives logits of the wanted shape for x.

    Args:
        hint: says what to do about a message of torch.

    Returns:
        FLOPs of one sample; None where the network cannot be tried so.
    """
    name = f"model.network: {type(network).__name__}"
    try:
        flops, logits = cost.forward_flops(network, x)
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


def origin(e: BaseException) -> str:
    """` in FILE:LINE`, the last line that an error went through outside of torch and of what calls a network."""
    others = (f"{Path(torch.__path__[0])}{os.sep}", __file__, str(cost.__file__))
    frames = [f for f in traceback.extract_tb(e.__traceback__) if not f.filename.startswith(others)]
    return f" in {relative_path(Path(frames[-1].filename))}:{frames[-1].lineno}" if frames else ""


def build_optimizer(factory: Callable[..., Optimizer], model: nn.Module, network: nn.Module, decay: float) -> Optimizer:
    """The optimizer of a model's parameters, in groups if it has use for them; `decay` is the model's `layer_decay`."""
    groups: list[Any] = parameter_groups(model, network, decay)
    if decay == 1 and "weight_decay" not in accepted(factory):
        groups = [p for group in groups for p in group["params"]]  # LBFGS takes no groups
    optimizer = build("optimizer", factory, groups)
    if isinstance(optimizer, torch.optim.LBFGS):  # takes all gradients as one row, which channels_last forbids
        for p in network.parameters():
            p.data = p.data.contiguous()
    for group in optimizer.param_groups:
        group["lr"] *= group.get("lr_scale", 1.0)
    return optimizer


def build_schedule(factory: Callable[..., Any], optimizer: Optimizer, num_steps: float) -> Any:
    """The schedule, with the number of optimizer steps of the run, which may be infinite, if it asks for it."""
    rates = {group["lr"] for group in optimizer.param_groups}
    names = accepted(factory).keys() & {"num_steps", "total_steps"}
    if names and num_steps == float("inf"):
        raise ConfigError("model.schedule: training has no end -> set trainer.max_steps, or leave the schedule out")
    schedule = build("schedule", partial(factory, **{name: int(num_steps) for name in names}), optimizer)
    if len(rates) > 1 and "max_lr" in optimizer.param_groups[0]:
        raise ConfigError(
            f"model.schedule: {type(schedule).__name__} gives all parameters one rate, but layer_decay or the "
            "optimizer gives them several -> take src.optim.schedules.WarmupCosine"
        )
    return schedule


def build(name: str, factory: Callable[..., Any], argument: Any) -> Any:
    try:
        return factory(argument)
    except (TypeError, ValueError, RuntimeError) as e:
        raise ConfigError(f"model.{name}: {e}") from e
