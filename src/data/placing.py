"""Training data on the device: batches are then gathered there, and no row is copied from the host at a step."""

from typing import Any, Literal

import torch
from torch import Tensor

from src.run.errors import ConfigError, EnvironmentFault
from src.run.faults import out_of_memory

# Of a GPU, before optimizer and activations are there: so little that a run that fits rarely fails by it.
SHARE, MOST = 16, 2 * 2**30


def placed(arrays: Any, device: torch.device | None, how: bool | Literal["auto"]) -> tuple[Any, torch.device | None]:
    """A split with its tensors on the device, and the device; None where they stay on the host.

    Args:
        how: `auto` moves them to a GPU of which they take little, true to any device.

    Raises:
        ConfigError: nothing says how they are moved, and they must be.
        EnvironmentFault: they do not fit, and must be moved.
    """
    if not how or device is None or (how == "auto" and (device.type != "cuda" or not can_move(arrays))):
        return arrays, None
    if not can_move(arrays):
        what = f"data.on_device: {type(arrays).__name__} does not say how it is moved"
        raise ConfigError(f"{what} -> give it a method `moved`, as Arrays has one, or leave it auto")
    size = num_bytes(arrays)
    if how == "auto" and not is_small(size, torch.cuda.mem_get_info(device)[0]):
        return arrays, None
    try:
        return arrays.moved(lambda t: t.to(device)), device
    except (RuntimeError, MemoryError) as e:
        if not out_of_memory(e):
            raise
        what = f"data.on_device: {device} has no room for train's {size / 2**30:.2f} GiB"
        raise EnvironmentFault(f"{what} -> take auto or false") from e


def is_small(size: int, free: int) -> bool:
    return size <= min(free // SHARE, MOST)


def can_move(arrays: Any) -> bool:
    """Whether the class that says how a batch is taken, or one derived from it, says how what it needs is moved."""
    kinds = type(arrays).__mro__
    moves, takes = (next((k for k in kinds if name in vars(k)), object) for name in ("moved", "__getitem__"))
    return issubclass(moves, takes)


def num_bytes(arrays: Any) -> int:
    sizes: list[int] = []

    def count(t: Tensor) -> Tensor:
        sizes.append(t.nbytes)
        return t

    arrays.moved(count)
    return sum(sizes)


def sent(index: Tensor, device: torch.device) -> Tensor:
    """An index on the device; the host does not wait for the copy."""
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index.to(device)


def all_tensors(batch: Any) -> bool:
    return isinstance(batch, dict) and all(isinstance(t, Tensor) for t in batch.values())


def batch_sent(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """As Lightning does it, but without looking for what else a batch may be made of, which takes time at each step."""
    waits = device.type in ("cpu", "mps")
    return {name: t.to(device, non_blocking=not waits) for name, t in batch.items()}
