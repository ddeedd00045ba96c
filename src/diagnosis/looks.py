"""Checks of what was noted of the first steps: the end and the loss, weights, what passes, gradients, modes."""

import math
import statistics
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from src.diagnosis.finding import BADLY, Finding, Overlay
from src.diagnosis.probe import Witness
from src.diagnosis.structure import ANY, CLASSES, ENDS, MODES, NUMBERS, Structure, tensor_of
from src.models.base import Model

LARGE, VANISHED = 1.5, 1e-3  # of healthy runs the first loss was at most 4 % off
MAYBE, SURE = 0.6, 0.95
DEAD, DEEP, FEW = 0.9, 4, 0.1  # share of ReLUs; sigmoids in a network; of a gradient
ZEROS = 0.2  # of logits: a ReLU gives half, and a mean of ReLUs, which is meant so, hardly one
FLAT, GELU = (nn.Tanh, nn.Sigmoid), {"class_path": "torch.nn.GELU"}  # with flat ends
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Row = tuple[Any, str, str, Overlay, dict[str, Any]]  # whether it is so, or MAYBE; check, line, what mends it, numbers


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
        yield name in NUMBERS and labels and (labels == "index" or MAYBE), "wrong_loss", line, {}, numbers


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
            off = not few and not sums and all(c["log_off"] > 0.01 for c in seen.losses)
            yield off, "no_log_probabilities", f"{line} what does not sum to 1 {last}", {}, numbers
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


def alone(one: dict[str, Any]) -> bool:
    """Whether a loss got, or made, a softmax over one class."""
    return bool(one.get("alone")) or (one["classes"] == 1 and one["name"] in CLASSES[:2])


def beginning(seen: Structure, model: Any) -> Iterator[Row]:
    """The first loss of a classifier is near ln C, and that of a regression near the mean square of its targets."""
    reset, rows = in_model(reset=True), () if seen.out is None else seen.out.shape[1:]
    hidden = {n: p.detach() for n, p in seen.weights.items() if len(p) not in rows and seen.out is not None}
    pairs = [(n, hidden[n], old) for n, old in seen.alike.items() if n in hidden]
    alike = [n for n, p, old in pairs if (p - p[:1]).abs().max() <= 0.1 * (p - old).abs().max() + 1e-6 * p.abs().max()]
    line = "units begin alike, and stay so -> draw the weights at random"
    yield 2 * len(alike) > len(hidden), "constant_weights", line, reset, {"layers": alike[:5]}
    for one in seen.losses[:1]:
        square = 2 * float(one["targets"].square().mean())
        usual = {"cross_entropy": math.log(max(one["classes"], 2)), "mse_loss": square}.get(one["name"], math.inf)
        large, numbers = (
            reset and min(one["value"] / LARGE, seen.now["value"]) > usual,
            {"loss": one["value"], "usual": usual},
        )
        yield (
            large and MAYBE,
            "large_initial_weights",
            "the first loss is too large -> draw smaller weights",
            reset,
            numbers,
        )
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


def draw(name: str, p: Tensor, times: float = 1.0) -> Tensor:
    """Other weights; of a norm, or a PReLU, such that they are not all 1."""
    if p.ndim > 1:
        return torch.randn_like(p) * times * p[0].numel() ** -0.5
    return torch.zeros_like(p) if "bias" in name else torch.rand_like(p) + 0.5


def blind(seen: Structure, model: Any) -> Iterator[Row]:
    """Samples that differ get one answer, with weights drawn anew, too; larger ones, where many sigmoids come."""
    x = tensor_of(seen.inputs[0]) if seen.inputs else None
    single = any(p.numel() == 1 for n, p in seen.network.named_parameters() if n.endswith("weight"))  # its norm is 0
    single = single or any(map(alone, seen.losses))  # another check tells of that
    if x is not None and x.ndim > 1 and not single and bool((x != x[:1]).any()):
        drawn = {n: draw(n, p, 4.0 if len(seen.flat) > DEEP else 1.0) for n, p in seen.whole.named_parameters()}
        out = seen.exactly(lambda n, p: drawn[n])
        out = seen.again(lambda n, p: drawn[n]) if out is None else out
        if out is None:  # it gives what is no tensor
            return
        off = (1e-12 if out.dtype == torch.float64 else 1e-6) * float(out.abs().max())
        same = len(out) == len(x) and float((out - out[:1]).abs().max()) <= off
        full = bool(((out == 0) | (out == 1)).all()) and bool(out.any())  # a softmax at its ends
        line = "the network gives one answer for all inputs -> see what it does to x"
        yield same and not full, "ignores_input", line, {}, {"samples": len(x)}


def mixing(seen: Structure, model: Any) -> Iterator[Row]:
    """Another sample in a batch changes what others get, in evaluation: of sequences, in which batch and time can be
    taken for each other. Where one batch is all there is, it may be a graph, and two networks may judge batches."""
    x, trainer = seen.only(), seen.trainer
    recurrent = any(isinstance(module, nn.RNNBase) for module in seen.called)  # what was a row may be a step
    if x is None or (x.ndim < 3 - (not x.is_floating_point()) and not recurrent) or len(x) < 3 or seen.batchwise:
        return
    if trainer.num_training_batches == 1 or len(trainer.optimizers) > 1:
        return
    other, i = x.clone(), len(x) // 2
    other[i] = x[0]
    before, twice, after = (seen.again(lambda n, p: p, one) for one in (x, x, other))
    if (
        before is not None
        and before.ndim
        and len(before) == len(x)
        and before.shape[1:2] != x.shape[:1]
        and torch.equal(before, twice)
    ):
        rest = torch.arange(len(x), device=x.device) != i
        moved = float((after - before)[rest].abs().max() / before.abs().max().clamp(min=1e-30))
        line = "what the network gives for one sample hangs on others of its batch -> see which dimension is which"
        yield moved > 1e-5, "mixes_samples", f"{line}, such as batch_first", {}, {"change": moved}


def linear(seen: Structure, model: Any) -> Iterator[Row]:
    """Layers that follow one another, and all of it is affine in x. A narrow one in between is meant: factors."""
    x, learn = seen.only(), {p for p in seen.optimized & seen.graded if p.requires_grad}
    layers: list[Any] = [m for m in seen.called if isinstance(m, LAYERS) and m.weight in learn]
    own = {*seen.network.parameters()} & learn <= {*seen.whole.parameters()} if seen.whole else False
    if x is None or not x.is_floating_point() or len(layers) < 2 or not own:
        return
    drawn, x, far = {n: draw(n, p) for n, p in seen.whole.named_parameters()}, x.double(), -9 * x.double().flip(0)
    outs = [seen.exactly(lambda n, p: drawn[n], one) for one in (x, far, 0.3 * x + 0.7 * far)]
    if any(out is None or not out.is_floating_point() for out in outs):
        return
    a, b, mixed = outs
    affine = float((0.3 * a + 0.7 * b - mixed).abs().max()) <= 1e-9 * float((a - b).abs().max())
    pairs = [(m, n) for m, n in pairwise(layers) if not narrow(m, n)] if affine else []
    if found := [(m, n) for m, n in pairs if follows(seen, drawn, m.weight, n.weight)]:
        line = f"the network is linear: nothing is between {len(found) + 1} of its layers -> put a ReLU there"
        yield True, "no_activation", line, {}, {"layers": len(found) + 1}


def narrow(first: Any, second: Any) -> bool:
    return len(first.weight) < min(first.weight[0].numel(), len(second.weight))


def follows(seen: Structure, drawn: dict[str, Tensor], first: Tensor, second: Tensor) -> bool:
    """Whether one layer gets what the other gives: the output has a product of their weights, and no mere sum."""

    def out(s: int, t: int) -> Any:
        return seen.exactly(lambda n, p: drawn[n] * (s if p is first else t if p is second else 1))

    a, b, c, d = out(2, 2), out(2, 1), out(1, 2), out(1, 1)
    return float((a - b - c + d).abs().max()) > 1e-6 * float(d.abs().max())


def broken(seen: Structure, model: Any) -> Iterator[Row]:
    first, line = (seen.broken or {}).get("first"), "-> see what it takes a logarithm, a root or a quotient of"
    yield seen.broken, "not_finite", f"numbers are not finite, first of {first} {line}", {}, seen.broken or {}


def is_drawn(p: Tensor) -> bool:
    """Whether weights are as torch's linear and convolutional layers draw them, uniform up to 1 / sqrt(fan-in)."""
    unit = p.detach() * p[0].numel() ** 0.5
    return float(unit.abs().max()) <= 1.001 and abs(float(unit.std()) * 3**0.5 - 1) < 0.1


def updates(seen: Structure, model: Any) -> Iterator[Row]:
    """Layers that took part, and are in the optimizer, but get no gradient; weights that it does not know; modes."""
    own = {n: {*m.parameters(recurse=False)} for n, m in seen.network.named_modules() if m in seen.called}
    learn = {p for p in seen.optimized if p.requires_grad}
    lost = [n for n, params in own.items() if params & learn and not params & seen.graded and seen.stepped]
    known = [(p in seen.optimized, n) for n, p in seen.network.named_parameters() if p in seen.graded]
    head = known == sorted(known, key=lambda one: one[0]) and seen.optimized & seen.graded  # it alone is to learn
    late = {p for m in seen.called if m not in seen.early for p in m.parameters(recurse=False)}
    judges = {n.partition(".")[0] for n, of in seen.takes.items() if n and len(of) > 1}  # get targets, too
    meant = {n for n, p in seen.network.named_parameters() if p in late or n.partition(".")[0] in judges}
    backbone = head and not all(map(is_drawn, (p for p in seen.graded - seen.optimized if p.ndim > 1)))
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
    kept, line = seen.kept > max(seen.begun / 2, 2), "gradients of earlier steps are there when a step begins"
    yield kept, "gradients_not_reset", f"{line} -> call zero_grad() in each step", {}, {"steps": seen.kept}


class Look(Witness):
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


def watches() -> list[Witness]:
    seen, recipe, cradle = Structure(), "Karpathy, A Recipe for Training Neural Networks, 2019", "TrainCheck, 2025"
    looks: dict[Any, str] = {
        broken: "AutoTrainer, 2021",
        targets: "DeepFD, 2022",
        the_end: "NeuraLint, 2021",
        beginning: recipe,
    }
    looks |= {blind: recipe, mixing: recipe, linear: "UMLAUT, 2021", updates: cradle}
    return [seen, *(Look(seen, look, source) for look, source in looks.items())]
