"""Networks, optimizers and schedules from what a config names, with what is known of data and run."""

import inspect
import os
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from src.data.loader import out_of_memory
from src.models.cost import forward_flops
from src.run.errors import ConfigError, KnownError
from src.run.terminal import relative_path


def build(name: str, factory: Callable[..., Any], argument: Any) -> Any:
    try:
        return factory(argument)
    except (TypeError, ValueError, RuntimeError) as e:
        raise ConfigError(f"model.{name}: {e}") from e


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


def channels_last(network: nn.Module) -> nn.Module:
    """The kernels of 2-d convolutions with channels innermost: the whole network then computes so, which is faster."""
    for p in network.parameters():
        if p.dim() == 4:  # Module.to(memory_format=...) would fail at 3-d convolutions
            p.data = p.data.to(memory_format=torch.channels_last)
    return network


def build_network(factory: Callable[..., nn.Module], facts: dict[str, Any]) -> nn.Module:
    """The network, with those facts of the data that it takes.

    Raises:
        ConfigError: the config contradicts a fact, or the network cannot be built so.
    """
    if isinstance(factory, nn.Module):
        raise ConfigError("model.network: a network is given -> give its class, or functools.partial(Class, ...)")
    stated = getattr(factory, "keywords", {})
    takes = accepted(factory)
    used = {name: one_number(value) if takes[name] else value for name, value in facts.items() if name in takes}
    for name, value in used.items():
        if name in stated and one_number(stated[name]) != one_number(value):
            raise ConfigError(f"model.network.{name}: {stated[name]} in the config, {value} in the data -> drop it")
    try:
        return channels_last(factory(**used))
    except Exception as e:  # what the constructors of others raise has no common base
        if isinstance(e, (KnownError, OSError)) or out_of_memory(e):
            raise
        hint = " -> leave out weights, and name them in model.init_from" if stated.get("weights") else ""
        raise ConfigError(f"model.network: {e} (from the data: {used}){place(e)}{hint}") from e


def one_number(fact: Any) -> Any:
    """The side of a square, for networks that take one number as the size of an image."""
    return fact[0] if isinstance(fact, tuple) and len({*fact}) == 1 else fact


def place(e: BaseException) -> str:
    """` in FILE:LINE`, the last line that an error went through outside of torch and of what calls a network."""
    others = [f"{Path(package.__path__[0])}{os.sep}" for package in (torch,)]
    others += [__file__, str(Path(__file__).with_name("base.py")), forward_flops.__code__.co_filename]
    frames = [f for f in traceback.extract_tb(e.__traceback__) if not f.filename.startswith(tuple(others))]
    return f" in {relative_path(Path(frames[-1].filename))}:{frames[-1].lineno}" if frames else ""
