"""Muon (Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024) and AdamW in one optimizer.

The Trainer steps one optimizer by itself. torch.optim.Muon is for matrices alone: it takes no kernels of convolutions,
steps one matrix after the other, and knows no `found_inf`, with which a step that is not finite changes nothing.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import AdamW, Optimizer

from src.run.device import has_bfloat16


class Muon(Optimizer):
    """Muon for the matrices inside a network's `blocks`, AdamW for all else: embeddings, head, vectors.

    Muon steps along the orthogonal matrix nearest to the momentum. A kernel of a convolution counts as a matrix
    [out, in * height * width].

    Args:
        params: parameters, or groups of them; AdamW takes the groups with `hidden: false`.
        lr: learning rate of Muon; a step's root mean square is about this over the root of the number of columns.
        adam_lr: learning rate of AdamW.
        momentum: share of the old momentum kept at each step of Muon (Nesterov's).
        weight_decay: share of a weight lost at each step, times the learning rate.
        betas: shares of the old averages, of the gradient and of its square, kept at each step of AdamW.
        eps: AdamW's term against division by zero.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        adam_lr: float = 3e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        if min(lr, adam_lr, momentum, weight_decay, *betas) < 0 or max(momentum, *betas) >= 1:
            raise ValueError("rates and weight_decay are at least 0; momentum and betas are at least 0 and below 1")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "betas": betas, "eps": eps}
        # `fused` tells load_state_dict to keep AdamW's step counters on the device
        super().__init__(params, {**defaults, "fused": True, "hidden": True})
        others = [group for group in self.param_groups if not group["hidden"]]
        for group in others:
            group["lr"] = adam_lr
        self.adamw = AdamW(others, fused=True) if others else None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure else None
        found_inf = getattr(self, "found_inf", None)
        if self.adamw:  # it works on our groups and our state, which are others after a checkpoint is loaded
            self.adamw.param_groups = [group for group in self.param_groups if not group["hidden"]]
            self.adamw.state, self.adamw.found_inf = self.state, found_inf  # type: ignore[attr-defined]
            self.adamw.step()
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for p in group["params"] if group["hidden"] else ():
                if p.grad is not None:
                    by_shape[p.shape[0], p.shape[1:].numel()].append(p)
            for same in by_shape.values():
                self.step_muon(same, group, found_inf)
        return loss

    def step_muon(self, params: list[Tensor], group: dict[str, Any], found_inf: Tensor | None) -> None:
        """One step of matrices of the same shape, together."""
        buffers = [local(self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))) for p in params]
        grads: list[Any] = [local(p.grad) for p in params]
        lr, momentum = group["lr"], group["momentum"]
        if found_inf is not None:  # as in torch's fused optimizers: 1 on the device makes this step change nothing
            grads = [torch.where(found_inf.bool(), b, g) for b, g in zip(buffers, grads, strict=True)]
            lr = lr * (1 - found_inf)
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        momenta = torch._foreach_lerp(grads, buffers, momentum)
        updates = torch.stack([*map(whole, momenta, params)]).flatten(2)  # [N, rows, columns]
        scale = math.sqrt(max(1, updates.shape[1] / updates.shape[2]))
        updates = orthogonal(updates) * (-lr * scale)
        weights = [local(p) for p in params]
        torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
        torch._foreach_add_(weights, [*map(part, updates, params)])


def local(t: Any) -> Any:
    """The rows of a matrix that this device has, where FSDP divides it."""
    return t.to_local() if isinstance(t, DTensor) else t


def whole(rows: Tensor, like: Tensor) -> Tensor:
    """The rows of all devices: each then does all the work of Muon, and takes its own rows of what comes out."""
    if not isinstance(like, DTensor):
        return rows
    mesh, placements = like.device_mesh, like.placements
    return DTensor.from_local(rows, mesh, placements, shape=like.shape, stride=like.stride()).full_tensor()


def part(t: Tensor, like: Tensor) -> Tensor:
    t = t.view(like.shape)
    if not isinstance(like, DTensor):
        return t
    return distribute_tensor(t, like.device_mesh, like.placements, src_data_rank=None).to_local()


def orthogonal(x: Tensor) -> Tensor:
    """For each matrix of x [N, rows, columns] one with its singular vectors and singular values near 1, by five steps
    of Newton-Schulz with Jordan's coefficients."""
    tall = x.shape[1] > x.shape[2]
    y = (x.mT if tall else x).to(torch.bfloat16 if has_bfloat16(x.device) else torch.float32)
    y = y / y.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = y @ y.mT
        y = 3.4445 * y + (-4.7750 * gram + 2.0315 * gram @ gram) @ y
    return (y.mT if tall else y).to(x.dtype)
