"""What the first steps of a training show: the end of the network and its loss, weights, modes, gradients, units."""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
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

CLASSES = ("cross_entropy", "binary_cross_entropy_with_logits")
SOFTMAX, PROBABLE = (
    ("cross_entropy", "nll_loss"),
    ("nll_loss", "binary_cross_entropy"),
)  # losses of probabilities, or of their logarithms
NUMBERS = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
MODES, PAIRED = ("dropout", "batch_norm"), (*NUMBERS, "sub", "__sub__", "__rsub__")
ENDS = {"relu": (0.0, math.inf), "sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}  # and what they give
ANY, UNSURE = (-math.inf, math.inf), ("large_initial_weights", "vanishing_gradients")
CALLS, LARGE, VANISHED = 8, 1.5, 1e-3  # losses that are looked at; of healthy runs the first was at most 4 % off
DEAD, FLAT = 0.9, (nn.Tanh, nn.Sigmoid)  # share of units; at an end, where no gradient comes through
TABLES = (nn.Embedding, nn.EmbeddingBag)  # of which a batch reaches few rows
Row = tuple[Any, str, str, Overlay, dict[str, Any]]  # whether it is so, check, line, what mends it, numbers


class Structure(Witness, TorchFunctionMode):
    """Notes what the checks look at, by hooks and by the calls of torch's functions, by modules too."""

    name = "structure"
    network = inputs = out = last = end = recent = now = stance = missed = cast(Any, None)
    # end: name and module whose output is the network's; now: the latest loss

    def __init__(self) -> None:
        super().__init__()
        self.losses, self.squares = list[dict[str, Any]](), list[Any]()  # shapes of what is broadcast to a square
        self.modes: dict[tuple[bool, str], set[bool]] = {}  # of dropout and batch norm, in training or not
        self.stepped = False
        self.kept = self.begun = 0  # steps that began with old gradients, and all
        self.called = dict[nn.Module, None]()  # in the order of calls
        self.graded, self.head, self.tail = set[nn.Parameter](), set[nn.Parameter](), set[nn.Parameter]()
        self.old: dict[nn.Parameter, bool] = {}  # whether all gradients since a step came on top of others
        self.ratios, self.dead = dict[str, list[float]](), dict[str, float]()
        self.before: dict[str, Tensor] = {}  # weights before a step
        self.layers: dict[str, dict[str, float]] = {}  # gradient and update of each, over the weights

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.network = self.whole = network_of(pl_module)
        self.trainer = trainer
        tables = {p for m in self.network.modules() if isinstance(m, TABLES) for p in m.parameters()}
        named = [(n, p) for n, p in self.network.named_parameters() if p not in tables]
        self.weights = {n: p for n, p in named if is_weight(n, p) and len(p) > 1}
        self.alike = {n: p.detach().clone() for n, p in self.weights.items() if bool((p == p[:1]).all())}
        self.optimized = {p for o in trainer.optimizers for group in o.param_groups for p in group["params"]}
        for name, module in self.network.named_modules():
            module.register_forward_hook(partial(self.passed, name), with_kwargs=True)
        for p in self.optimized:
            if p.requires_grad:
                p.register_hook(partial(self.arrives, p))
        self.stance = torch.compiler.set_stance("force_eager")  # no graph can be made of what is watched
        self.__enter__()

    def passed(self, name: str, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        """A forward hook: inputs and output of the network, its last module, the last one with weights."""
        if self.trainer.training and torch.is_grad_enabled():
            self.called[module] = None
            if not any(True for _ in module.children()):
                self.last = name, module, out
                self.tail = {*module.parameters(recurse=False)} or self.tail
            if isinstance(module, nn.ReLU) and out.ndim > 1:
                share = float((out <= 0).transpose(0, 1).flatten(1).all(1).float().mean())
                self.dead[name] = min(share, self.dead.get(name, 1.0))
            if any(True for _ in module.parameters()):
                self.recent = module, (args, kwargs), out
            if module is self.whole:
                self.ends()

    def ends(self) -> None:
        self.whole, self.inputs, out = self.recent
        self.out, self.head = tensor_of(out), self.tail
        self.end = self.last[:2] if self.last[2] is out else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        try:
            self.note(getattr(func, "__name__", ""), func, args, kwargs or {}, out)
        except Exception as e:  # must not end the training
            self.missed = e
        return out

    def note(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        training = self.trainer.training
        if name in (*CLASSES, *PROBABLE, *NUMBERS, *MODES) and not isbuiltin(func):  # those have no signature
            bound = signature(func).bind(*args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments
            if name in MODES and given.get("p", 1) and given.get("running_mean", 0) is not None:
                whole = training and self.network.training  # a part of it may be meant to be frozen
                self.modes.setdefault((training, name), set()).add(given["training"] or whole)
            elif name not in MODES and training:
                if self.out is None and self.recent:  # forward is not called, but the module that was called last
                    self.ends()
                self.now = noted(name, given, out, self.out)
                self.losses += [self.now] if len(self.losses) < CALLS else []
        if name in PAIRED and training and len(args) > 1 and all(isinstance(a, Tensor) for a in args[:2]):
            self.pair(*args[:2])

    def pair(self, a: Tensor, b: Tensor) -> None:
        one, other = sorted((list(a.shape), list(b.shape)), key=len)
        if len(one) == 1 and one[0] > 1 and other == [*one, 1] and a.requires_grad != b.requires_grad:
            self.squares.append([list(a.shape), list(b.shape)])

    def arrives(self, p: nn.Parameter, _: Tensor) -> None:
        """Before a gradient is added: of several networks, others may have left theirs until zero_grad()."""
        self.old[p] = self.old.get(p, True) and p.grad is not None and bool(p.grad.norm())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        mine = [p for group in optimizer.param_groups for p in group["params"]]
        old = {p: self.old.pop(p) for p in mine if p in self.old}
        if again := [kept for p, kept in old.items() if p in self.graded]:
            self.begun, self.kept = self.begun + 1, self.kept + any(again)
        self.stepped = True
        self.graded |= {p for p in (*self.network.parameters(), *mine) if p.grad is not None}
        self.before = {n: p.detach().clone() for n, p in self.weights.items() if p.grad is not None}
        for name, before in self.before.items():
            ratio = cast(Tensor, self.weights[name].grad).norm() / before.norm().clamp(min=1e-12)
            self.ratios.setdefault(name, []).append(float(ratio))

    def on_train_batch_end(self, *_: Any) -> None:
        for name, before in self.before.items():
            change = (self.weights[name].detach() - before).norm() / before.norm().clamp(min=1e-12)
            self.layers[name] = {"gradient": self.ratios[name][-1], "update": float(change)}
        self.before = {}

    def found(self, trainer: Trainer, model: LightningModule) -> list[Finding]:
        if self.missed:
            raise self.missed
        return []

    def measured(self) -> dict[str, Any]:
        return {"layers": self.layers}

    def on_train_end(self, *_: Any) -> None:
        if self.stance:
            self.__exit__(None, None, None)
            self.stance.__exit__(None, None, None)
            self.stance = None

    on_exception = on_train_end

    def again(self, change: Callable[[str, Tensor], Tensor]) -> Any:
        """What the network gives for its last inputs, in evaluation, with other weights."""
        with torch.no_grad():
            weights = {n: change(n, p) for n, p in self.whole.named_parameters()}
            return tensor_of(functional_call(self.whole.eval(), weights, *self.inputs))

    def bounds(self) -> tuple[float, float]:
        """The least and greatest that the network gives, whatever its last weights are: of a linear end, one is less
        the other. Of a sigmoid they are 0 and 1."""
        last = [partial(lambda f, n, p: f * p if p in self.head else p, f) for f in (1e3, -1e3)]
        outs = [self.again(change) for change in last]
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
    numbers["log_off"] = float(x.logsumexp(min(1, x.ndim - 1)).abs().max())
    numbers["value"] = float(value.detach().mean()) / (targets.numel() if given.get("reduction") == "sum" else 1)
    return {"name": name, "kind": "".join(kinds[:1]), "targets": targets.flatten()[:10_000].float(), **numbers}


def in_model(model: Any, **keys: Any) -> Overlay:
    return {"model": {"init_args": keys}} if isinstance(model, Model) and all(keys.values()) else {}


def modules(names: Iterable[str], by: str) -> dict[str, Any]:
    return {name: {"class_path": f"torch.nn.{by}"} for name in names}


def the_end(seen: Structure, model: Any) -> Iterator[Row]:
    """What the loss takes for logits, or for numbers of any size, is not: in all of the first steps, and also with
    1,000 times the last weights and their negatives."""
    for a, b in seen.squares[:1]:
        line = "the loss compares each output with all targets -> squeeze one of them, or unsqueeze the other"
        yield True, "shape_broadcast", line, {}, {"shapes": [a, b]}
    for one in seen.losses[:1]:
        name, kind = one["name"], one["kind"] if all(c["kind"] == one["kind"] for c in seen.losses) else ""
        least, most = seen.bounds() if kind == "nothing" and seen.head else ENDS.get(kind, ANY)
        end, of = seen.end or ("", None), name in CLASSES
        is_activation = type(end[1]).__module__ == "torch.nn.modules.activation"
        swap = in_model(model, swap=modules(end[:1], "Identity")) if is_activation else {}
        log = swap or (in_model(model, outputs="probabilities") if hasattr(model, "outputs") else {})
        low, high = min(c["low"] for c in seen.losses), max(c["high"] for c in seen.losses)
        sums = low >= 0 and all(c["off"] < 1e-3 for c in seen.losses) and name in SOFTMAX
        above, below = least >= 0 and most > 0 and not sums, most <= 1 + 1e-6
        few = one["classes"] == 1 and name in SOFTMAX
        targets = torch.cat([c["targets"] for c in seen.losses])
        beyond = float(((targets < least) | (targets > most)).float().mean())
        cut = (above or (below and least >= -1 - 1e-6)) and beyond > 0.01
        numbers = {"loss": name, "least": low, "greatest": high, "targets_beyond": beyond}
        logs = name == "nll_loss" and not few and not sums and all(c["log_off"] > 0.01 for c in seen.losses)
        line, last = f"{name} wants logits, but gets", "-> let the network end in a linear layer"
        if name in PROBABLE:
            line = f"{name} wants {'log-' * (name == 'nll_loss')}probabilities, but gets"
            last = "-> take log_softmax, or cross_entropy with a linear end"
            one_side = half(*seen.bounds(), kind) if name == PROBABLE[1] and kind and seen.head else False
            linear = "-> let the network end in one linear layer before the sigmoid"
            yield one_side, "sigmoid_before_loss", f"{line} them from one side of 0.5 alone {linear}", swap, numbers
            yield logs, "no_log_probabilities", f"{line} what does not sum to 1 {last}", {}, numbers
        yield few, "one_class", "a softmax over one class is always 1 -> take an output for each", {}, numbers
        yield sums and not few, "softmax_before_loss", f"{line} probabilities {last}", log, numbers
        yield of and above and below, "sigmoid_before_loss", f"{line} what a sigmoid gives {last}", log, numbers
        yield of and above and not below, "head_activation", f"{line} none below 0 {last}", swap, numbers
        yield (
            name in NUMBERS and cut,
            "head_activation",
            f"outputs are kept from what targets are {last}",
            swap,
            numbers,
        )


def half(least: float, most: float, kind: str) -> bool:
    """Whether probabilities have only one side of 0.5, as after two sigmoids."""
    low, high = torch.tensor([least, most]).sigmoid().tolist() if kind == "sigmoid" else (least, most)
    return high > low + 1e-3 and (low >= 0.5 - 1e-6 or high <= 0.5 + 1e-6)


def still_alike(p: Tensor, before: Tensor) -> bool:
    """Whether rows differ by far less than they have moved."""
    spread, moved = float((p - p[:1]).abs().max()), float((p - before).abs().max())
    return spread <= 0.01 * moved + 1e-6 * float(p.abs().max())


def beginning(seen: Structure, model: Any) -> Iterator[Row]:
    """The first loss of a classifier is near ln C, and that of a regression near the mean square of its targets."""
    reset, rows = in_model(model, reset=True), () if seen.out is None else seen.out.shape[1:]
    hidden = {n for n, p in seen.weights.items() if len(p) not in rows} if rows else ()
    alike = sorted(n for n, p in seen.alike.items() if n in hidden and still_alike(seen.weights[n].detach(), p))
    line = "units begin alike, and stay so -> draw the weights at random"
    yield 2 * len(alike) > len(hidden), "constant_weights", line, reset, {"layers": alike[:5]}
    for one in seen.losses[:1]:
        square = 2 * float(one["targets"].square().mean())
        usual = {"cross_entropy": math.log(max(one["classes"], 2)), "mse_loss": square}.get(one["name"], math.inf)
        large, numbers = min(one["value"] / LARGE, seen.now["value"]) > usual, {"loss": one["value"], "usual": usual}
        yield large, "large_initial_weights", "the first loss is too large -> draw smaller weights", reset, numbers
    end = (seen.end or ("", None))[0]
    dead = {n: share for n, share in seen.dead.items() if share > DEAD and n != end}
    line = f"{len(dead)} layers of ReLUs give 0 for all inputs -> draw the weights anew, with no bias"
    yield dead, "dead_units", line, reset, {"layers": [*dead][:5], "share": max(dead.values(), default=0.0)}
    flat = [n for n, m in seen.network.named_modules() if isinstance(m, FLAT) and n != end]
    names, calls = (
        {p: n for n, p in seen.weights.items()},
        [p for m in seen.called for p in m.parameters(recurse=False)],
    )
    ratios = [statistics.median(seen.ratios[names[p]]) for p in calls if names.get(p) in seen.ratios]
    for change in (reset, in_model(model, swap=modules(flat, "GELU"))) if len(ratios) > 1 and not dead else ():
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
    whole = [(n, p in seen.optimized) for n, p in seen.network.named_parameters() if p in seen.graded]
    left = [n for n, known in whole if not known]
    alien = left if left != [n for n, _ in whole[: len(left)]] else []  # all up to a layer: only the head is to learn
    for names, line in ((lost, "get no gradient"), (alien, "are not in the optimizer")):
        line = f"{len(names)} parts of the network {line} -> see what detaches them, or leaves them out"
        yield names, "untrained_parameters", line, {}, {"names": names[:5]}
    wrong = [n for n in MODES if seen.modes.get((True, n)) == {False} or True in seen.modes.get((False, n), ())]
    line = f"{' and '.join(wrong)} take training for evaluation, or the other way round"
    yield wrong, "wrong_mode", f"{line} -> leave train() and eval() to the Trainer", {}, {"of": wrong}
    kept, line = seen.begun > 2 and seen.kept == seen.begun, "gradients of earlier steps are there when a step begins"
    yield kept, "gradients_not_reset", f"{line} -> call zero_grad() in each step", {}, {"steps": seen.kept}


class Look(Witness):
    """A check of what was seen, of which another's failure does not matter."""

    def __init__(self, seen: Structure, look: Callable[[Structure, Any], Iterator[Row]], source: str) -> None:
        self.seen, self.look, self.source, self.name = seen, look, source, look.__name__

    def found(self, trainer: Trainer, model: LightningModule) -> list[Finding]:
        rows = self.look(self.seen, model) if self.seen.network else ()  # it may have failed before
        return [self.told(*row[1:]) for row in rows if row[0] and (row[3] or row[1] not in UNSURE)]  # others are tried

    def told(self, check: str, line: str, change: Overlay, numbers: dict[str, Any]) -> Finding:
        certain, (what, _, todo) = check not in UNSURE, line.partition(" -> ")
        gain, sure = (0.5, 0.95) if certain else (0.3, 0.6)
        found = Finding(check, BADLY, what, numbers, gain, sure, change, certain=certain, source=self.source)
        return found if change else replace(found, todo=todo)


def watches() -> list[Witness]:
    seen, recipe = Structure(), "Karpathy, A Recipe for Training Neural Networks, 2019"
    looks = {the_end: "NeuraLint, 2021", beginning: recipe, blind: recipe, updates: "TrainCheck, 2025"}
    return [seen, *(Look(seen, look, source) for look, source in looks.items())]
