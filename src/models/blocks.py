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
    found: dict[str, nn.Module] = {}
    for pattern in patterns:
        found |= named(network, pattern, "model.blocks")
    for outer in found:
        if inner := next((name for name in found if name.startswith(f"{outer}.")), None):
            raise ConfigError(f"model.blocks: {inner} lies within {outer} -> name one of the two")
    return [module for module in network.modules() if module in found.values()]


def named(network: nn.Module, pattern: str, key: str) -> dict[str, nn.Module]:
    """The modules that a pattern of this key names, a shared one by each of its names."""
    modules = dict(network.named_modules(remove_duplicate=False))
    fits = {name: module for name, module in modules.items() if name and matches(name, pattern)}
    if not fits:
        raise ConfigError(f"{key}: no module {pattern} in {type(network).__name__}{nearest(pattern, modules)}")
    return fits


def matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))
