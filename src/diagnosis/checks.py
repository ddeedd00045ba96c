"""Checks of what was noted of the first steps: the end and the loss, weights, what passes, gradients, modes."""

import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from src.diagnosis.again import blind, linear, mixing, stateful, unshifted
from src.diagnosis.finding import BADLY, Finding, Overlay, Row
from src.diagnosis.losses import CLASSES, ENDS, NUMBERS, alone
from src.diagnosis.metric import best_where
from src.diagnosis.probe import Observer
from src.diagnosis.structure import ANY, DEEP, MODES, Structure
from src.models.base import Model
from src.run.private import times_written

LARGE, VANISHED = 1.5, 1e-3  # of healthy runs the first loss was at most 4 % off
MAYBE, SURE = 0.6, 0.95
FAR = 100  # the root of the mean square of targets, which a new network is far from
DEAD, FEW = 0.9, 0.1  # share of ReLUs; of a gradient
ZEROS = 0.2  # of logits: a ReLU gives half, and a mean of ReLUs, which is meant so, hardly one
FLAT, GELU = (nn.Tanh, nn.Sigmoid), {"class_path": "torch.nn.GELU"}  # with flat ends
STEPS, CUT = 10, 0.1  # in which gradients are cut to one norm, below which that matters
FOR, MOST_ROWS = ("index", "one-hot"), 1000  # targets that are classes; of a matrix


def in_model(**keys: Any) -> Overlay:
    return {"model": {"init_args": keys}} if all(keys.values()) else {}


def targets(seen: Structure, model: Any) -> Iterator[Row]:
    """What outputs are compared with: each with all, or numbers with classes."""
    for a, b in seen.squares[:1]:
        line = "the loss compares each output with all targets -> squeeze one of them, or unsqueeze the other"
        yield True, "shape_broadcast", line, {}, {"shapes": [a, b]}
    for one in seen.losses[:1]:
        name, labels = one["name"], one["labels"] if all(c["labels"] == one["labels"] for c in seen.losses) else ""
        line = f"{name} of classes -> take cross_entropy of logits" + " and class indices" * (labels == "one-hot")
        numbers = {"loss": name, "targets": labels, "outputs": one["classes"]}
        yield name in NUMBERS and labels in FOR and (labels == "index" or MAYBE), "wrong_loss", line, {}, numbers
        line = "cross_entropy wants one class a sample, targets have several -> take binary_cross_entropy_with_logits"
        yield name == CLASSES[0] and labels == "several", "wrong_loss", line, {}, numbers
        sums = one["low"] >= 0 and one["classes"] > 1 and all(c["off"] < 1e-3 for c in seen.losses)
        line = f"{name} of several classes a sample gets a softmax, which has room for one -> take a sigmoid"
        size = float(one["targets"].square().mean().sqrt())
        yield name in NUMBERS and size > FAR, "target_scale", "large targets -> standardize them", {}, {"size": size}
        several = name == CLASSES[3] and labels == "several"
        yield several and sums, "softmax_before_loss", line, {}, numbers


def the_end(seen: Structure, model: Any) -> Iterator[Row]:
    """What the loss takes for logits, or for numbers of any size, is not: in all of the first steps, and also with
    1,000 times the last weights and their negatives."""
    for one in seen.losses[:1]:
        name, kind = one["name"], one["kind"] if all(c["kind"] == one["kind"] for c in seen.losses) else ""
        ends = seen.bounds() if kind in ("nothing", "sigmoid") and seen.head else ANY
        least, most = ENDS.get(kind, ends)
        end, of = seen.end or ("", None), name in CLASSES[::2]  # losses of logits
        is_activation = type(end[1]).__module__ == "torch.nn.modules.activation"
        swap = in_model(swap={end[0]: {"class_path": "torch.nn.Identity"}}) if is_activation else {}
        log = swap or (in_model(outputs="probabilities") if hasattr(model, "outputs") else {})
        low, high = min(c["low"] for c in seen.losses), max(c["high"] for c in seen.losses)
        sums = low >= 0 and all(c["off"] < 1e-3 for c in seen.losses) and name in CLASSES[:2]
        across = name == CLASSES[0] and all(c.get("across") for c in seen.losses)
        above, below = least >= 0 and most > 0 and not sums and not across, most <= 1 + 1e-6
        few = alone(one)
        wanted = torch.cat([c["targets"] for c in seen.losses])
        beyond = float(((wanted < least) | (wanted > most)).float().mean())
        cut = (above or (below and least >= -1 - 1e-6)) and beyond > 0.01
        numbers = {"loss": name, "least": low, "greatest": high, "targets_beyond": beyond}
        line, last = f"{name} wants logits, but gets", "-> let the network end in a linear layer"
        if name == "nll_loss":
            line, last = f"{name} wants log-probabilities, but gets", "-> take log_softmax, or cross_entropy"
        p, q = torch.tensor(ends).sigmoid().tolist() if kind == "sigmoid" else ends  # as after two sigmoids
        half = name == "binary_cross_entropy" and q - p > 1e-3 and (p > 0.4999 or q < 0.5001)
        yield half, "sigmoid_before_loss", "outputs keep to one side of 0.5 -> take a sigmoid only once", swap, numbers
        yield few, "one_class", "a softmax over one class is always 1 -> take an output for each", {}, numbers
        yield sums and not few and not across, "softmax_before_loss", f"{line} probabilities {last}", log, numbers
        text = f"{name} gets a softmax over the samples -> leave it out"
        yield across, "softmax_before_loss", text, swap, numbers
        yield of and above and below, "sigmoid_before_loss", f"{line} what a sigmoid gives {last}", log, numbers
        cut_off = name == CLASSES[2] or min(c["zeros"] for c in seen.losses) > ZEROS  # a softmax minds no shift
        lost = of and above and not below and (cut_off or (bool(swap) and MAYBE))
        yield lost, "head_activation", f"{line} none below 0 {last}", swap, numbers
        line = f"outputs are kept from what targets are {last}"
        yield name in NUMBERS and cut, "head_activation", line, swap, numbers


def log_probabilities(seen: Structure, model: Any) -> Iterator[Row]:
    """What nll_loss gets is a log_softmax over the classes, of what has no ReLU at its end."""
    for one in (one for one in seen.losses[:1] if one["name"] == "nll_loss" and not alone(one)):
        least, most = min(c["low"] for c in seen.losses), max(c["high"] for c in seen.losses)
        numbers = {"loss": one["name"], "least": least, "greatest": most}
        sums = least >= 0 and all(c["off"] < 1e-3 for c in seen.losses)  # another check tells of that
        off = not sums and all(c["log_off"] > 0.01 for c in seen.losses)
        line = "nll_loss wants log-probabilities, but gets what does not sum to 1 -> take log_softmax, or cross_entropy"
        if (over := one.get("over", 1)) != 1:
            line = f"nll_loss wants log-probabilities, but gets a softmax over dimension {over} -> take dimension 1"
        yield off, "no_log_probabilities", line, {}, numbers
        cut, line = min(c.get("cut", 0.0) for c in seen.losses) > ZEROS, "a softmax gets none below 0"
        yield cut, "head_activation", f"{line} -> let the network end in a linear layer", {}, numbers


def beginning(seen: Structure, model: Any) -> Iterator[Row]:
    """The first loss of a classifier is near ln C, and that of a regression near the mean square of its targets."""
    reset, rows = in_model(reset=True), () if seen.out is None else seen.out.shape[1:]
    hidden = {n: p.detach() for n, p in seen.weights.items() if len(p) not in rows and seen.out is not None}
    pairs = [(n, hidden[n], old) for n, old in seen.alike.items() if n in hidden]
    alike = [n for n, p, old in pairs if (p - p[:1]).abs().max() <= 0.1 * (p - old).abs().max() + 1e-6 * p.abs().max()]
    line = "units begin alike, and stay so -> draw the weights at random"
    yield 2 * len(alike) > len(hidden), "constant_weights", line, reset, {"layers": alike[:5]}
    for one in seen.losses[:1]:
        usual = math.log(max(one["classes"], 2)) if one["name"] == CLASSES[0] else math.inf
        if one["name"] in NUMBERS:  # twice that of 0 for all
            usual = 2 * float(getattr(F, one["name"])(torch.zeros_like(one["targets"]), one["targets"]))
        large, line = min(one["value"] / LARGE, seen.now["value"]) > usual, "the first loss is too large"
        numbers = {"loss": one["value"], "usual": usual}
        yield reset and large and MAYBE, "large_initial_weights", f"{line} -> draw smaller weights", reset, numbers
    end = (seen.end or ("", None))[0]
    dead = {n: share for n, share in seen.dead.items() if share > DEAD and not alike}
    line = f"{len(dead)} layers of ReLUs give 0 for all inputs -> draw the weights anew, with no bias"
    yield dead, "dead_units", line, reset, {"layers": [*dead][:5], "share": max(dead.values(), default=0.0)}
    flat = [n for n, m in seen.network.named_modules() if isinstance(m, FLAT) and n != end]
    medians = {p: statistics.median(seen.ratios[n]) for n, p in seen.weights.items() if n in seen.ratios}
    ratios = [medians[p] for m in seen.called for p in m.parameters(recurse=False) if p in medians]  # by depth
    for change in (reset, in_model(swap=dict.fromkeys(flat, GELU))) if len(ratios) > 1 and not dead else ():
        line, first, last = "hardly a gradient comes to the first layer -> take ReLU", ratios[0], ratios[-1]
        deep = len(seen.flat) > DEEP and first < FEW * ratios[len(ratios) // 2]  # not only for the last one's weights
        vanishes = first <= VANISHED * last and (deep or (bool(change) and MAYBE))
        yield vanishes, "vanishing_gradients", line, change, {"first": first, "last": last}


def broken(seen: Structure, model: Any) -> Iterator[Row]:
    first, line = (seen.broken or {}).get("first"), "-> see what it takes a logarithm, a root or a quotient of"
    yield seen.broken, "not_finite", f"numbers are not finite, first of {first} {line}", {}, seen.broken or {}


def is_drawn(p: Tensor) -> bool:
    """Whether weights are as if drawn one by one: none of their singular values is beyond what chance gives (Marchenko,
    Pastur, 1967). What was learned has some."""
    rows = p.detach().flatten(1)[:MOST_ROWS] if p.ndim > 1 else p.detach()[:0, None]
    edge = float(rows.std()) * sum(n**0.5 for n in rows.shape) if rows.numel() > 1 else math.inf
    return not rows.numel() or float(torch.linalg.matrix_norm(rows, 2)) <= 1.1 * edge


def updates(seen: Structure, model: Any) -> Iterator[Row]:
    """Layers that took part, and are in the optimizer, but get no gradient; weights that it does not know; modes."""
    own = {n: {*m.parameters(recurse=False)} for n, m in seen.network.named_modules() if m in seen.called}
    learn = {p for p in seen.optimized if p.requires_grad}
    quiet = {n: {*m.parameters(recurse=False)} for n, m in seen.network.named_modules() if m in seen.ungraded}
    as_drawn = {p for params in quiet.values() for p in params if seen.written.get(p) == times_written(p)}
    own |= {n: params for n, params in quiet.items() if params <= as_drawn and all(map(is_drawn, params))}
    lost = [n for n, params in own.items() if params & learn and not params & seen.graded and seen.stepped]
    known = [(p in seen.optimized, n) for n, p in seen.network.named_parameters() if p in seen.graded]
    head = known == sorted(known, key=lambda one: one[0]) and seen.optimized & seen.graded  # it alone is to learn
    late = {p for m in seen.called if m not in seen.early for p in m.parameters(recurse=False)}
    judges = {n.partition(".")[0] for n, of in seen.takes.items() if n and len(of) > 1}  # get targets, too
    meant = {n for n, p in seen.network.named_parameters() if p in late or n.partition(".")[0] in judges}
    backbone = head and not all(map(is_drawn, seen.graded - seen.optimized))
    alien = [n for learns, n in known if not learns and not backbone and n not in meant]
    for names, line in ((lost, "get no gradient"), (alien, "are not in the optimizer")):
        line = f"{len(names)} parts of the network {line} -> see what detaches them, or leaves them out"
        yield names, "untrained_parameters", line, {}, {"names": names[:5]}
    off = any(params and params <= learn for params in ({*m.parameters()} for m in seen.off))  # what is frozen may be
    asleep = [n for n in MODES if off and seen.modes.get((True, n)) == {False}]
    awake = [n for n in MODES if True in seen.modes.get((False, n), ()) and not (n == "dropout" and seen.repeats)]
    wrong, sampled = asleep + awake, not asleep and awake == ["dropout"]  # as Monte Carlo dropout wants it
    line = f"{' and '.join(wrong)} take training for evaluation, or the other way round"
    fault = bool(wrong) and (MAYBE if sampled else True)
    yield fault, "wrong_mode", f"{line} -> leave train() and eval() to the Trainer", {}, {"of": wrong}
    cut = len(seen.norms) >= STEPS and max(seen.norms) < CUT and min(seen.norms) > 0.99 * max(seen.norms)
    line = "gradients are cut to the same norm in each step -> raise the limit, so that it seldom binds"
    ours = seen.trainer.gradient_clip_val  # which a trial changes
    yield cut and not ours, "clipped_too_short", line, {}, {"norm": max(seen.norms, default=0.0)}
    kept, line = seen.kept > max(seen.begun / 2, 2), "gradients of earlier steps are there when a step begins"
    yield kept, "gradients_not_reset", f"{line} -> call zero_grad() in each step", {}, {"steps": seen.kept}


def left_out(seen: Structure, model: Any) -> Iterator[Row]:
    """Weights that nothing can train: embeddings that are frozen at random, layers that no module has."""
    called = ((n, m) for n, m in seen.network.named_modules() if m in seen.called)
    embeddings = {n: m.weight for n, m in called if isinstance(m, nn.Embedding)}
    fixed = [n for n, p in embeddings.items() if not p.requires_grad and is_drawn(p)]
    line = f"{len(fixed)} embeddings are frozen as they were drawn -> let them learn, or take vectors that have learned"
    yield fixed, "untrained_parameters", line, {}, {"names": fixed[:5]}
    line = "weights that layers use are no parameters of the module -> put layers in a ModuleList, not in a list"
    yield seen.strangers > 0, "untrained_parameters", line, {}, {"tensors": seen.strangers}


def monitors(seen: Structure, model: Any) -> Iterator[Row]:
    """Callbacks that wait for a loss to rise, or for a score to fall."""
    for one in seen.trainer.callbacks:  # type: ignore[attr-defined]
        name, mode = str(getattr(one, "monitor", None)), getattr(one, "mode", "")
        right = best_where(name)
        line = f"{type(one).__name__} takes {name} for best where mode {mode} says -> mode {right}"
        yield mode and right and mode != right, "monitor_mode", line, {}, {"monitor": name}


class Check(Observer):
    """A check of what was seen, of which another's failure does not matter."""

    def __init__(self, seen: Structure, look: Callable[[Structure, Any], Iterator[Row]], source: str) -> None:
        self.seen, self.look, self.source, self.name = seen, look, source, look.__name__

    def found(self, trainer: Trainer, model: LightningModule) -> list[Finding]:
        rows = self.look(self.seen, model) if self.seen.network is not None else ()  # it may have failed before
        self.is_ours = isinstance(model, Model)
        return [self.told(*row) for row in rows if row[0]]

    def told(self, so: Any, check: str, line: str, change: Overlay, numbers: dict[str, Any]) -> Finding:
        certain, (what, _, todo) = so != MAYBE, line.partition(" -> ")
        gain, sure = (0.5, SURE) if certain else (0.3, MAYBE)
        todo = "" if change and self.is_ours else todo  # a module has no config that could be changed
        return Finding(check, BADLY, what, numbers, gain, sure, change, todo, certain=certain, source=self.source)


def watches() -> list[Observer]:
    seen, recipe, cradle = Structure(), "Karpathy, A Recipe for Training Neural Networks, 2019", "TrainCheck, 2025"
    looks: dict[Any, str] = {broken: "AutoTrainer, 2021", targets: "DeepFD, 2022", linear: "UMLAUT, 2021"}
    looks |= dict.fromkeys((the_end, log_probabilities), "NeuraLint, 2021") | {monitors: "Prechelt, 1998"}
    looks |= dict.fromkeys((beginning, blind, unshifted, stateful, mixing), recipe)
    looks |= dict.fromkeys((updates, left_out), cradle)
    return [seen, *(Check(seen, look, source) for look, source in looks.items())]
