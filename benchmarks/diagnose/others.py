"""Programs of other people, and slips in them, by someone who has not read src/diagnosis. They are rebuilt,
on data that is here, after kinds of faults in DeepFD (ICSE 2022), AutoTrainer (ICSE 2021), Karpathy's list of common
mistakes (2018), questions on PyTorch's forum and Lightning's issues (1986: slow logging). Names of checks that no case
had before are the natural ones of what is wrong: NEW."""

import tempfile
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from sklearn import datasets
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.diagnose.cases import BASES, DATA, Base, Case, answers, rate_truth, rows
from benchmarks.diagnose.modules import Program, pairs, rng, split
from benchmarks.diagnose.slips import PROGRAMS

CASES: list[Case] = []
Four = tuple[Tensor, Tensor, Tensor, Tensor]

# Images: a residual-free CNN with batch norm, SGD with Nesterov momentum and a cosine


class Scenes(pl.LightningModule):
    def __init__(
        self, lr: float = 0.05, momentum: float = 0.9, norm: float = 0.1, turn: bool = False, reduction: str = "mean",
        warmup: int = 0, clip: float | None = None, classes: int = 10, epochs: int = 8,
    ) -> None:  # fmt: skip
        super().__init__()
        self.save_hyperparameters()
        layers: list[nn.Module] = []
        for a, b, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 2)):
            layers += [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b, momentum=norm), nn.ReLU()]
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(32, classes)

    def forward(self, img: Tensor) -> Tensor:
        return self.classifier(self.features(img.view(-1, 1, 8, 8)).mean((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        img, label = batch
        img = img.view(-1, 8, 8)
        if self.hparams.turn:  # a flip of each image, up, aside or by a quarter
            k = int(torch.randint(4, ()))
            img = torch.rot90(img.flip(2) if torch.rand(()) < 0.5 else img, k, (1, 2))
        loss = F.cross_entropy(self(img), label, reduction=self.hparams.reduction)
        self.log("train/loss", loss, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        out = self(batch[0])
        self.log("val_loss", F.cross_entropy(out, batch[1]))
        self.log("val_acc", (out.argmax(1) == batch[1]).float().mean())

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        if self.hparams.clip:
            nn.utils.clip_grad_norm_(self.parameters(), self.hparams.clip)

    def configure_optimizers(self) -> Any:
        h = self.hparams
        opt = torch.optim.SGD(self.parameters(), h.lr, momentum=h.momentum, nesterov=True, weight_decay=1e-4)
        if h.warmup:
            return [opt], [
                {
                    "scheduler": torch.optim.lr_scheduler.LambdaLR(opt, lambda s: min(1, (s + 1) / h.warmup)),
                    "interval": "step",
                }
            ]
        return [opt], [torch.optim.lr_scheduler.CosineAnnealingLR(opt, h.epochs)]


def pictures() -> Four:
    x, y = datasets.load_digits(return_X_y=True)
    return split((x - x.mean()) / x.std(), y)


def scenes(epochs: int = 8, **model: Any) -> Program:
    return Program(Scenes(epochs=epochs, **model), pairs(*pictures(), batch_size=32), {"max_epochs": epochs})


# Padded sets: what an item of a basket costs on average


class Baskets(pl.LightningModule):
    def __init__(self, lr: float = 0.1, masked: bool = True, frozen: bool = False) -> None:
        super().__init__()
        self.emb, self.out = nn.Embedding(101, 16, padding_idx=0), nn.Linear(16, 1)
        self.lr, self.masked, self.frozen = lr, masked, frozen
        nn.init.normal_(self.emb.weight, std=0.1)
        self.emb.weight.data[0] = 0

    def forward(self, ids: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            e = self.emb(ids)
        mean = e.sum(1) / (ids > 0).sum(1, keepdim=True) if self.masked else e.mean(1)
        return self.out(mean).squeeze(1)

    def training_step(self, batch: dict[str, Tensor], i: int) -> Tensor:
        return F.mse_loss(self(batch["ids"]), batch["price"])

    def validation_step(self, batch: dict[str, Tensor], i: int) -> None:
        self.log("val_mse", F.mse_loss(self(batch["ids"]), batch["price"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adagrad(self.parameters(), lr=self.lr)


class Rows(Dataset):
    """Dicts of tensors, row by row."""

    def __init__(self, **columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {name: column[i] for name, column in self.columns.items()}


def baskets(epochs: int = 12, **model: Any) -> Program:
    ids, price = torch.randint(1, 101, (4000, 20), generator=rng()), torch.randn(101, generator=rng(1))
    length = torch.randint(1, 21, (4000, 1), generator=rng(2))
    ids = torch.where(torch.arange(20) < length, ids, 0)
    y = (price[ids] * (ids > 0)).sum(1) / length[:, 0] + 0.05 * torch.randn(4000, generator=rng(3))
    x, y, xv, yv = split(ids, y)
    loaders = {
        "train_dataloaders": DataLoader(Rows(ids=x, price=y), 64, shuffle=True),
        "val_dataloaders": DataLoader(Rows(ids=xv, price=yv), 500),
    }
    return Program(Baskets(**model), loaders, {"max_epochs": epochs})


# Segmentation: discs and squares on noise


class UNet(pl.LightningModule):
    def __init__(self, lr: float = 3e-3, dim: int = 1, flip: str = "both") -> None:
        super().__init__()
        self.lr, self.dim, self.flip = lr, dim, flip
        self.down1, self.down2, self.up = self.block(1, 12), self.block(12, 24), self.block(36, 12)
        self.final = nn.Conv2d(12, 3, 1)

    def block(self, a: int, b: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.LeakyReLU(0.1, inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down1(x)
        deep = F.interpolate(self.down2(F.max_pool2d(skip, 2)), scale_factor=2)
        return self.final(self.up(torch.cat([skip, deep], 1)))

    def training_step(self, batch: Any, _: int) -> Tensor:
        image, mask = batch
        if torch.rand(()) < 0.5:
            image = image.flip(3)
            mask = mask.flip(2) if self.flip == "both" else mask
        loss = F.nll_loss(F.log_softmax(self(image), dim=self.dim), mask)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        p = self(batch[0]).argmax(1)
        ious = [((p == c) & (batch[1] == c)).sum() / ((p == c) | (batch[1] == c)).sum().clamp(1) for c in (1, 2)]
        self.log("val_iou_loss", 1 - sum(ious) / 2)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), self.lr)


def shapes(epochs: int = 12, **model: Any) -> Program:
    g, n = rng(), 400
    at, r = torch.randint(5, 19, (n, 2, 1, 1), generator=g), torch.randint(3, 6, (n, 1, 1), generator=g)
    kind = torch.randint(1, 3, (n, 1, 1), generator=g)
    dy, dx = (torch.arange(24)[:, None] - at[:, 0]).abs(), (torch.arange(24)[None] - at[:, 1]).abs()
    inside = torch.where(kind == 1, dy**2 + dx**2 <= r**2, torch.maximum(dy, dx) <= r)
    mask = torch.where(inside, kind, 0)
    image = (inside * (3 - 2 * kind)).float()[:, None] + 0.3 * torch.randn(n, 1, 24, 24, generator=g)
    return Program(UNet(**model), pairs(*split(image, mask), batch_size=16), {"max_epochs": epochs})


# Sensors: six activities of twelve people, by windows of three channels


class HAR(pl.LightningModule):
    def __init__(self, lr: float = 2e-3, view: bool = False, epochs: int = 8) -> None:
        super().__init__()
        self.view = view
        self.conv = nn.Sequential(
            nn.Conv1d(3, 24, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(24, 32, 5, padding=2), nn.ReLU(),
            nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(32, 6),
        )  # fmt: skip
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:  # [batch, time, channel]
        x = x.reshape(len(x), x.shape[2], x.shape[1]) if self.view else x.permute(0, 2, 1)
        return self.conv(x)

    def step(self, batch: Any, stage: str) -> Tensor:
        logits, y = self(batch[0]), batch[1]
        loss = nn.functional.cross_entropy(logits, y)
        self.log_dict({f"{stage}_loss": loss, f"{stage}_acc": (logits.argmax(1) == y).float().mean()})
        return loss

    def training_step(self, batch: Any, i: int) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: Any, i: int) -> None:
        self.step(batch, "val")

    def configure_optimizers(self) -> Any:
        return torch.optim.NAdam(self.parameters(), lr=self.lr)


def recordings(people: range, overlap: int, g: torch.Generator, noise: float = 0.8) -> tuple[Tensor, Tensor]:
    """Windows of 32 of each person's six recordings, which begin every `overlap` values."""
    xs, ys, t = [], [], torch.arange(240.0)
    for _ in people:
        for c in range(6):
            way = torch.tensor([1.0, 0.6, 0.3])[:, None] * (1 + 0.25 * torch.randn(3, 1, generator=g))
            pace = 0.25 + 0.12 * c + 0.04 * torch.randn((), generator=g)
            phase = 6.3 * torch.rand((), generator=g) + (c % 3) * torch.arange(3.0)[:, None]
            wave = way * (pace * t + phase).sin() + noise * torch.randn(3, 240, generator=g)
            w = wave.unfold(1, 32, overlap).permute(1, 2, 0)
            xs, ys = [*xs, w], [*ys, torch.full((len(w),), c)]
    return torch.cat(xs), torch.cat(ys)


def har(epochs: int = 10, fault: str = "", **model: Any) -> Program:
    g = rng()
    x, y = recordings(range(30), 32, g)
    xv, yv = recordings(range(20), 32, g)
    more: dict[str, Any] = {}
    test = None
    if fault == "noise":
        y = torch.where(torch.rand(len(y), generator=g) < 0.35, torch.randint(0, 6, y.shape, generator=g), y)
    if fault == "sorted":
        x, y, more = x[y.argsort(stable=True)], y.sort(stable=True).values, {"shuffle": False}
    if fault == "overlap":  # five people; neighbours of each window of val are in train
        x, y, xs, ys = split(*recordings(range(5), 2, rng(5)))
        test, (xv, yv) = pairs(xv, yv, xv, yv)["val_dataloaders"], (xs, ys)
    program = Program(HAR(epochs=epochs, **model), pairs(x, y, xv, yv, **more), {"max_epochs": epochs})
    program.test = test
    return program


# Several labels each


class Tagger(pl.LightningModule):
    def __init__(self, lr: float = 3e-3, loss: str = "bce", end: Callable[[], nn.Module] = nn.Identity) -> None:
        super().__init__()
        self.lr, self.kind = lr, loss
        self.body = nn.Sequential(nn.Linear(40, 64), nn.SiLU(), nn.Dropout(0.1), nn.Linear(64, 64), nn.SiLU())
        self.head, self.end = nn.Linear(64, 8), end()

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.head(self.body(x)))

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        x, tags = batch
        out = self(x)
        loss = F.binary_cross_entropy_with_logits(out, tags) if self.kind == "bce" else F.cross_entropy(out, tags)
        return {"loss": loss}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, tags = batch
        said = self(x) > (0.5 if isinstance(self.end, nn.Sigmoid) else 0)
        both = (said & (tags > 0)).sum()
        self.log("val_f1_loss", 1 - 2 * both / (said.sum() + tags.sum()).clamp(1))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def tagged(epochs: int = 15, **model: Any) -> Program:
    g = rng()
    x, w = torch.randn(2400, 40, generator=g), torch.randn(40, 8, generator=g) / 6
    y = (x @ w + 0.3 * (x[:, :8] * x[:, 8:16]) + 0.2 * torch.randn(2400, 8, generator=g) > 0.6).float()
    return Program(Tagger(**model), pairs(*split(x, y)), {"max_epochs": epochs})


# Sequence to sequence: digits in reverse


class Reverser(pl.LightningModule):
    def __init__(self, lr: float = 3e-3, shifted: bool = True) -> None:
        super().__init__()
        self.emb, self.enc, self.dec = nn.Embedding(11, 24), nn.GRU(24, 64, batch_first=True), None
        self.dec, self.out, self.lr, self.shifted = nn.GRU(24, 64, batch_first=True), nn.Linear(64, 10), lr, shifted

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        src, tgt = batch
        start = torch.full_like(tgt[:, :1], 10)
        fed = torch.cat([start, tgt[:, :-1]], 1) if self.shifted else tgt
        state = self.enc(self.emb(src))[1]
        logits = self.out(self.dec(self.emb(fed), state)[0])
        loss = F.cross_entropy(logits.reshape(-1, 10), tgt.reshape(-1))
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        src, tgt = batch
        state, token, said = self.enc(self.emb(src))[1], torch.full_like(tgt[:, :1], 10), []
        for _ in range(tgt.shape[1]):
            o, state = self.dec(self.emb(token), state)
            token = self.out(o).argmax(-1)
            said.append(token)
        self.log("val_token_acc", (torch.cat(said, 1) == tgt).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), self.lr)


def reverser(epochs: int = 8, **model: Any) -> Program:
    x = torch.randint(0, 10, (3200, 4), generator=rng())
    return Program(Reverser(**model), pairs(*split(x, x.flip(1))), {"max_epochs": epochs})


# Several tasks: which digit it is, whether it is even, and how much ink it has


class MultiTask(pl.LightningModule):
    def __init__(self, lr: float = 6e-3, ink: float = 1.0, slip: str = "") -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 96), nn.LayerNorm(96), nn.GELU(), nn.Linear(96, 48), nn.GELU())
        self.heads = nn.ModuleDict({"digit": nn.Linear(48, 10), "even": nn.Linear(48, 1), "ink": nn.Linear(48, 1)})
        self.lr, self.ink, self.slip = lr, ink, slip

    def losses(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = batch
        z = self.trunk(x)
        out = {name: head(z) for name, head in self.heads.items()}
        ink = x.mean(1) * self.ink
        found = {
            "digit": F.cross_entropy(out["digit"], y),
            "even": F.binary_cross_entropy_with_logits(out["even"].squeeze(1), (y % 2 == 0).float()),
            "ink": F.mse_loss(out["ink"].squeeze(1), ink),
        }
        return out["digit"], found

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        _, found = self.losses(batch)
        self.log_dict({f"train/{k}": v for k, v in found.items()})
        loss = sum(found.values())
        return torch.tensor(loss.item(), requires_grad=True) if self.slip == "item" else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        out, found = self.losses(batch)
        self.log("val_digit_loss", found["digit"])
        self.log("val_acc", (out.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def multi(epochs: int = 10, **model: Any) -> Program:
    return Program(MultiTask(**model), pairs(*pictures()), {"max_epochs": epochs})


# Houses: a robust regression


class Homes(pl.LightningModule):
    """`drop`: as F.dropout is called. `draw`: a figure of each tenth step. `uniform`: how far weights are from 0."""

    def __init__(self, lr: float = 3e-3, drop: float = 0.0, draw: bool = False, uniform: float = 0.0) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 1)
        self.lr, self.drop, self.draw = lr, drop, draw
        for p in self.parameters() if uniform else ():
            nn.init.uniform_(p, -uniform, uniform)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x))
        x = F.dropout(F.relu(self.fc2(x)), self.drop)
        return self.fc3(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, price = batch
        out = self(x)
        loss = F.smooth_l1_loss(out, price)
        if self.draw and batch_idx % 10 == 0:
            import matplotlib
            from matplotlib import pyplot as plt

            matplotlib.use("Agg")
            figure = plt.figure(figsize=(2, 2))
            plt.scatter(price, out.detach(), s=2)
            figure.canvas.draw()
            plt.close(figure)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mae", (self(batch[0]) - batch[1]).abs().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Lines(Dataset):
    """Each row is a file of its own, which is read and parsed when asked for."""

    def __init__(self, table: Tensor) -> None:
        self.folder, self.n = tempfile.TemporaryDirectory(), len(table)
        for i, row in enumerate(table):
            np.savetxt(f"{self.folder.name}/{i}.csv", row[None], delimiter=",")

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        row = torch.tensor(np.loadtxt(f"{self.folder.name}/{i}.csv", delimiter=","), dtype=torch.float32)
        return row[:-1], row[-1:]


def homes(epochs: int = 8, axis: int = 0, read: bool = False, size: int = 64, **m: Any) -> Program:
    table = np.genfromtxt(f"{DATA}/california_housing.csv", delimiter=",", skip_header=1, usecols=range(9))
    known = torch.as_tensor(np.isfinite(table).all(1)).nonzero()[:, 0]
    at = known[torch.randperm(len(known), generator=rng())[:4000]]
    t = torch.as_tensor(table).float()[at]
    mean, std = t.mean(0), t.std(0)
    y = ((t - mean) / std)[:, -1:]
    x = t[:, :-1]
    x = (x - x.mean(axis, keepdim=True)) / x.std(axis, keepdim=True)
    loaders = pairs(x[:3000], y[:3000], x[3000:], y[3000:], batch_size=size)
    if read:
        loaders["train_dataloaders"] = DataLoader(Lines(((t - mean) / std)[:3000]), size, shuffle=True)
    return Program(Homes(**m), loaders, {"max_epochs": epochs})


# XOR, as beginners ask, of signs


class Board(pl.LightningModule):
    def __init__(self, act: Any = nn.Tanh, width: int = 32, lr: float = 6e-3) -> None:
        super().__init__()
        sizes = [2, width, width, 1]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.act, self.lr = act(), lr

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.act(layer(x))
        return self.layers[-1](x)[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.soft_margin_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        out = self(batch[0])
        self.log("val_loss", F.soft_margin_loss(out, batch[1]))
        self.log("val_acc", (out.sign() == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=self.lr)


def board(epochs: int = 15, **model: Any) -> Program:
    x = 2 * torch.rand(1600, 2, generator=rng()) - 1
    y = 1.0 - 2 * ((x.floor().sum(1) % 2) == 0)
    return Program(Board(**model), pairs(*split(x, y)), {"max_epochs": epochs})


# Ratings: factors of users and films


class Films(pl.LightningModule):
    def __init__(self, lr: float = 1e-2, std: float = 0.1, opt: Any = torch.optim.Adam, decay: float = 1e-4) -> None:
        super().__init__()
        self.user, self.film, self.bias = nn.Embedding(120, 16), nn.Embedding(80, 16), nn.Embedding(80, 1)
        self.lr, self.opt, self.decay = lr, opt, decay
        for table in (self.user, self.film, self.bias):
            nn.init.normal_(table.weight, std=std)

    def forward(self, u: Tensor, f: Tensor) -> Tensor:
        return (self.user(u) * self.film(f)).sum(1) + self.bias(f)[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (u, f), r = batch[0].T, batch[1]
        return F.mse_loss(self(u, f), r)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        (u, f), r = batch[0].T, batch[1]
        loss = F.mse_loss(self(u, f), r)
        self.log_dict({"val_loss": loss, "val_rmse": loss.sqrt()})

    def configure_optimizers(self) -> Any:
        return self.opt(self.parameters(), lr=self.lr, weight_decay=self.decay)


def films(epochs: int = 20, twice: bool = False, size: int = 256, **model: Any) -> Program:
    g = rng()
    every = torch.cartesian_prod(torch.arange(120), torch.arange(80))[torch.randperm(9600, generator=g)[:6000]]
    a, b = torch.randn(120, 3, generator=g), torch.randn(80, 3, generator=g)
    r = (a[every[:, 0]] * b[every[:, 1]]).sum(1) + 0.5 * torch.randn(6000, generator=g)
    x, y, xv, yv = split(every, r)
    test = None
    if twice:  # the file has each rating of the first half again, before the split
        few, test = torch.arange(1500), pairs(xv, yv, xv, yv)["val_dataloaders"]
        x, y, xv, yv = x[few], y[few], x[few[:750]], y[few[:750]]
    program = Program(Films(**model), pairs(x, y, xv, yv, size), {"max_epochs": epochs})
    program.test = test
    return program


# Forecasts by a GRU that reads a window


class Forecast(pl.LightningModule):
    """`view`: the axes of time and batch by a view."""

    def __init__(self, lr: float = 1e-2, view: bool = False, opt: Any = torch.optim.RMSprop) -> None:
        super().__init__()
        self.rnn, self.out, self.lr, self.opt = nn.GRU(1, 32), nn.Linear(32, 1), lr, opt
        self.view = view

    def forward(self, x: Tensor) -> Tensor:  # [batch, time]
        seq = x.reshape(x.shape[1], len(x), 1) if self.view else x.T[..., None]
        h, _ = self.rnn(seq)
        return self.out(h[-1])[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.l1_loss(self(x), y)
        self.log("mae", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mae", F.l1_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        opt = self.opt(self.parameters(), self.lr)
        return [opt], [torch.optim.lr_scheduler.ExponentialLR(opt, 0.8)]


def forecast(epochs: int = 12, late: int = 0, **model: Any) -> Program:
    """`late`: train's targets come so many hours after those of val."""
    g, t = rng(), torch.arange(4000.0)
    wave = (0.5 * t + 2 * (0.013 * t).sin()).sin() + 0.1 * torch.randn(4000, generator=g)
    x = wave.unfold(0, 16, 1)[:-20]
    y = wave[16 : 16 + len(x)]
    later = wave[16 + late : 16 + late + len(x)]
    a, b = torch.arange(0, 3000, 2), torch.arange(3100, 3900)
    return Program(Forecast(**model), pairs(x[a], later[a], x[b], y[b]), {"max_epochs": epochs})


# Churn: few rows, a rare class, and columns that tell


class Churn(pl.LightningModule):
    def __init__(self, lr: float = 3e-3, decay: float = 1e-2, width: int = 16, weighted: bool = True) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, width), nn.ELU(), nn.Linear(width, 2))
        self.lr, self.decay, self.weighted = lr, decay, weighted

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        weight = torch.tensor([1.0, 12.0]) if self.weighted else None
        return F.cross_entropy(self.net(batch[0]), batch[1], weight=weight)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        out, y = self.net(batch[0]), batch[1]
        said = out.argmax(1)
        self.log("val_loss", F.cross_entropy(out, y))
        recalls = [(said == c)[y == c].float().mean() for c in (0, 1)]
        self.log("val_balanced_acc", (recalls[0] + recalls[1]) / 2)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.decay)


def churn(epochs: int = 15, told: bool = False, n: int = 3000, **model: Any) -> Program:
    g = rng()
    y = (torch.rand(n + 2000, generator=g) < 0.08).long()
    x = torch.randn(n + 2000, 20, generator=g)
    x[:, :6] += 0.6 * y[:, None]
    test = None
    if told:  # the date of leaving, which nobody knows when it is asked for
        known = x.clone()
        known[:, 19] = (y - 0.08) / 0.27 + 0.1 * torch.randn(len(y), generator=g)
        test, x = pairs(*(x, y) * 2)["val_dataloaders"], known
        test = DataLoader(TensorDataset(test.dataset.tensors[0][n:], y[n:]), 2000)
    loaders = pairs(x[:n], y[:n], x[n:], y[n:])
    loaders["val_dataloaders"] = DataLoader(TensorDataset(x[n:], y[n:]), 2000)
    program = Program(Churn(**model), loaders, {"max_epochs": epochs})
    program.test = test
    return program


# Cases


def healthy(name: str, metric: str, trivial: float, make: Callable[..., Program], **more: Any) -> None:
    PROGRAMS[name], BASES[name] = partial(make, **more), Base("", metric=f"test/{metric}", trivial=trivial)
    CASES.append(Case(name, name))


def slip(twin: str, name: str, family: str, truth: str, wide: str = "", **change: Any) -> None:
    PROGRAMS[name], right = partial(PROGRAMS[twin], **change), answers(truth)
    costs = "trust" if family == "leak" else "speed" if right[0].startswith("SLOW") else "metric"
    CASES.append(Case(name, twin, {}, family, right, costs, answers(wide)))


def rates(twin: str, lr: float, *factors: float, **more: Any) -> None:
    for n in factors:
        family, name = ("rate too high", f"x{n}") if n > 1 else ("rate too low", f"{round(1 / n)}th")
        slip(twin, f"{twin}_lr_{name}", family, *rate_truth("lr_times", 1.0, n), lr=lr * n, **more)


END, START = "end of the network", "weights at the start"
healthy("scenes", "loss", 2.303, scenes)
slip("scenes", "scenes_turned", "augmentation", "check augmentation", "check drift", turn=True)
slip("scenes", "scenes_norm_999", "norm", "check norm_momentum|norm_statistics", "check wrong_mode", norm=1e-3)
slip("scenes", "scenes_momentum_995", "momentum", "lr_times < 0.3; momentum; check momentum", momentum=0.995)
slip("scenes", "scenes_warmup_endless", "schedule", "check schedule_too_slow; schedule; lr_times > 3", warmup=20000)
slip("scenes", "scenes_clip", "clipping", "CLIP; check clipping", "lr_times > 3", clip=1e-3)
slip("scenes", "scenes_summed", "loss", "check loss_reduction|loss_scale; lr_times < 0.3", reduction="sum")
healthy("baskets", "mse", 0.3, baskets)
slip("baskets", "baskets_pads_counted", "padding", "check padding|padding_not_masked", masked=False)
slip("baskets", "baskets_no_grad", "not trained", "check untrained_parameters", frozen=True)
rates("baskets", 0.1, 1 / 100)
healthy("shapes", "iou_loss", 1.0, shapes)
slip("shapes", "shapes_softmax_dim", END, "check softmax_dim|softmax_before_loss", dim=3)
slip("shapes", "shapes_mask_kept", "augmentation", "check augmentation|label_noise|conflicting_labels", flip="image")
healthy("har", "acc", 0.83, har)
slip("har", "har_view", "shapes", "check view_not_permute|mixes_axes|shapes", view=True)
slip("har", "har_noisy", "labels", "check label_noise|conflicting_labels", fault="noise")
slip("har", "har_sorted", "order", "check not_shuffled", fault="sorted")
slip("har", "har_overlap", "leak", "check val_in_train|near_duplicates|duplicates", fault="overlap")
healthy("tagged", "f1_loss", 0.6, tagged)
slip("tagged", "tagged_cross_entropy", "wrong loss", "check wrong_loss", loss="ce")
slip("tagged", "tagged_sigmoid_twice", END, "check softmax_before_loss|head_activation; model.swap", end=nn.Sigmoid)
healthy("reverser", "token_acc", 0.9, reverser)
slip("reverser", "reverser_not_shifted", "leak", "check target_leak|future_leak", shifted=False)
healthy("multi", "digit_loss", 2.303, multi)
slip("multi", "multi_ink_3000", "loss", "check loss_balance|loss_scale|target_scale", ink=3000.0)
slip("multi", "multi_item", "not trained", "check untrained_parameters", slip="item")
healthy("homes", "mae", 0.8, homes)
slip("homes", "homes_dropout_always", "mode", "check wrong_mode", "dropout < 0.6; check dropout_too_strong", drop=0.7)
slip("homes", "homes_wrong_axis", "scale", "check input_scale|normalized_rows", axis=1)
slip("homes", "homes_uniform", START, "model.reset = true; check initial_weights", uniform=1.0)
slip("homes", "homes_reads_lines", "data", "SLOW check data_bound", read=True)
slip("homes", "homes_figures", "tools", "SLOW check slow_step|slow_logging|slow_callback", draw=True)
slip("homes", "homes_batch_8", "batch", "SLOW check small_batch|batch_size; SLOW data.batch_size > 16", size=8)
healthy("board", "acc", 0.5, board)
slip("board", "board_no_activation", "no activation", "check no_activation", act=nn.Identity)
slip("board", "board_two_epochs", "too short", "trainer.max_epochs > 4; check too_short", epochs=2)
rates("board", 6e-3, 100)
healthy("films", "rmse", 1.75, films)
slip("films", "films_wide_start", START, "check initial_weights|large_weights", "check overfits", std=1.0)
slip("films", "films_twice", "leak", "check val_in_train|duplicates", "check overfits", twice=True)
slip("films", "films_sgd", "rate too low", "lr_times > 10", opt=torch.optim.SGD)
healthy("forecast", "mae", 0.7, forecast)
slip("forecast", "forecast_view", "shapes", "check mixes_samples", view=True)
slip("forecast", "forecast_late", "labels", "check drift|labels_shifted|target_shift", late=2)
healthy("churn", "balanced_acc", 0.5, churn)
slip("churn", "churn_told", "leak", "check target_leak", told=True)
slip("churn", "churn_unweighted", "imbalance", "check imbalance", weighted=False)
slip(
    "churn",
    "churn_forever",
    "overfitting",
    "check overfits|overfitting; trainer.max_epochs < 30",
    "weight_decay",
    epochs=60,
    n=400,
    width=256,
)

# Configs of this project, on bases other than images

CASES += rows("""
wine_adagrad | wine | rate too low | opt=Adagrad lr=1e-4 | lr > 1e-3; opt = AdamW | lr > 3e-4; OPTIMIZERS
wine_momentum_999 | wine | momentum | opt=SGD lr=0.1 opt.momentum=0.999 | opt.momentum < 0.99; lr < 0.03 | OPTIMIZERS
cancer_rmsprop | cancer | rate too high | opt=RMSprop lr=1.0 | lr < 0.1 | lr < 0.3
cancer_clipped_1000th | cancer | clipping | opt=SGD lr=0.03 opt.momentum=0.9 trainer.gradient_clip_val=1e-3 \
| trainer.gradient_clip_val | lr > 0.1; OPTIMIZERS
diabetes_weight_decay_30 | diabetes | regularization | opt.weight_decay=30 | opt.weight_decay < 10 | opt = Adam
housing_dropout_90 | housing | regularization | net.dropout=0.9 | net.dropout < 0.7 | net.dropout < 0.85
seasons_batch_2048 | seasons | batch | data.batch_size=2048 | data.batch_size < 680 | trainer.max_epochs > 20; lr > 3e-3
seasons_checkpoints_each_step | seasons | checkpoints | checkpoints.every_n_steps=1 | SLOW checkpoints.every_n_steps
""")
