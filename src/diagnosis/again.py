"""Checks that ask the network again, with other inputs or other weights: what it mixes, ignores, or keeps."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler

from src.diagnosis.finding import Row
from src.diagnosis.losses import alone
from src.diagnosis.structure import DEEP, Structure, tensor_of

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


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


def stateful(seen: Structure, model: Any) -> Iterator[Row]:
    """The same input gets another answer when it comes again, with the same random numbers: something was kept. Where
    batches follow one another, it may be meant."""
    x, sampler = seen.only(), getattr(seen.trainer.train_dataloader, "sampler", None)
    if x is not None and isinstance(sampler, RandomSampler):
        with torch.random.fork_rng(devices=[]):
            outs = [(torch.manual_seed(0), seen.again(lambda n, p: p, x))[1] for _ in range(2)]
        moved = outs[0] is not None and float((outs[0] - outs[1]).abs().max() / outs[0].abs().max().clamp(min=1e-30))
        line = "the network keeps something of a batch for the next, which is of other samples -> begin each batch anew"
        yield moved and moved > 1e-5, "keeps_state", line, {}, {"change": moved}


def unshifted(seen: Structure, model: Any) -> Iterator[Row]:
    """The targets are the tokens that go in, and what comes later changes nothing: each is to tell itself. Or they are
    the next tokens, which the network sees."""
    x, all_are = seen.only(), lambda what: all(c.get(what) for c in seen.losses or [{}])
    if x is None or x.is_floating_point() or x.ndim != 2 or not (all_are("repeats") or all_are("shifted")):
        return
    other = torch.cat([x[:, :-1], x[:, :1]], 1)
    before, after = (seen.again(lambda n, p: p, one) for one in (x, other))
    if before is not None and before.shape[:2] == x.shape:
        off = 1e-5 * float(before.abs().max())
        alike = torch.allclose(before[:, :-1], after[:, :-1], atol=off) and not torch.equal(before, after)
        line = "the targets are the tokens that go in -> shift them: each position is to tell the next token"
        yield alike and all_are("repeats"), "target_leak", line, {}, {"positions": x.shape[1]}
        line = "each position is to tell the next token, which the network sees -> mask what comes later"
        yield not alike and all_are("shifted"), "target_leak", line, {}, {"positions": x.shape[1]}


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
