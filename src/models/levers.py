"""What makes a network fit into less memory, or go faster, and gives the same losses: where it is divided into blocks
(src/models/blocks.py), each of them is a piece. And what mends a network of others."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from src.models.blocks import named
from src.models.factory import build
from src.run.errors import ConfigError
from src.run.private import check_compiler


def recompute_activations(network: nn.Module, blocks: list[nn.Module]) -> None:
    """Keep of each block only its input, and compute the rest once more in the backward pass (Chen et al., Training
    Deep Nets with Sublinear Memory Cost, 2016)."""
    if not blocks:
        name = type(network).__name__
        raise ConfigError(f"model.activation_checkpointing: {name} has no blocks -> name them in model.blocks")
    for block in blocks:  # of the module, so that its hooks run once, and its parameters keep their names
        changing = block if any(True for _ in block.buffers()) else None
        block.forward = partial(recomputed, block.forward, changing)


def recomputed(function: Callable[..., Any], block: nn.Module | None, /, *args: Any, **kwargs: Any) -> Any:
    """What a function gives, whose intermediate results are made anew in the backward pass, with the same random
    numbers and under the same autocast. What a pass changes in the buffers of `block`, it changes once."""
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)
    how: dict[str, Any] = {"use_reentrant": False}
    if block is not None and not torch.compiler.is_compiling():  # which makes anew what the gradient needs alone
        how["context_fn"] = partial(contexts, block)
    return checkpoint(partial(function, **kwargs), *args, **how)  # whose own names are then not in the way


def contexts(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Of the forward pass, and of the second one."""
    return nullcontext(), kept_buffers(block)


@contextmanager
def kept_buffers(block: nn.Module) -> Iterator[None]:
    """Buffers, such as the statistics of batch norms, are afterwards as they were."""
    buffers = list(block.buffers())
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(buffers, before)


def compile_blocks(network: nn.Module, blocks: list[nn.Module], device: torch.device) -> None:
    """Let torch compile each block at its first batch, or the whole of a network that has none."""
    check_compiler("model.compile", device)
    parts = blocks or [network]
    # torch counts the variants of a forward's code over all blocks that share it, and at the limit compiles no more. A
    # block has up to four: to train and to measure, for the first size of a batch and for any.
    config = torch.compiler.config
    config.recompile_limit = max(config.recompile_limit, 8 * len(parts))
    for part in parts:
        part.compile()


def swap_modules(network: nn.Module, wanted: dict[str, Callable[..., nn.Module]]) -> None:
    """Put a new module in the place of each that a pattern names.

    Raises:
        ConfigError: a pattern names no module, or the new one cannot be made.
    """
    for pattern, make in wanted.items():
        for name in named(network, pattern, "model.swap"):
            network.set_submodule(name, build(f"swap.{pattern}", lambda _, make=make: make(), None))


def draw_anew(network: nn.Module) -> None:
    """All weights, as torch's modules draw them when they are made: parts first, then what they are parts of."""
    names = ("reset_parameters", "_reset_parameters")  # the second of attention
    found = [getattr(m, name) for m in reversed([*network.modules()]) for name in names if hasattr(m, name)]
    for draw in found:
        draw()
    if not found:
        raise ConfigError(f"model.reset: no module of {type(network).__name__} has reset_parameters -> leave it out")
