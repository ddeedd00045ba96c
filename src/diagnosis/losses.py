"""What a loss function got: outputs and what they have gone through, and what the targets say."""

import math
from typing import Any

import torch
from torch import Tensor

CLASSES = ("cross_entropy", "nll_loss", "binary_cross_entropy_with_logits", "binary_cross_entropy")
NUMBERS = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
ENDS = {"relu": (0.0, math.inf), "sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}  # and what they give


def noted(name: str, given: dict[str, Any], value: Tensor, out: Any, softened: Any) -> dict[str, Any]:
    """What a loss function got, [N, C, ...], and what the network's output has gone through before."""
    x, targets = given["input"].detach().float(), given["target"]
    same = out is not None and out.numel() == x.numel()
    through = {"nothing": out.float() if same else out} | {n: getattr(torch, n)(out.float()) for n in ENDS if same}
    kinds = [n for n, z in through.items() if same and torch.allclose(z.flatten(), x.flatten(), atol=1e-5)]
    numbers = {"low": float(x.min()), "high": float(x.max()), "classes": x.shape[min(1, x.ndim - 1)]}
    sums, log_sums = x.sum(min(1, x.ndim - 1)), x.logsumexp(min(1, x.ndim - 1))
    numbers |= {"off": float((sums - 1).abs().max()), "log_off": float(log_sums.abs().max())}
    numbers["zeros"] = float((x == 0).float().mean())
    numbers["value"] = float(value.detach().mean()) / (targets.numel() if given.get("reduction") == "sum" else 1)
    p, dim, logits = softened or (x, None, x)  # of the loss's input, if it has its memory
    if dim is not None and p.data_ptr() == given["input"].data_ptr() and p.numel() == x.numel():
        numbers |= {"alone": p.shape[dim] == 1, "across": p.ndim > 1 and dim % p.ndim == 0 and p.shape[dim] > 1}
        numbers |= {"over": dim % p.ndim, "cut": bool(logits.min() >= 0) * float((logits == 0).float().mean())}
    weighs = any(given.get(of) is not None for of in ("weight", "pos_weight")) or given.get("label_smoothing")
    numbers["plain"] = math.nan if weighs or targets.numel() != len(x) else numbers["value"]
    numbers["labels"] = labels(x, targets)
    return {"name": name, "kind": "".join(kinds[:1]), "targets": targets.flatten()[:10_000].float(), **numbers}


def labels(x: Tensor, targets: Tensor) -> str:
    """How the targets of as many outputs as classes say a class: `one-hot`, `index`, or not at all."""
    y = targets.detach().float()
    if x.ndim != 2 or x.shape[1] < 2 or len(y) != len(x) or bool((y != y.round()).any()) or len(y.unique()) < 2:
        return ""
    if y.shape == x.shape and float(y.min()) >= 0 and float(y.max()) == 1:
        return "one-hot" if bool((y.sum(1) == 1).all()) else "several"
    return "index" if y.numel() == len(x) and float(y.min()) >= 0 and float(y.max()) < x.shape[1] else ""


def alone(one: dict[str, Any]) -> bool:
    """Whether a loss got, or made, a softmax over one class."""
    return bool(one.get("alone")) or (one["classes"] == 1 and one["name"] in CLASSES[:2])
