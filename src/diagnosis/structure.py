"""What the first steps of a training show: the end of the network and its loss, weights, modes, gradients, units."""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from inspect import signature
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from src.diagnosis.finding import BADLY, Finding, Overlay
from src.diagnosis.probe import Watch, network_of
from src.models.base import Model
from src.models.factory import is_weight

CLASSES = ("cross_entropy", "nll_loss", "binary_cross_entropy_with_logits")
LOSSES = (*CLASSES, "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
MODES, MINUS = ("dropout", "batch_norm"), ("sub", "__sub__", "__rsub__")
ENDS = {"relu": (0.0, math.inf), "sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}  # and what they give
CALLS, LARGE, VANISHED = 8, 1.5, 1e-3  # losses that are looked at; of healthy runs the first was at most 4 % off
FAR, USELESS = 5.0, {nn.ReLU: 0.9, nn.Tanh: 0.5, nn.Sigmoid: 0.5}  # from 0: flat there; share of units


class Seen(Watch, TorchFunctionMode):
    """Notes what the checks look at, by hooks and by the calls of torch's functions, by modules too."""

    name = "structure"

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[dict[str, Any]] = []
        self.squares: list[Any] = []  # shapes of what is broadcast to a square
        self.modes: dict[tuple[bool, str], set[bool]] = {}  # of dropout and batch norm, in training or not
        self.evaluated = self.steps = self.kept = self.begun = 0
        self.called, self.graded, self.ratios = set[nn.Module](), set[nn.Parameter](), list[float]()
        self.inputs: Any = None
        self.out = self.head = self.last = self.end = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.network, self.trainer = network_of(pl_module), trainer
        self.weights = {n: p for n, p in self.network.named_parameters() if is_weight(n, p) and len(p) > 1}
        self.alike = {n for n, p in self.weights.items() if bool((p == p[:1]).all())}
        self.optimized = {p for o in trainer.optimizers for group in o.param_groups for p in group["params"]}
        for name, module in self.network.named_modules():
            module.register_forward_hook(partial(self.passed, name), with_kwargs=True)
        self.__enter__()

    def on_train_end(self, *_: Any) -> None:
        self.__exit__(None, None, None)

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps, self.evaluated = self.steps + 1, self.evaluated + (not self.network.training)

    def passed(self, name: str, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        """A forward hook: inputs and output of the network, its last module, the last one with weights."""
        if self.trainer.training and torch.is_grad_enabled():
            self.called.add(module)
            if module is self.network:
                self.inputs, self.out = (args, kwargs), tensor_of(out)
                self.end = self.last[:2] if self.last and self.last[2] is out else None
            if not any(True for _ in module.children()):
                self.last = name, module, out
                self.head = name if [*module.parameters(recurse=False)] else self.head

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name, training = func(*args, **(kwargs or {})), getattr(func, "__name__", ""), self.trainer.training
        if name in LOSSES + MODES:
            bound = signature(func).bind(*args, **(kwargs or {}))
            bound.apply_defaults()
            given = bound.arguments
            if name in MODES and given.get("p", 1) and given.get("running_mean", 0) is not None:
                self.modes.setdefault((training, name), set()).add(given["training"])
            elif name in LOSSES and training and len(self.losses) < CALLS:
                self.pair(given["input"], given["target"])
                self.losses.append(noted(name, given, out, self.out))
        elif name in MINUS and training and all(isinstance(a, Tensor) for a in args):
            self.pair(*args[:2])
        return out

    def pair(self, a: Tensor, b: Tensor) -> None:
        one, other = sorted((list(a.shape), list(b.shape)), key=len)
        if len(one) == 1 and one[0] > 1 and other == [*one, 1] and a.requires_grad != b.requires_grad:
            self.squares.append([list(a.shape), list(b.shape)])

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        first = trainer.fit_loop.epoch_loop.batch_idx % trainer.accumulate_grad_batches == 0
        if pl_module.automatic_optimization and trainer.global_step and first:
            self.begun += 1
            self.kept += any(p.grad is not None and bool(p.grad.any()) for p in self.network.parameters())

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.graded |= {p for p in self.network.parameters() if p.grad is not None}
        pairs = [(p.grad.norm(), p.detach().norm()) for p in self.weights.values() if p.grad is not None]
        self.ratios = [float(grad / weight.clamp(min=1e-12)) for grad, weight in pairs]

    def again(self, change: Callable[[str, Tensor], Tensor]) -> Any:
        """What the network gives for its last inputs, in evaluation, with other weights."""
        with torch.no_grad():
            weights = {n: change(n, p.detach()) for n, p in self.network.named_parameters()}
            return tensor_of(functional_call(self.network.eval(), weights, *self.inputs))

    def bounds(self) -> tuple[float, float]:
        """The least and greatest that the network gives, whatever its last weights are: of a linear end, one is less
        the other. Of a sigmoid they are 0 and 1."""
        outs = [self.again(lambda n, p, f=f: f * p if n.rpartition(".")[0] == self.head else p) for f in (1e3, -1e3)]
        return min(float(out.min()) for out in outs), max(float(out.max()) for out in outs)


def tensor_of(out: Any) -> Any:
    values = out.values() if isinstance(out, dict) else out if isinstance(out, (tuple, list)) else [out]
    return next((value.detach() for value in values if isinstance(value, Tensor)), None)


def noted(name: str, given: dict[str, Any], value: Tensor, out: Any) -> dict[str, Any]:
    """What a loss function got, [N, C, ...], and what the network's output has gone through before."""
    x, targets = given["input"].detach().float(), given["target"]
    same = out is not None and out.numel() == x.numel()
    through = {"nothing": out.float() if same else out} | {n: getattr(torch, n)(out.float()) for n in ENDS if same}
    kinds = [n for n, z in through.items() if same and torch.allclose(z.flatten(), x.flatten(), atol=1e-5)]
    numbers = {"low": float(x.min()), "high": float(x.max()), "classes": x.shape[min(1, x.ndim - 1)]}
    numbers["off"] = float((x.sum(min(1, x.ndim - 1)) - 1).abs().max())  # from a sum of 1
    numbers["value"] = float(value.detach().mean()) / (targets.numel() if given.get("reduction") == "sum" else 1)
    return {"name": name, "kind": kinds[:1], "targets": targets.flatten()[:10_000].float(), **numbers}


# The checks: each says what is wrong, if anything


def finding(check: str, text: str, change: Overlay, todo: str, certain: bool = True, **evidence: Any) -> Finding:
    gain, sure = (0.5, 0.95) if certain else (0.3, 0.6)
    return Finding(check, BADLY, text, evidence, gain, sure, change, "" if change else todo, certain=certain)


def in_model(model: Any, **keys: Any) -> Overlay:
    return {"model": {"init_args": keys}} if isinstance(model, Model) else {}


def swapped(model: Any, names: Iterable[str], by: str) -> Overlay:
    return in_model(model, swap={name: {"class_path": f"torch.nn.{by}"} for name in names})


def the_end(seen: Seen, model: Any) -> Iterator[Finding]:
    """What the loss takes for logits, or for numbers of any size, is not. NeuraLint (Nikanjam et al., 2021) has such
    rules for the code; here numbers show it, also with 1,000 times the last weights and their negatives."""
    for a, b in seen.squares[:1]:
        text, todo = f"the loss compares each output with all targets: {a} meets {b}", "squeeze one, or unsqueeze"
        yield finding("shape_broadcast", text, {}, todo)
    for first in seen.losses[:1]:
        name, kind = first["name"], first["kind"] if all(c["kind"] == first["kind"] for c in seen.losses) else []
        low, off = min(c["low"] for c in seen.losses), max(c["off"] for c in seen.losses)
        unknown = (-math.inf, math.inf)
        least, most = (
            seen.bounds() if kind == ["nothing"] and seen.head is not None else ENDS.get("".join(kind), unknown)
        )
        above, bounded, last = least >= 0 and most > 0, most <= 1 + 1e-6, seen.end or ("", None)
        is_end = type(last[1]).__module__ == "torch.nn.modules.activation"
        swap = swapped(model, last[:1], "Identity") if is_end else {}
        log = swap or (in_model(model, outputs="probabilities") if hasattr(model, "outputs") else {})
        told = partial(finding, todo="let the network end in its last linear layer", loss=name, least=low)
        if name == "cross_entropy" and first["classes"] == 1:
            yield told("one_class", "a softmax over one class is always 1, so the loss is always 0", {})
        elif name in CLASSES[:2] and low >= 0 and off < 1e-3:
            yield told("softmax_before_loss", f"{name} gets probabilities, but wants logits", log)
        elif name in CLASSES and above and bounded:
            yield told("sigmoid_before_loss", f"{name} gets what a sigmoid gives, but wants logits", log)
        elif name == "cross_entropy" and above:
            yield told("head_activation", "cross_entropy gets logits that are never below 0, as of a ReLU", swap)
        elif name not in CLASSES and (above or (bounded and least >= -1 - 1e-6)):
            targets = torch.cat([c["targets"] for c in seen.losses])
            if (share := float(((targets < least) | (targets > most)).float().mean())) > 0.01:
                yield told("head_activation", "its last activation keeps the network from targets", swap, beyond=share)


def beginning(seen: Seen, model: Any) -> Iterator[Finding]:
    """The first loss of a classifier is near ln C, and that of a regression near the mean square of its targets."""
    reset, rows = in_model(model, reset=True), {*seen.out.shape[1:]} if seen.out is not None else set()
    hidden = {n for n, p in seen.weights.items() if len(p) not in rows}
    if 2 * len(seen.alike & hidden) > len(hidden):
        text, names = "all units of a layer begin alike, and stay so", sorted(seen.alike & hidden)[:5]
        yield finding("constant_weights", text, reset, "draw the weights at random", layers=names)
    for first in seen.losses[:1]:
        of = {
            "cross_entropy": math.log(max(first["classes"], 2)),
            "mse_loss": 2 * float(first["targets"].square().mean()),
        }
        if (value := first["value"]) > LARGE * of.get(first["name"], math.inf):
            text = f"the first loss is {value:.4g}, and {of[first['name']]:.4g} is usual"
            yield finding("large_initial_weights", text, reset, "draw smaller weights", False)


def blind(seen: Seen, model: Any) -> Iterator[Finding]:
    """Samples that differ get one answer, with weights drawn anew, too."""

    def draw(name: str, p: Tensor) -> Tensor:
        return torch.randn_like(p) * p[0].numel() ** -0.5 if p.ndim > 1 else torch.full_like(p, "bias" not in name)

    x = tensor_of(seen.inputs[0]) if seen.inputs else None
    if x is not None and x.ndim > 1 and bool((x != x[:1]).any()):
        out = seen.again(draw)
        if len(out) == len(x) and float((out - out[:1]).abs().max()) <= 1e-6 * float(out.abs().max()):
            yield finding("ignores_input", "the network gives one answer for all inputs", {}, "see what it does to x")


def updates(seen: Seen, model: Any) -> Iterator[Finding]:
    """Layers that took part, and are in the optimizer, but get no gradient; weights that it does not know."""
    learn = {p for p in seen.optimized if p.requires_grad}
    layers = [
        (n, learn.intersection(m.parameters(recurse=False)))
        for n, m in seen.network.named_modules()
        if m in seen.called
    ]
    lost = [n for n, params in layers if params and not params & seen.graded and seen.graded]
    alien = [n for n, p in seen.network.named_parameters() if p in seen.graded and p not in seen.optimized]
    for names, why in ((lost, "get no gradient"), (alien, "are not given to the optimizer")):
        if names:
            text, todo = f"{len(names)} parts of the network {why}", "see what detaches them, or leaves them out"
            yield finding("untrained_parameters", text, {}, todo, names=names[:5])
    if seen.begun > 2 and seen.kept == seen.begun:
        text = "gradients of earlier steps are still there when a step begins"
        yield finding("gradients_not_reset", text, {}, "call zero_grad() in each step", steps=seen.kept)


def modes(seen: Seen, model: Any) -> Iterator[Finding]:
    train = [n for n in MODES if seen.evaluated == seen.steps and seen.modes.get((True, n)) == {False}]
    val = [n for n in MODES if True in seen.modes.get((False, n), ())]
    for names, where in ((train, "training as in evaluation"), (val, "evaluation as in training")):
        if names:
            todo = "leave train() and eval() to the Trainer, and give F.dropout self.training"
            yield finding("wrong_mode", f"{' and '.join(names)} work in {where}", {}, todo)


def units(seen: Seen, model: Any) -> Iterator[Finding]:
    """Of hidden layers: those that no gradient comes through."""
    found, hooks = dict[str, float](), []

    def note(name: str, module: nn.Module, args: Any, out: Tensor) -> None:
        x = (args[0].movedim(1, -1) if args[0].ndim == 4 else args[0]).flatten(0, -2)
        found[name] = float(((x <= 0).all(0) if type(module) is nn.ReLU else x.abs() > FAR).float().mean())

    layers = {n: m for n, m in seen.network.named_modules() if type(m) in USELESS and n != (seen.end or [0])[0]}
    if not layers or not seen.inputs or not isinstance(model, Model):
        return
    for name, module in layers.items():
        hooks.append(module.register_forward_hook(partial(note, name)))
    seen.again(lambda _, p: p)
    for hook in hooks:
        hook.remove()
    useless = [f"{share:.0%} of the units of {n}" for n, share in found.items() if share > USELESS[type(layers[n])]]
    gelu = swapped(model, layers, "GELU")
    for change in (in_model(model, reset=True), gelu) if useless else ():
        yield finding("dead_units", f"{useless[0]} are at a flat end", change, "", False)
    if seen.ratios and 0 < seen.ratios[0] < VANISHED * seen.ratios[-1]:
        text = f"the first layer's gradient is {seen.ratios[0] / seen.ratios[-1]:.1g} of the last's"
        yield finding("vanishing_gradients", text, gelu, "", False)


class Check(Watch):
    def __init__(self, seen: Seen, look: Callable[[Seen, Any], Iterator[Finding]]) -> None:
        self.seen, self.look, self.name = seen, look, look.__name__

    def found(self, trainer: Trainer, model: LightningModule) -> list[Finding]:
        return list(self.look(self.seen, model))


def watches() -> list[Watch]:
    seen = Seen()
    return [seen, *(Check(seen, look) for look in (the_end, beginning, blind, updates, modes, units))]
