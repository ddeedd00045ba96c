"""Memory and operations of code that runs on fake tensors, which have shapes and no numbers."""

import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


class Tracker(TorchDispatchMode):
    """Sums the storages that are alive, by the part that they are, and counts floating-point operations as torch's
    FlopCounterMode does.

    A storage belongs to the part that was current when it was made, until `move` says otherwise. `peak` has the parts
    at the moment when all of them together were largest; `recomputed` are the operations of forward passes that run
    again in backward.

    Args:
        kernel_memory: bytes that a kernel takes and gives back by itself, of (function, arguments).
        block: bytes that an allocator rounds each storage up to.
        shares: of a part, how much of each storage counts; 1 where nothing is said.
    """

    def __init__(self, kernel_memory: Any, block: int, shares: dict[str, float]) -> None:
        super().__init__()
        self.part, self.in_backward = "", False
        self.kernel_memory, self.block, self.shares = kernel_memory, block, shares
        self.parts: dict[int, tuple[str, int]] = {}  # storage -> part, bytes
        self.total: Counter[str] = Counter()
        self.now = self.most = 0.0
        self.peak: dict[str, float] = {}
        self.flops = self.recomputed = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        casts = func is aten._to_copy.default and self.part_of(args[0]) == "weights"
        self.note(out, "cast weights" if casts else self.part)
        self.scratch(self.kernel_memory(func, args))
        if count := flop_registry.get(func._overloadpacket):
            self.count(count(*args, **(kwargs or {}), out_val=out) if not grouped(func, args) else by_groups(*args))
        return out

    def count(self, flops: int) -> None:
        self.flops += flops
        if self.in_backward and torch.is_grad_enabled():  # only what runs forward again records gradients here
            self.recomputed += flops

    def restart(self) -> dict[str, int]:
        """Gives the parts at the peak, and begins anew with what is alive."""
        peak = {part: int(size) for part, size in self.peak.items() if size >= 1}
        self.flops = self.recomputed = 0
        self.most, self.peak = self.now, dict(self.total)
        return peak

    def note(self, made: Any, part: str) -> None:
        """Count the storages of these tensors that are new."""
        for t in tree_leaves(made):
            if isinstance(t, Tensor) and (storage := t.untyped_storage())._cdata not in self.parts:
                key, size = storage._cdata, -(-storage.nbytes() // self.block) * self.block
                self.parts[key] = part, size
                weakref.finalize(storage, self.free, key)
                self.add(part, size)

    def part_of(self, t: Tensor) -> str:
        return self.parts.get(t.untyped_storage()._cdata, ("", 0))[0]

    def add(self, part: str, size: int) -> None:
        counts = size * self.shares.get(part, 1.0)
        self.total[part] += counts  # type: ignore[assignment]  # shares are no whole numbers
        self.now += counts
        if self.now > self.most:
            self.most, self.peak = self.now, dict(self.total)

    def scratch(self, size: int) -> None:
        """Memory that a kernel takes by itself, and gives back."""
        self.add("temporary", size)
        self.add("temporary", -size)

    def free(self, key: int) -> None:
        part, size = self.parts.pop(key)
        self.add(part, -size)

    def move(self, part: str, tensors: Any) -> None:
        """Have these belong to another part from now on."""
        for t in tree_leaves(tensors):
            key = t.untyped_storage()._cdata if isinstance(t, Tensor) else None
            if key in self.parts:
                before, size = self.parts[key]
                self.parts[key] = part, size
                self.add(before, -size)
                self.add(part, size)


def grouped(func: Any, args: Any) -> bool:
    return func is aten.convolution_backward.default and args[9] > 1


def by_groups(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> int:
    """Of backward through a convolution in groups: twice those of forward. torch's own formula (2.15) multiplies the
    gradient of the weight by the number of groups, which for the depthwise ones of MobileNet is 20 times too many."""
    *_, mask = rest
    transposed, places = rest[4], x.numel() // x.shape[1] if rest[4] else grad.numel() // grad.shape[1]
    channels = x.shape[1] if transposed else weight.shape[0]
    assert channels == weight.shape[0]
    return 2 * places * weight.numel() * sum(mask[:2])
