"""Memory and operations of code that runs on fake tensors, which have shapes and no numbers."""

import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from src.cost.kernels import scratch

aten = torch.ops.aten
Events = list[tuple[str, int]]  # part, bytes that it gets or gives back


class Tracker(TorchDispatchMode):
    """Sums the storages that are alive, by the part that they are, and counts floating-point operations as torch's
    FlopCounterMode does.

    A storage belongs to the part that was current when it was made, until `move` says otherwise. `recomputed` are the
    operations of forward passes that run again in backward.

    Args:
        on_gpu: count in blocks of 512 bytes, as the caching allocator does, and no memory of kernels.
    """

    def __init__(self, on_gpu: bool) -> None:
        super().__init__()
        self.part, self.in_backward, self.on_gpu = "", False, on_gpu
        self.block = 512 if on_gpu else 1
        self.parts: dict[int, tuple[str, int]] = {}  # storage -> part, bytes
        self.events: Events = []
        self.flops = self.recomputed = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        is_cast = func.name() == "aten::_to_copy" and self.parts.get(key(args[0]), "")[:1] == ("weights",)
        self.note(out, "cast weights" if is_cast else self.part)
        if not self.on_gpu:
            self.scratch(scratch(func, args))
        if func is aten.convolution_backward.default and args[9] > 1:
            # As often as in forward for each gradient; torch's formula (2.15) takes the groups' number times as many.
            forward = flop_registry[aten.convolution](args[1], args[2], None, *args[4:7], args[7], out_val=args[0])
            self.count(forward * sum(args[10][:2]))
        elif count := flop_registry.get(func.overloadpacket):
            self.count(count(*args, **(kwargs or {}), out_val=out))
        return out

    def count(self, flops: int) -> None:
        self.flops += flops
        if self.in_backward and torch.is_grad_enabled():  # only what runs forward again records gradients here
            self.recomputed += flops

    def restart(self) -> Events:
        """Gives what came and went, and begins anew with what is alive."""
        events, self.events = self.events, list(self.parts.values())
        self.flops = self.recomputed = 0
        return events

    def note(self, made: Any, part: str) -> None:
        """Count the storages of these tensors that are new."""
        for t in tree_leaves(made):
            if isinstance(t, Tensor) and not is_traceable_wrapper_subclass(t) and key(t) not in self.parts:
                size = -(-t.untyped_storage().nbytes() // self.block) * self.block
                self.parts[key(t)] = part, size
                weakref.finalize(t.untyped_storage(), self.free, key(t))
                self.events.append((part, size))

    def scratch(self, size: int) -> None:
        """Memory that a kernel takes by itself, and gives back."""
        self.events += [("temporary", size), ("temporary", -size)]

    def free(self, storage: int) -> None:
        part, size = self.parts.pop(storage)
        self.events.append((part, -size))

    def move(self, part: str, tensors: Any) -> None:
        """Have these belong to another part from now on."""
        for t in tree_leaves(tensors):
            if isinstance(t, Tensor) and is_traceable_wrapper_subclass(t):
                self.move(part, [getattr(t, name) for name in t.__tensor_flatten__()[0]])
            elif isinstance(t, Tensor) and key(t) in self.parts:
                before, size = self.parts[key(t)]
                self.parts[key(t)] = part, size
                self.events += [(before, -size), (part, size)]


def peak(events: Events, shares: dict[str, float]) -> dict[str, int]:
    """Bytes by part at the moment when all together are largest, where of each part one device keeps a share."""
    now = most = 0.0
    end = 0
    for i, (part, size) in enumerate(events):
        now += size * shares.get(part, 1.0)
        if now > most:
            most, end = now, i + 1
    total: dict[str, int] = Counter()
    for part, size in events[:end]:
        total[part] += size
    return {part: kept for part, size in total.items() if (kept := int(size * shares.get(part, 1.0)))}


def key(t: Tensor) -> int:
    return id(t.untyped_storage())  # its object lives as long as the memory
