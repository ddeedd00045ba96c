"""What the first steps of a training show is noted: inputs, outputs, losses, modes, gradients, units."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from inspect import isbuiltin, signature
from typing import Any, cast
from weakref import WeakValueDictionary

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from src.diagnosis.losses import CLASSES, NUMBERS, noted
from src.diagnosis.probe import Observer, network_of
from src.models.factory import is_weight
from src.run.private import times_written

WEIGHED = ("linear", "conv1d", "conv2d", "conv3d")  # functions of x and weights
MODES, PAIRED = ("dropout", "batch_norm"), (*NUMBERS, "sub", "__sub__", "__rsub__")
ANY, CALLS = (-math.inf, math.inf), 8  # losses, and inputs, that are looked at
DEEP = 4  # sigmoids in a network
GROWN = 10.0  # times as large weights: then what is not finite comes of the rate
Change = Callable[[str, Tensor], Tensor]  # of the weights


class Structure(Observer, TorchFunctionMode):
    """Notes what the checks look at, by hooks and by the calls of torch's functions, by modules too."""

    name = "structure"
    network = inputs = out = last = end = recent = now = missed = entry = cast(Any, None)  # end: name and module
    rectified: Any = None  # what the last ReLU gave, and the name of the layer before
    softened: Any = None  # what the last softmax gave, over which dimension, and of what
    strangers = 0  # weights that layers use, and no module has
    stepped, kept, begun, repeats, batchwise = False, 0, 0, False, False  # kept: steps that began with old gradients
    broken: dict[str, Any] | None = None  # where and when what is not finite came up

    def __init__(self) -> None:
        super().__init__()
        self.losses, self.squares = list[dict[str, Any]](), list[Any]()  # shapes of what is broadcast to a square
        self.modes: dict[tuple[bool, str], set[bool]] = {}  # of dropout and batch norm, in training or not
        self.called, self.old = dict[nn.Module, None](), dict[nn.Parameter, bool]()  # in the order of calls
        self.takes = dict[str, set[bool]]()  # whether modules' inputs have gradients
        self.early, self.off = set[nn.Module](), set[nn.Module]()  # called before the first loss; not in training mode
        self.ungraded = set[nn.Module]()  # called in training, without gradients
        self.fed: WeakValueDictionary[str, Tensor] = WeakValueDictionary()  # what modules got last in evaluation
        self.graded, self.head = set[nn.Parameter](), set[nn.Parameter]()
        self.ratios, self.dead, self.flat = dict[str, list[float]](), dict[str, float](), set[str]()
        self.before, self.stack = dict[str, Tensor](), ExitStack()  # weights before a step
        self.gradients, self.noise = dict[str, Tensor](), list[tuple[float, float]]()  # of the step before
        self.layers: dict[str, dict[str, float]] = {}  # gradient and update of each, over the weights
        self.norms = list[float]()
        self.received = list[Tensor]()  # moments of what the first layer gets
        self.finite = list[tuple[str, Tensor]]()  # of what modules gave in this step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.network, self.trainer = network_of(pl_module), trainer
        self.whole, named = self.network, self.network.named_parameters()
        embeddings = {m.weight for m in self.network.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
        self.weights = {n: p for n, p in named if is_weight(n, p) and len(p) > 1 and p not in embeddings}
        self.alike = {n: p.detach().clone() for n, p in self.weights.items() if bool((p == p[:1]).all())}
        self.optimized = {p for o in trainer.optimizers for group in o.param_groups for p in group["params"]}
        self.size, self.written = norm(self.network), {p: times_written(p) for p in self.network.parameters()}
        for name, module in self.network.named_modules():
            module.register_forward_hook(partial(self.passed, name), with_kwargs=True)
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(self.took)
        for p in (p for p in self.optimized if p.requires_grad):
            p.register_hook(partial(self.arrives, p))
        self.stack.enter_context(self)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batch, self.finite = batch, []

    def passed(self, name: str, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        """A forward hook: inputs and output of the network, its last module, the last one with weights."""
        given = next((t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)), None)
        if given is not None and self.trainer.validating and any(True for _ in module.children()):
            self.repeats = self.repeats or self.fed.get(name) is given
            self.fed[name] = given
        elif given is not None and self.trainer.training:
            self.takes.setdefault(name, set()).add(given.requires_grad)
            self.receive(name, module, given, tensor_of(out))
        if self.trainer.training and not torch.is_grad_enabled():
            self.ungraded.add(module)
        elif self.trainer.training:
            self.called[module] = None
            if not any(True for _ in module.children()):
                self.last = name, module, out
                self.head = {*module.parameters(recurse=False)} or self.head
            elif not module.training:
                self.off.add(module)
            taken = module is self.whole or any(True for _ in module.parameters())
            self.recent = (module, (args, kwargs), out) if taken else self.recent
            if module is self.whole:
                self.ends()

    def receive(self, name: str, module: nn.Module, given: Tensor, out: Any) -> None:
        """Notes moments of what the first layer with weights gets, and whether what modules give is finite."""
        if out is not None and name and out.layout == torch.strided:
            self.finite.append((name, out.isfinite().all()))
        dense = given.layout == torch.strided
        self.entry = module if self.entry is None and {*module.parameters(recurse=False)} else self.entry
        if module is self.entry and given.is_floating_point() and dense and len(self.received) < CALLS:
            x = given.detach().cpu().double()
            moments = [x, x.square()]
            self.received.append(torch.stack([m.mean(0) if x.ndim == 2 else m.mean() for m in moments]))

    def ends(self) -> None:
        self.whole, self.inputs, out = self.recent
        self.early = self.early or {*self.called}
        self.out, self.end = tensor_of(out), self.last[:2] if self.last and self.last[2] is out else None
        if self.rectified and self.rectified[1] is out:  # another check tells of that
            self.dead.pop(self.rectified[0], None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        try:  # what cannot be noted must not end the training
            self.noticed(func, args, kwargs or {}, out, self.trainer.training)
        except Exception as e:
            self.missed = e
        return out

    def noticed(self, func: Any, args: Any, kwargs: Any, out: Any, training: bool) -> None:
        name = getattr(func, "__name__", "")
        if name in CLASSES + NUMBERS + MODES and not isbuiltin(func):  # those have no signature
            bound = signature(func).bind(*args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments
            self.batchwise = self.batchwise or given.get("running_mean", 0) is None
            if name in MODES and given.get("p", 1) and given.get("running_mean", 0) is not None:
                used = name in MODES[1:] and bool(given["running_mean"].any())  # what was measured may be kept
                self.modes.setdefault((training, name), set()).add(given["training"] or (training and used))
            elif name not in MODES and training:
                if self.out is None and self.recent:  # not forward is called, but what was called last
                    self.ends()
                self.now = noted(name, given, out, self.out, self.softened)
                x, y = self.only(), given["target"]
                if x is not None and x.shape == y.shape and torch.equal(x, y):  # it is to give back what it gets
                    self.now["labels"] = ""
                if x is not None and x.numel() == y.numel() and not x.is_floating_point():
                    self.now["repeats"] = torch.equal(x.flatten(), y.flatten())
                if x is not None and x.ndim == 2 and y.numel() in (x.numel(), x[:, 1:].numel()):
                    self.now["shifted"] = torch.equal(y.reshape(len(x), -1)[:, : x.shape[1] - 1], x[:, 1:])
                self.losses += [self.now] if len(self.losses) < CALLS else []
        if training:
            self.acted(name, args, kwargs, out)

    def acted(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        learns = len(args) > 1 and isinstance(args[1], nn.Parameter) and args[1].requires_grad
        if name in WEIGHED and learns and torch.is_grad_enabled():
            self.strangers += args[1] not in self.written and args[1] not in self.optimized
        before = self.last[0] if self.last else ""
        if name in ("sigmoid", "tanh"):
            self.flat.add(before)
        if name in ("softmax", "log_softmax"):
            self.softened = out.detach(), kwargs.get("dim", args[1] if len(args) > 1 else None), args[0].detach()
        if name == "relu" and out.ndim > 1:
            share = float((out <= 0).transpose(0, 1).flatten(1).all(1).float().mean())
            self.dead[before] = min(share, self.dead.get(before, 1.0))
            self.rectified = before, out
        if name in PAIRED and len(args) > 1 and all(isinstance(a, Tensor) for a in args[:2]):
            one, other = shapes = sorted((list(a.shape) for a in args[:2]), key=len)
            if len(one) == 1 < one[0] and other == [*one, 1] and args[0].requires_grad != args[1].requires_grad:
                self.squares.append(shapes)

    def arrives(self, p: nn.Parameter, _: Tensor) -> None:
        """Notes whether all gradients since a step came on top of old ones: each optimizer has its own zero_grad()."""
        self.old[p] = self.old.get(p, True) and p.grad is not None and bool(p.grad.norm())

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if not self.broken and not bool(loss.isfinite().all()) and self.is_sound():
            where = next((name for name, finite in self.finite if not finite), "")
            self.broken = {"step": trainer.global_step, "first": where or (self.now or {}).get("name", "the loss")}

    def is_sound(self) -> bool:
        """Whether the weights are about as large as they were, and what the batch holds is finite."""
        tensors = [t for t in tree_leaves(self.batch) if isinstance(t, Tensor)]
        return norm(self.network) <= GROWN * self.size and all(bool(t.isfinite().all()) for t in tensors)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        mine = [p for group in optimizer.param_groups for p in group["params"]]
        old = [self.old.pop(p) for p in mine if p in self.old]
        self.begun, self.kept, self.stepped = self.begun + bool(old), self.kept + any(old), True
        self.graded |= {p for p in (*self.network.parameters(), *mine) if p.grad is not None}
        self.before = {n: p.detach().clone() for n, p in self.weights.items() if p.grad is not None}
        for name, before in self.before.items():
            ratio = self.weights[name].grad.norm() / before.norm().clamp(min=1e-12)
            self.ratios.setdefault(name, []).append(float(ratio))
        past, self.gradients = self.gradients, {n: cast(Tensor, self.weights[n].grad).clone() for n in self.before}
        pairs = [(g, past[n]) for n, g in self.gradients.items() if n in past]
        bad = [n for n, g in self.gradients.items() if not bool(g.isfinite().all())]
        if bad and not self.broken and trainer.precision != "16-mixed" and self.is_sound():  # whose scale is too large
            self.broken = {"step": trainer.global_step, "first": f"the gradient of {bad[-1]}"}
        self.noise += [(float((a - b).square().sum()) / 2, float((a * b).sum())) for a, b in pairs]

    def took(self, optimizer: Any, *_: Any) -> None:
        """Notes the norm of all gradients that a step has used: where it is always the same, they are cut to it."""
        used = [p.grad.norm() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.norms += [float(torch.stack(used).norm())] if used else []

    def on_train_batch_end(self, *_: Any) -> None:
        for name, before in self.before.items():
            change = (self.weights[name].detach() - before).norm() / before.norm().clamp(min=1e-12)
            self.layers[name] = {"gradient": self.ratios[name][-1], "update": float(change)}
        self.before = {}

    def measured(self) -> dict[str, Any]:
        if self.missed:
            raise self.missed
        first = self.losses[0] if self.losses else {"name": "", "plain": math.nan, "classes": 0}
        known = {"loss": first["name"], "plain_loss": first["plain"], "outputs": first["classes"]}
        return {"layers": self.layers, "received": self.moments(), **known, **self.noise_scale()}

    def moments(self) -> dict[str, Any] | None:
        """Of what the first layer with weights gets; of its columns the deviations that a tenth has less, or more."""
        if not self.received or "Norm" in type(self.entry).__name__:
            return None
        mean, square = torch.stack(self.received).mean(0)
        columns, middle = (square - mean.square()).clamp(min=0).sqrt(), mean.mean()
        known = {"mean": float(middle), "std": float((square.mean() - middle.square()).clamp(min=0).sqrt())}
        return known | {"columns": columns.quantile(torch.tensor([0.1, 0.9]).double()).tolist() if mean.ndim else None}

    def noise_scale(self) -> dict[str, Any]:
        """Samples at which the noise of a step's gradient is as large as that: tr(S) / |G|^2 (McCandlish et al., An
        Empirical Model of Large-Batch Training, 2018). Of two steps, half the square of the difference of gradients
        has the mean tr(S) / batch, and their product |G|^2."""
        x = tensor_of(self.inputs[0]) if self.inputs else None
        apart, along = (sum(part) for part in zip(*self.noise, strict=True)) if self.noise else (0.0, 0.0)
        if x is None or not along > 0:
            return {}
        batch = len(x) * self.trainer.accumulate_grad_batches
        return {"noise_scale": batch * apart / along, "batch": batch}

    def on_train_end(self, *_: Any) -> None:
        self.stack.close()

    def on_exception(self, *_: Any) -> None:
        self.stack.close()

    def only(self) -> Any:
        """The network's input, if it is a single tensor."""
        leaves = [t for t in tree_leaves(self.inputs or ()) if t is not None]
        return leaves[0] if len(leaves) == 1 and isinstance(leaves[0], Tensor) and leaves[0].ndim else None

    def again(self, change: Change, x: Any = None, double: bool = False) -> Any:
        """What the network gives for its last inputs, or for x, in evaluation, with other weights."""
        finer = partial(tree_map_only, Tensor, lambda t: t.double() if double and t.is_floating_point() else t)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            weights = {n: change(n, p) for n, p in self.whole.named_parameters()}
            args, kwargs = self.inputs if x is None else tree_map_only(Tensor, lambda _: x, self.inputs)
            tensors = finer(weights | dict(self.whole.named_buffers()))
            return tensor_of(functional_call(self.whole.eval(), tensors, finer(args), finer(kwargs)))

    def exactly(self, change: Change, x: Any = None) -> Any:
        """The same in double precision; None where the network cannot take that."""
        try:
            return self.again(change, x, double=True)
        except (RuntimeError, TypeError, ValueError, IndexError):  # of anyone's code
            return None

    def bounds(self) -> tuple[float, float]:
        """The least and greatest that the network gives, whatever its last weights are: of a sigmoid 0 and 1."""
        outs = [self.again(partial(lambda f, n, p: f * p if p in self.head else p, f)) for f in (1e3, -1e3)]
        ends = min(float(out.min()) for out in outs), max(float(out.max()) for out in outs)
        return ANY if torch.equal(*outs) else ends  # they are another head's


def norm(network: nn.Module) -> float:
    return math.hypot(*(float(p.detach().float().norm()) for p in network.parameters()))


def tensor_of(out: Any) -> Any:
    values = out.values() if isinstance(out, dict) else out if isinstance(out, (tuple, list)) else [out]
    return next((value.detach() for value in values if isinstance(value, Tensor)), None)
