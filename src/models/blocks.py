"""The parts by which a network is divided: into shards, recomputed activations, compiled pieces, Muon's matrices."""

import fnmatch
from collections.abc import Sequence

from torch import nn

from src.run.errors import ConfigError, nearest


def find_blocks(network: nn.Module, patterns: Sequence[str] = ()) -> list[nn.Module]:
    """The modules that these patterns name, in which `*` stands for anything but a dot; without any, those of the
    network's attribute `blocks`, if it has one.

    Raises:
        ConfigError: a pattern names no module, or two blocks lie one within the other.
    """
    if not patterns:
        return list(getattr(network, "blocks", ()))
    modules = {name: module for name, module in network.named_modules() if name}
    found: dict[str, nn.Module] = {}
    for pattern in patterns:
        fits = {name: module for name, module in modules.items() if matches(name, pattern)}
        if not fits:
            raise ConfigError(
                f"model.blocks: no module {pattern} in {type(network).__name__}{nearest(pattern, modules)}"
            )
        found |= fits
    for outer in found:
        if inner := next((name for name in found if name.startswith(f"{outer}.")), None):
            raise ConfigError(f"model.blocks: {inner} lies within {outer} -> name one of the two")
    return [modules[name] for name in modules if name in found]


def matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))
