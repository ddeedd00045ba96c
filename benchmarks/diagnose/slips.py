"""What is asked of the modules of modules.py: each program as it is, and with one slip; and what is right to answer.

A slip is a keyword of its twin's, such as another loss. `healthy` ones have no bar set by hand."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, WeightedRandomSampler

from benchmarks.diagnose.cases import BASES, Base, Case, answers, rate_truth
from benchmarks.diagnose.faulty import SlowCallback
from benchmarks.diagnose.modules import (
    CLIP,
    GAN,
    VAE,
    Autoencoder,
    Contrastive,
    DigitImages,
    HandSetRate,
    ImageModel,
    Lit,
    Manual,
    MCDropout,
    PKSampler,
    Program,
    RowLSTM,
    TokenTransformer,
    above,
    ages,
    bce,
    by_hand,
    cancer,
    cloud,
    deep,
    diabetes,
    digits,
    distracted,
    halved,
    logistic,
    mlp,
    moons,
    nt_xent,
    one_cycle,
    pairs,
    plateau,
    rare,
    rng,
    rounded,
    schedule,
    softmax_of_batch,
    squares,
    squeeze,
    streams,
    tcn,
    tokens,
    top,
    windows,
    wine,
    words,
)

# Programs


def lit(net: Any, data: Any, epochs: int = 15, trainer: Any = None, of: Any = Lit, **more: Any) -> Program:
    loaders = data if isinstance(data, dict) else pairs(*data)
    return Program(of(net, **{"right": top} | more), loaders, {"max_epochs": epochs, **(trainer or {})})


def mlps(end: Any = (), n: int = 10, act: Any = nn.ReLU, data: Any = digits, **more: Any) -> Program:
    return lit(mlp([64, 64, n], act, *end), data(), **{"lr": 5e-3} | more)


def images(noise: bool = False, in_order: bool = False, train: Any = (), val: Any = (), **model: Any) -> Program:
    x, y, xv, yv = digits()
    y = y[torch.randperm(len(y), generator=rng())] if noise else y
    rows = y.argsort(stable=True) if in_order else torch.arange(len(y))
    first = DataLoader(DigitImages(x[rows], y[rows], **dict(train)), 64, shuffle=not in_order)
    second = DataLoader(DigitImages(xv, yv, **dict(val)), 256)
    return Program(ImageModel(**model), {"train_dataloaders": first, "val_dataloaders": second})


def binary(end: Any = (), loss: Any = logistic, half: float = 0.0, **more: Any) -> Program:
    return lit(mlp([30, 32, 1], nn.ReLU, *end), cancer(), right=above(half), loss=loss, lr=1e-2, **more)


def raw(slip: str = "") -> Program:
    """Features as they are, which batch norm scales."""
    net, loss = nn.Sequential(nn.BatchNorm1d(30), *mlp([30, 32, 1])), F.binary_cross_entropy_with_logits
    return lit(net, cancer(standard=False), right=above(0.0), loss=loss, slip=slip)


def sampled(sampler: bool = True) -> Program:
    x, y, *val = rare()
    weights = torch.where(y == 1, 49.0, 1.0)
    more = {"sampler": WeightedRandomSampler(weights, len(y))} if sampler else {}
    return lit(mlp([10, 32, 2]), pairs(x, y, *val, **more), epochs=8)


def oversampled(before: bool = False) -> Program:
    """As many of the rare class by copies: made before the split, val has them, too."""
    x, y, xv, yv = cancer()
    rare = torch.arange(60)[y[:60].flatten() == 0]
    train, rows = (x[:60], y[:60]), torch.cat([torch.arange(60), rare.repeat(2)])
    data = pairs(*(t[rows] for t in train), *(train if before else (xv[:70], yv[:70])))
    program = lit(mlp([30, 32, 1]), data, right=above(0.0), loss=F.binary_cross_entropy_with_logits, lr=1e-2)
    program.test = pairs(xv, yv, xv[70:], yv[70:])["val_dataloaders"]
    return program


def frozen() -> Program:
    """A backbone that is known to be good, here of principal components, and a head."""
    backbone = nn.Linear(64, 24)
    backbone.weight.data = torch.linalg.svd(digits()[0] - 0.3, full_matrices=False)[2][:24].clone()
    return lit(nn.Sequential(backbone.requires_grad_(False), *mlp([24, 64, 10])), digits(), lr=5e-3)


def no_val() -> Program:
    program = mlps()
    program.test = program.loaders.pop("val_dataloaders")
    return program


def grouped() -> Program:
    x, y, *val = digits()
    return lit(mlp([64, 64, 10]), pairs(x, y, *val, batch_sampler=PKSampler(y)), lr=5e-3)


def number(net: Any, data: Any, epochs: int = 40, loss: Any = squares, **more: Any) -> Program:
    return lit(net, data, epochs, right=None, loss=loss, **more)


def unlabelled(of: Any, epochs: int = 15, **more: Any) -> Program:
    return Program(of(**more), pairs(*(cloud() if of is GAN else digits())), {"max_epochs": epochs})


def dropped() -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Dropout(0.2))


# Cases

PROGRAMS: dict[str, Callable[..., Program]] = {}
MODULES: list[Case] = []


def healthy(name: str, metric: str, trivial: float, make: Callable[..., Program], **more: Any) -> None:
    """`trivial`: what one answer for all gets, of a score what it lacks of 1."""
    PROGRAMS[name], BASES[name] = partial(make, **more), Base("", metric=f"test/{metric}", trivial=trivial)
    MODULES.append(Case(name, name))


def slip(twin: str, name: str, family: str, truth: str, wide: str = "", **change: Any) -> None:
    PROGRAMS[name], right = partial(PROGRAMS[twin], **change), answers(truth)
    costs = "trust" if family == "leak" else "speed" if right[0].startswith("SLOW") else "metric"
    MODULES.append(Case(name, twin, {}, family, right, costs, answers(wide)))


def rates(twin: str, lr: float, *factors: float) -> None:
    for n in factors:
        family, name = ("rate too high", f"x{n}") if n > 1 else ("rate too low", f"{round(1 / n)}th")
        slip(twin, f"{twin}_lr_{name}", family, *rate_truth("lr_times", 1.0, n), lr=lr * n)


END, NOT_TRAINED = "end of the network", "check untrained_parameters"
healthy("lit", "loss", 2.303, mlps)
slip("lit", "lit_softmax", END, "check softmax_before_loss", end=[nn.Softmax(1)])
slip("lit", "lit_softmax_dim_0", END, "check softmax_before_loss|mixes_samples", loss=softmax_of_batch)
slip("lit", "lit_class_as_number", "wrong loss", "check wrong_loss", n=1, loss=squares, right=rounded)
slip("lit", "lit_slow_callback", "tools", "SLOW check slow_callback", trainer={"callbacks": [SlowCallback(0.01)]})
rates("lit", 5e-3, 10, 30, 100, 1 / 10, 1 / 30)
healthy("lit_ema", "acc", 0.9, mlps, trainer={"callbacks": [EMAWeightAveraging(decay=0.95)]})
healthy("lit_no_val", "acc", 0.9, no_val)
healthy("lit_mc_dropout", "acc", 0.9, mlps, act=dropped, of=MCDropout)
healthy("manual", "acc", 0.9, mlps, of=Manual, opt=SGD, lr=0.05, momentum=0.9)
slip("manual", "manual_no_zero_grad", "gradients not reset", "check gradients_not_reset", slip="zero_grad")
slip("manual", "manual_no_step", "not trained", NOT_TRAINED, slip="step")
healthy("hand_set_rate", "acc", 0.9, mlps, of=HandSetRate)
rates("hand_set_rate", 5e-3, 100)
healthy("step_lr", "acc", 0.9, mlps, lr=3e-3, schedule=schedule(halved))
slip("step_lr", "step_lr_per_batch", "schedule", "check schedule_too_slow; schedule", schedule=schedule(halved, "step"))
healthy("pixels_sgd", "acc", 0.9, mlps, opt=SGD, lr=0.1, momentum=0.9)
slip("pixels_sgd", "pixels_255", "scale", "check input_scale", "lr_times < 0.1", data=partial(digits, 16 / 255))
slip("pixels_sgd", "pixels_clipped", "clipping", CLIP, "lr_times > 10", trainer={"gradient_clip_val": 1e-3})
healthy("moons", "acc", 0.5, lambda act=nn.ReLU: lit(mlp([2, 32, 32, 2], act), moons(), lr=1e-2))
slip("moons", "moons_no_activation", "no activation", "check no_activation", act=nn.Identity)
healthy("deep", "acc", 0.9, lambda act=nn.ReLU: lit(deep(act), digits()))
slip("deep", "deep_sigmoid_12", "vanishing gradients", "check vanishing_gradients", "reset", act=nn.Sigmoid)
healthy("row_lstm", "acc", 0.9, lambda batch_first=True: lit(RowLSTM(batch_first), digits(), lr=5e-3))
slip("row_lstm", "row_lstm_batch_second", "shapes", "check mixes_samples", batch_first=False)
healthy("transformer", "acc", 0.5, lambda lr=3e-3: lit(TokenTransformer(), tokens(), 8, lr=lr, schedule=one_cycle))
rates("transformer", 3e-3, 30)
healthy("squeeze", "acc", 0.9, lambda: lit(squeeze(), digits(), lr=5e-3))
healthy("images", "acc", 0.9, images)
slip("images", "images_dropout_90", "regularization", "check dropout_too_strong", dropout=0.9)
slip("images", "images_decay_10", "regularization", "check weight_decay_too_strong", decay=10.0)
slip("images", "images_head_only", "not trained", NOT_TRAINED, only_head=True)
slip("images", "images_shuffled_labels", "labels", "check labels_independent", "check label_noise", noise=True)
slip("images", "images_in_order", "order", "check not_shuffled", in_order=True)
slip("images", "images_val_raw", "shift", "check drift", val={"normalize": False})
slip("images", "images_slow", "data", "SLOW check data_bound", train={"sleep": 5e-4})
healthy("binary", "acc", 0.37, binary)
slip("binary", "binary_softmax_of_one", END, "check one_class", end=[nn.Softmax(1)], loss=bce, half=0.5)
healthy("by_hand", "acc", 0.37, binary, end=[nn.Sigmoid()], loss=by_hand(1e-6), half=0.5, epochs=60)
slip("by_hand", "by_hand_log_0", "not finite", "check not_finite", loss=by_hand(0.0))
healthy("raw_norm", "acc", 0.37, raw)
slip("raw_norm", "raw_norm_eval", "mode", "check wrong_mode", slip="eval")
healthy("rare_sampled", "acc", 0.5, sampled)
slip("rare_sampled", "rare", "imbalance", "check imbalance", sampler=False)
healthy("oversampled", "acc", 0.37, oversampled)
slip("oversampled", "oversampled_before_split", "leak", "check val_in_train", before=True)
healthy("wine_module", "acc", 0.6, lambda: lit(mlp([13, 32, 3]), wine(), 30, lr=3e-3))
healthy("words", "acc", 0.75, lambda: lit(mlp([1000, 32, 4]), words()))
healthy("frozen", "acc", 0.9, frozen)
healthy(
    "plateau", "loss", 5900.0, lambda lr=3e-2, **k: number(mlp([10, 32, 1]), diabetes(), lr=lr, schedule=plateau, **k)
)
slip("plateau", "plateau_broadcast", "shapes", "check shape_broadcast", loss=lambda out, y: (out - y).square().mean())
rates("plateau", 3e-2, 1 / 100)
healthy("ages", "loss", 175.0, lambda end=(): number(mlp([12, 32, 1], nn.ReLU, *end), ages(), lr=3e-2))
slip("ages", "ages_sigmoid", END, "check head_activation", end=[nn.Sigmoid()])
healthy("distracted", "loss", 0.5, lambda: number(mlp([10, 64, 64, 1]), distracted(), lr=3e-3))
healthy("tcn", "loss", 0.63, lambda: number(tcn(), windows(), 15, lr=3e-3))
healthy("stream", "loss", 2.0, lambda lr=3e-3: number(mlp([8, 64, 1]), streams(), 8, lr=lr))
rates("stream", 3e-3, 100)
healthy("autoencoder", "loss", 0.073, unlabelled, of=Autoencoder)
slip("autoencoder", "autoencoder_detached", "not trained", NOT_TRAINED, detach=True)
healthy("perceptual", "loss", 0.08, unlabelled, of=Autoencoder, perceptual=True)
healthy("vae", "loss", 4.7, unlabelled, of=VAE, latent=16)
rates("vae", 2e-3, 100)
healthy("gan", "distance", 3.0, unlabelled, of=GAN, epochs=40)
slip("gan", "gan_detached", "not trained", NOT_TRAINED, detach=True)
healthy("contrastive", "loss", 5.5, mlps, n=16, of=Contrastive, loss=nt_xent, right=None)
healthy("grouped", "acc", 0.9, grouped)
