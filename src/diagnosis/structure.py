"""What the first steps of a training show: the end of the network and its loss, weights, modes, gradients, units."""

import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from inspect import isbuiltin, signature
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from src.diagnosis.finding import BADLY, Finding, Overlay
from src.diagnosis.probe import Witness, network_of
from src.models.base import Model
from src.models.factory import is_weight

CLASSES = ("cross_entropy", "nll_loss", "binary_cross_entropy_with_logits", "binary_cross_entropy")
NUMBERS = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
MODES, PAIRED = ("dropout", "batch_norm"), (*NUMBERS, "sub", "__sub__", "__rsub__")
ENDS = {"relu": (0.0, math.inf), "sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}  # and what they give
ANY, UNSURE = (-math.inf, math.inf), ("large_initial_weights", "vanishing_gradients")
CALLS, LARGE, VANISHED = 8, 1.5, 1e-3  # losses that are looked at; of healthy runs the first was at most 4 % off
DEAD, FLAT, GELU = 0.9, (nn.Tanh, nn.Sigmoid), {"class_path": "torch.nn.GELU"}  # share of ReLUs; with flat ends
Row = tuple[Any, str, str, Overlay, dict[str, Any]]  # whether it is so, check, line, what mends it, numbers


class Structure(Witness, TorchFunctionMode):
    """Notes what the checks look at, by hooks and by the calls of torch's functions, by modules too."""

    name = "structure"
    network = inputs = out = last = end = recent = now = missed = cast(Any, None)  # end: name and module
    rectified: Any = None  # what the last ReLU gave, and the name of the layer before
    stepped, kept, begun = False, 0, 0  # kept: steps that began with old gradients

    def __init__(self) -> None:
        super().__init__()
        self.losses, self.squares = list[dict[str, Any]](), list[Any]()  # shapes of what is broadcast to a square
        self.modes: dict[tuple[bool, str], set[bool]] = {}  # of dropout and batch norm, in training or not
        self.called, self.old = dict[nn.Module, None](), dict[nn.Parameter, bool]()  # in the order of calls
        self.graded, self.head = set[nn.Parameter](), set[nn.Parameter]()
        self.ratios, self.dead = dict[str, list[float]](), dict[str, float]()
        self.before, self.stack = dict[str, Tensor](), ExitStack()  # weights before a step
        self.gradients, self.noise = dict[str, Tensor](), list[tuple[float, float]]()  # of the step before
        self.layers: dict[str, dict[str, float]] = {}  # gradient and update of each, over the weights

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.network, self.trainer = network_of(pl_module), trainer
        self.whole, named = self.network, self.network.named_parameters()
        embeddings = {m.weight for m in self.network.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
        self.weights = {n: p for n, p in named if is_weight(n, p) and len(p) > 1 and p not in embeddings}
        self.alike = {n: p.detach().clone() for n, p in self.weights.items() if bool((p == p[:1]).all())}
        self.optimized = {p for o in trainer.optimizers for group in o.param_groups for p in group["params"]}
        for name, module in self.network.named_modules():
            module.register_forward_hook(partial(self.passed, name), with_kwargs=True)
        for p in (p for p in self.optimized if p.requires_grad):
            p.register_hook(partial(self.arrives, p))
        self.stack.enter_context(torch.compiler.set_stance("force_eager"))  # no graph can be made of what is watched
        self.stack.enter_context(self)

    def passed(self, name: str, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        """A forward hook: inputs and output of the network, its last module, the last one with weights."""
        if self.trainer.training and torch.is_grad_enabled():
            self.called[module] = None
            if not any(True for _ in module.children()):
                self.last = name, module, out
                self.head = {*module.parameters(recurse=False)} or self.head
            taken = module is self.whole or any(True for _ in module.parameters())
            self.recent = (module, (args, kwargs), out) if taken else self.recent
            if module is self.whole:
                self.ends()

    def ends(self) -> None:
        self.whole, self.inputs, out = self.recent
        self.out, self.end = tensor_of(out), self.last[:2] if self.last and self.last[2] is out else None
        if self.rectified and self.rectified[1] is out:  # another check tells of that
            self.dead.pop(self.rectified[0], None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name, training = func(*args, **(kwargs or {})), getattr(func, "__name__", ""), self.trainer.training
        try:  # what cannot be noted must not end the training
            if name in CLASSES + NUMBERS + MODES and not isbuiltin(func):  # those have no signature
                bound = signature(func).bind(*args, **(kwargs or {}))
                bound.apply_defaults()
                given = bound.arguments
                if name in MODES and given.get("p", 1) and given.get("running_mean", 0) is not None:
                    whole = training and self.network.training  # a part of it may be meant to be frozen
                    self.modes.setdefault((training, name), set()).add(given["training"] or whole)
                elif name not in MODES and training:
                    if self.out is None and self.recent:  # not forward is called, but what was called last
                        self.ends()
                    self.now = noted(name, given, out, self.out)
                    self.losses += [self.now] if len(self.losses) < CALLS else []
            if name == "relu" and training and out.ndim > 1:
                before = self.last[0] if self.last else ""
                share = float((out <= 0).transpose(0, 1).flatten(1).all(1).float().mean())
                self.dead[before] = min(share, self.dead.get(before, 1.0))
                self.rectified = before, out
            if name in PAIRED and training and len(args) > 1 and all(isinstance(a, Tensor) for a in args[:2]):
                one, other = shapes = sorted((list(a.shape) for a in args[:2]), key=len)
                if len(one) == 1 < one[0] and other == [*one, 1] and args[0].requires_grad != args[1].requires_grad:
                    self.squares.append(shapes)
        except Exception as e:
            self.missed = e
        return out

    def arrives(self, p: nn.Parameter, _: Tensor) -> None:
        """Notes whether all gradients since a step came on top of old ones: each optimizer has its own zero_grad()."""
        self.old[p] = self.old.get(p, True) and p.grad is not None and bool(p.grad.norm())

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
        self.noise += [(float((a - b).square().sum()) / 2, float((a * b).sum())) for a, b in pairs]

    def on_train_batch_end(self, *_: Any) -> None:
        for name, before in self.before.items():
            change = (self.weights[name].detach() - before).norm() / before.norm().clamp(min=1e-12)
            self.layers[name] = {"gradient": self.ratios[name][-1], "update": float(change)}
        self.before = {}

    def measured(self) -> dict[str, Any]:
        if self.missed:
            raise self.missed
        first = next((m for m in self.called if [*m.parameters(False), *m.buffers(False)]), None)
        known = {
            "loss": self.losses[0]["name"] if self.losses else "",
            "plain_loss": self.losses[0]["plain"] if self.losses else math.nan,
            "begins_with_norm": "Norm" in type(first).__name__,
        }
        return {"layers": self.layers, **known, **self.noise_scale()}

    def noise_scale(self) -> dict[str, Any]:
        """Samples at which the noise of a step's gradient is as large as that: tr(S) / |G|^2 (McCandlish et al., An
        Empirical Model of Large-Batch Training, 2018). Of two steps, half the square of the difference of gradients
        has the mean tr(S) / batch, and their product |G|^2."""
        x = tensor_of(self.inputs[0]) if self.inputs else None
        apart, along = (sum(part) for part in zip(*self.noise, strict=True)) if self.noise else (0.0, 0.0)
        if x is None or along <= 0:
            return {}
        batch = len(x) * self.trainer.accumulate_grad_batches
        return {"noise_scale": batch * apart / along, "batch": batch}

    def on_train_end(self, *_: Any) -> None:
        self.stack.close()

    def on_exception(self, *_: Any) -> None:
        self.stack.close()

    def again(self, change: Callable[[str, Tensor], Tensor]) -> Any:
        """What the network gives for its last inputs, in evaluation, with other weights."""
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            weights = {n: change(n, p) for n, p in self.whole.named_parameters()}
            return tensor_of(functional_call(self.whole.eval(), weights, *self.inputs))

    def bounds(self) -> tuple[float, float]:
        """The least and greatest that the network gives, whatever its last weights are: of a sigmoid 0 and 1."""
        outs = [self.again(partial(lambda f, n, p: f * p if p in self.head else p, f)) for f in (1e3, -1e3)]
        ends = min(float(out.min()) for out in outs), max(float(out.max()) for out in outs)
        return ANY if torch.equal(*outs) else ends  # they are another head's


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
    numbers["log_off"] = float(x.logsumexp(min(1, x.ndim - 1)).abs().max())
    numbers["value"] = float(value.detach().mean()) / (targets.numel() if given.get("reduction") == "sum" else 1)
    weighs = any(given.get(of) is not None for of in ("weight", "pos_weight")) or given.get("label_smoothing")
    numbers["plain"] = math.nan if weighs or targets.numel() != len(x) else numbers["value"]
    return {"name": name, "kind": "".join(kinds[:1]), "targets": targets.flatten()[:10_000].float(), **numbers}


def in_model(model: Any, **keys: Any) -> Overlay:
    return {"model": {"init_args": keys}} if all(keys.values()) else {}


def the_end(seen: Structure, model: Any) -> Iterator[Row]:
    """What the loss takes for logits, or for numbers of any size, is not: in all of the first steps, and also with
    1,000 times the last weights and their negatives."""
    for a, b in seen.squares[:1]:
        line = "the loss compares each output with all targets -> squeeze one of them, or unsqueeze the other"
        yield True, "shape_broadcast", line, {}, {"shapes": [a, b]}
    for one in seen.losses[:1]:
        name, kind = one["name"], one["kind"] if all(c["kind"] == one["kind"] for c in seen.losses) else ""
        ends = seen.bounds() if kind in ("nothing", "sigmoid") and seen.head else ANY
        least, most = ENDS.get(kind, ends)
        end, of = seen.end or ("", None), name in CLASSES[::2]  # losses of logits
        is_activation = type(end[1]).__module__ == "torch.nn.modules.activation"
        swap = in_model(model, swap={end[0]: {"class_path": "torch.nn.Identity"}}) if is_activation else {}
        log = swap or (in_model(model, outputs="probabilities") if hasattr(model, "outputs") else {})
        low, high = min(c["low"] for c in seen.losses), max(c["high"] for c in seen.losses)
        sums = low >= 0 and all(c["off"] < 1e-3 for c in seen.losses) and name in CLASSES[:2]
        above, below = least >= 0 and most > 0 and not sums, most <= 1 + 1e-6
        few = one["classes"] == 1 and name in CLASSES[:2]
        targets = torch.cat([c["targets"] for c in seen.losses])
        beyond = float(((targets < least) | (targets > most)).float().mean())
        cut = (above or (below and least >= -1 - 1e-6)) and beyond > 0.01
        numbers = {"loss": name, "least": low, "greatest": high, "targets_beyond": beyond}
        line, last = f"{name} wants logits, but gets", "-> let the network end in a linear layer"
        if name == "nll_loss":
            line, last = f"{name} wants log-probabilities, but gets", "-> take log_softmax, or cross_entropy"
            off = not few and not sums and all(c["log_off"] > 0.01 for c in seen.losses)
            yield off, "no_log_probabilities", f"{line} what does not sum to 1 {last}", {}, numbers
        p, q = torch.tensor(ends).sigmoid().tolist() if kind == "sigmoid" else ends  # as after two sigmoids
        half = name == "binary_cross_entropy" and q - p > 1e-3 and (p > 0.4999 or q < 0.5001)
        yield half, "sigmoid_before_loss", "outputs keep to one side of 0.5 -> take a sigmoid only once", swap, numbers
        yield few, "one_class", "a softmax over one class is always 1 -> take an output for each", {}, numbers
        yield sums and not few, "softmax_before_loss", f"{line} probabilities {last}", log, numbers
        yield of and above and below, "sigmoid_before_loss", f"{line} what a sigmoid gives {last}", log, numbers
        yield of and above and not below, "head_activation", f"{line} none below 0 {last}", swap, numbers
        line = f"outputs are kept from what targets are {last}"
        yield name in NUMBERS and cut, "head_activation", line, swap, numbers


def beginning(seen: Structure, model: Any) -> Iterator[Row]:
    """The first loss of a classifier is near ln C, and that of a regression near the mean square of its targets."""
    reset, rows = in_model(model, reset=True), () if seen.out is None else seen.out.shape[1:]
    hidden = {n: p.detach() for n, p in seen.weights.items() if len(p) not in rows and seen.out is not None}
    pairs = [(n, hidden[n], old) for n, old in seen.alike.items() if n in hidden]
    alike = [n for n, p, old in pairs if (p - p[:1]).abs().max() <= 0.1 * (p - old).abs().max() + 1e-6 * p.abs().max()]
    line = "units begin alike, and stay so -> draw the weights at random"
    yield 2 * len(alike) > len(hidden), "constant_weights", line, reset, {"layers": alike[:5]}
    for one in seen.losses[:1]:
        square = 2 * float(one["targets"].square().mean())
        usual = {"cross_entropy": math.log(max(one["classes"], 2)), "mse_loss": square}.get(one["name"], math.inf)
        large, numbers = min(one["value"] / LARGE, seen.now["value"]) > usual, {"loss": one["value"], "usual": usual}
        yield large, "large_initial_weights", "the first loss is too large -> draw smaller weights", reset, numbers
    end = (seen.end or ("", None))[0]
    dead = {n: share for n, share in seen.dead.items() if share > DEAD and not alike}
    line = f"{len(dead)} layers of ReLUs give 0 for all inputs -> draw the weights anew, with no bias"
    yield dead, "dead_units", line, reset, {"layers": [*dead][:5], "share": max(dead.values(), default=0.0)}
    flat = [n for n, m in seen.network.named_modules() if isinstance(m, FLAT) and n != end]
    medians = {p: statistics.median(seen.ratios[n]) for n, p in seen.weights.items() if n in seen.ratios}
    ratios = [medians[p] for m in seen.called for p in m.parameters(recurse=False) if p in medians]  # by depth
    for change in (reset, in_model(model, swap=dict.fromkeys(flat, GELU))) if len(ratios) > 1 and not dead else ():
        line, first, last = "hardly a gradient comes to the first layer -> take ReLU", ratios[0], ratios[-1]
        yield first <= VANISHED * last, "vanishing_gradients", line, change, {"first": first, "last": last}


def blind(seen: Structure, model: Any) -> Iterator[Row]:
    """Samples that differ get one answer, with weights drawn anew, too."""

    def draw(name: str, p: Tensor) -> Tensor:
        return torch.randn_like(p) * p[0].numel() ** -0.5 if p.ndim > 1 else torch.full_like(p, "bias" not in name)

    x = tensor_of(seen.inputs[0]) if seen.inputs else None
    single = any(p.numel() == 1 for n, p in seen.network.named_parameters() if n.endswith("weight"))  # its norm is 0
    if x is not None and x.ndim > 1 and not single and bool((x != x[:1]).any()):
        out = seen.again(draw)
        same = len(out) == len(x) and float((out - out[:1]).abs().max()) <= 1e-6 * float(out.abs().max())
        line = "the network gives one answer for all inputs -> see what it does to x"
        yield same, "ignores_input", line, {}, {"samples": len(x)}


def updates(seen: Structure, model: Any) -> Iterator[Row]:
    """Layers that took part, and are in the optimizer, but get no gradient; weights that it does not know; modes."""
    own = {n: {*m.parameters(recurse=False)} for n, m in seen.network.named_modules() if m in seen.called}
    learn = {p for p in seen.optimized if p.requires_grad}
    lost = [n for n, params in own.items() if params & learn and not params & seen.graded and seen.stepped]
    known = [(p in seen.optimized, n) for n, p in seen.network.named_parameters() if p in seen.graded]
    head = known == sorted(known, key=lambda one: one[0]) and seen.optimized & seen.graded  # it alone is to learn
    alien = [n for learns, n in known if not learns and not head]
    for names, line in ((lost, "get no gradient"), (alien, "are not in the optimizer")):
        line = f"{len(names)} parts of the network {line} -> see what detaches them, or leaves them out"
        yield names, "untrained_parameters", line, {}, {"names": names[:5]}
    wrong = [n for n in MODES if seen.modes.get((True, n)) == {False} or True in seen.modes.get((False, n), ())]
    line = f"{' and '.join(wrong)} take training for evaluation, or the other way round"
    yield wrong, "wrong_mode", f"{line} -> leave train() and eval() to the Trainer", {}, {"of": wrong}
    kept, line = seen.kept > max(seen.begun / 2, 2), "gradients of earlier steps are there when a step begins"
    yield kept, "gradients_not_reset", f"{line} -> call zero_grad() in each step", {}, {"steps": seen.kept}


class Look(Witness):
    """A check of what was seen, of which another's failure does not matter."""

    def __init__(self, seen: Structure, look: Callable[[Structure, Any], Iterator[Row]], source: str) -> None:
        self.seen, self.look, self.source, self.name = seen, look, source, look.__name__

    def found(self, trainer: Trainer, model: LightningModule) -> list[Finding]:
        rows = self.look(self.seen, model) if self.seen.network is not None else ()  # it may have failed before
        self.is_ours = isinstance(model, Model)
        return [self.told(*row[1:]) for row in rows if row[0] and (row[3] or row[1] not in UNSURE)]  # others are tried

    def told(self, check: str, line: str, change: Overlay, numbers: dict[str, Any]) -> Finding:
        certain, (what, _, todo) = check not in UNSURE, line.partition(" -> ")
        gain, sure = (0.5, 0.95) if certain else (0.3, 0.6)
        todo = "" if change and self.is_ours else todo  # a module has no config that could be changed
        return Finding(check, BADLY, what, numbers, gain, sure, change, todo, certain=certain, source=self.source)


def watches() -> list[Witness]:
    seen, recipe = Structure(), "Karpathy, A Recipe for Training Neural Networks, 2019"
    looks = {the_end: "NeuraLint, 2021", beginning: recipe, blind: recipe, updates: "TrainCheck, 2025"}
    return [seen, *(Look(seen, look, source) for look, source in looks.items())]
