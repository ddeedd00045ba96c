"""LightningModules as other people write them, asked by `from src.diagnose import diagnose`: healthy ones, and the same
with one slip that public studies tell of: programs of Stack Overflow (DeepLocalize, ICSE 2021; DeepFD, ICSE 2022),
AutoTrainer (ICSE 2021), UMLAUT (CHI 2021), TrainCheck (OSDI 2025), PyTorch's examples. None has a bar set by hand."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from sklearn import datasets
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset


@dataclass
class Program:
    """A module, the arguments of its Trainer and of fit, and what it is scored on if not on its own val."""

    model: pl.LightningModule
    loaders: dict[str, Any]
    trainer: dict[str, Any] = field(default_factory=lambda: {"max_epochs": 15})
    test: Any = None


# Data


def split(x: Any, y: Any, share: float = 0.75) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    x, rows = x.float() if x.is_floating_point() else x, torch.randperm(len(x), generator=rng())
    a, b = rows.tensor_split([int(share * len(x))])
    return x[a], y[a], x[b], y[b]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs(x: Tensor, y: Tensor, xv: Tensor, yv: Tensor, batch_size: int = 64, **more: Any) -> dict[str, DataLoader]:
    more = more if "sampler" in more or "batch_sampler" in more else {"shuffle": True, **more}
    size = {} if "batch_sampler" in more else {"batch_size": batch_size}
    train = DataLoader(TensorDataset(x, y), **size, **more)
    return {"train_dataloaders": train, "val_dataloaders": DataLoader(TensorDataset(xv, yv), batch_size=256)}


def digits(scale: float = 16.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y = datasets.load_digits(return_X_y=True)
    return split(x / scale, y)


def cancer(standard: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Targets [N, 1], as floats."""
    x, y = datasets.load_breast_cancer(return_X_y=True)
    return split((x - x.mean(0)) / x.std(0) if standard else x, y[:, None].astype("float32"))


def diabetes() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs with deviation 1, targets [N] as they are, from 25 to 346."""
    x, y = datasets.load_diabetes(return_X_y=True)
    return split(x / x.std(0), y.astype("float32"))


def moons() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return split(*datasets.make_moons(1500, noise=0.15, random_state=0))


def rare() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two clouds that touch; of the second, train has 2 % and val a half."""
    y = torch.cat([(torch.arange(3000) % 50 == 0).long(), torch.arange(1000) % 2])
    x = torch.randn(4000, 10, generator=rng()) + 0.7 * y[:, None]
    return x[:3000], y[:3000], x[3000:], y[3000:]


class DigitImages(Dataset):
    """Dicts, with a transform that normalizes."""

    def __init__(self, x: Tensor, y: Tensor, normalize: bool = True, sleep: float = 0.0) -> None:
        self.x, self.y, self.normalize, self.sleep = x.reshape(-1, 1, 8, 8), y, normalize, sleep

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        time.sleep(self.sleep)
        image = (self.x[i] - 0.305) / 0.376 if self.normalize else self.x[i]
        return {"image": image, "label": self.y[i]}


class Stream(IterableDataset):
    """Samples that are drawn as they are asked for: no length, no order."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(3000):
            x = torch.randn(8)
            yield x, (x[0] * x[1] + x[2]).reshape(1) + 0.1 * torch.randn(1)


class PKSampler(Sampler):
    """Batches of 10 classes with 4 samples each, one class after another."""

    def __init__(self, y: Tensor, batches: int = 30) -> None:
        self.rows, self.batches = [(y == c).nonzero()[:, 0] for c in range(10)], batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.batches):
            yield torch.cat([rows[torch.randint(len(rows), (4,))] for rows in self.rows]).tolist()


def wine() -> dict[str, Any]:
    x, y = datasets.load_wine(return_X_y=True)
    x, y, xv, yv = split((x - x.mean(0)) / x.std(0), y)
    return {
        "datamodule": pl.LightningDataModule.from_datasets(TensorDataset(x, y), TensorDataset(xv, yv), batch_size=16)
    }


def windows(n: int = 1200, size: int = 32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of two waves with noise, and the next value [N, 1]."""
    t = torch.arange(n + size + 1.0)
    wave = (0.3 * t).sin() + 0.5 * (0.11 * t).sin() + 0.1 * torch.randn(len(t), generator=rng())
    x, y = wave.unfold(0, size, 1)[: n - 1], wave[size : n + size - 1, None]
    return x[:900], y[:900], x[900:], y[900:]


def tokens() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sequences of 16 tokens; whether the first one comes again."""
    x = torch.randint(0, 12, (4000, 16), generator=rng())
    again = torch.arange(4000) % 2 == 0
    x[:, 1:] = torch.where((x[:, 1:] == x[:, :1]), (x[:, 1:] + 1) % 12, x[:, 1:])
    x[again, torch.randint(1, 16, (2000,), generator=rng(1))] = x[again, 0]
    return split(x, again.long())


def streams() -> dict[str, DataLoader]:
    return {name: DataLoader(Stream(), 64) for name in ("train_dataloaders", "val_dataloaders")}


def ages() -> tuple[Tensor, ...]:
    """Whole numbers from 18 to 90, which the inputs tell in part."""
    x = torch.randn(2000, 12, generator=rng())
    y = 54 + 12 * x[:, 0] + 6 * x[:, 1] * x[:, 2] + 3 * torch.randn(2000, generator=rng(1))
    return split(x, y.clamp(18, 90).long())


def distracted() -> tuple[Tensor, ...]:
    x = torch.randn(2000, 10, generator=rng())
    return split(x, (2 * x[:, :1]).sin())


def cloud() -> tuple[Tensor, ...]:
    x = torch.randn(1500, 2, generator=rng()) * torch.tensor([0.5, 1.0]) + torch.tensor([2.0, -1.0])
    return split(x, torch.zeros(1500))


def words() -> tuple[Tensor, ...]:
    """Rows of length 1 with 1,000 columns, as TF-IDF gives."""
    y = torch.arange(1500) % 4
    odds = 0.02 + 0.1 * (torch.arange(1000) // 50 == y[:, None])
    return split(F.normalize((torch.rand(1500, 1000, generator=rng()) < odds).float()), y)


# Networks


def mlp(sizes: Sequence[int], act: Callable[[], nn.Module] = nn.ReLU, *end: nn.Module) -> nn.Sequential:
    layers = [[nn.Linear(a, b), act()] for a, b in pairwise(sizes)]
    return nn.Sequential(*[m for pair in layers for m in pair][:-1], *end)


def cnn(dropout: float = 0.25) -> nn.Sequential:
    blocks = [[nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)] for a, b in ((1, 16), (16, 32))]
    head = [nn.Flatten(), nn.Dropout(dropout), nn.Linear(128, 64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, 10)]
    return nn.Sequential(*blocks[0], *blocks[1], *head)


class RowLSTM(nn.Module):
    """Reads an image row by row."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(8, 48, batch_first=batch_first), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x.view(-1, 8, 8))
        return self.fc(out[:, -1])


class TokenTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.pos = nn.Embedding(12, 32), nn.Parameter(0.02 * torch.randn(16, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder, self.fc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.encoder(self.embed(x) + self.pos)[:, 0])


def tcn() -> nn.Sequential:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old weight_norm is what most programs have
        convs = [nn.utils.weight_norm(nn.Conv1d(a, 16, 3, dilation=d)) for a, d in ((1, 1), (16, 2), (16, 4))]
    layers = [m for conv in convs for m in (conv, nn.ReLU())]
    return nn.Sequential(nn.Unflatten(1, (1, 32)), *layers, nn.Flatten(), nn.Linear(16 * 18, 1))


def deep(act: type[nn.Module]) -> nn.Sequential:
    """Twelve hidden layers."""
    net = mlp([64] + [48] * 12 + [10], act)
    for m in net:
        if isinstance(m, nn.Linear):
            nn.init.kaiming_normal_(m.weight, nonlinearity="relu" if act is nn.ReLU else "linear")
    return net


def squeeze() -> nn.Sequential:
    """Ends as SqueezeNet: a ReLU, then the mean of each map."""
    convs = [
        m
        for a, b in ((1, 24), (24, 32), (32, 10))
        for m in (nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
    ]
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *convs, nn.AdaptiveAvgPool2d(1), nn.Flatten())


# Modules


class Lit(pl.LightningModule):
    """What most tutorials have: a network, a loss, an optimizer, and perhaps a schedule.

    Args:
        right: whether an output is the target's, for val_acc.
        slip: `eval`, called by somebody in training.
    """

    def __init__(
        self, net: Any, lr: float = 1e-3, loss: Any = F.cross_entropy, right: Any = None, opt: Any = torch.optim.Adam,
        schedule: Any = None, slip: str = "", **more: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.net, self.lr, self.criterion, self.right, self.opt = net, lr, loss, right, opt
        self.schedule, self.slip, self.more = schedule, slip, more

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.slip == "eval":
            self.net.eval()
        x, y = batch
        loss = self.criterion(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        out = self(x)
        self.log("val_loss", self.criterion(out, y), prog_bar=True)
        if self.right:
            self.log("val_acc", self.right(out, y).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        opt = self.opt(self.parameters(), lr=self.lr, **self.more)
        return {"optimizer": opt, "lr_scheduler": self.schedule(opt)} if self.schedule else opt


class HandSetRate(Lit):
    """The rate is set before each step: warmup, then a cosine."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        done = min(1.0, self.global_step / 300)
        for group in self.optimizers().param_groups:
            group["lr"] = self.lr * min(10 * done, 0.5 * (1 + math.cos(math.pi * done)))


class Manual(Lit):
    """Its own loop. `slip`: what is forgotten."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        opt, loss = self.optimizers(), super().training_step(batch, batch_idx)
        if self.slip != "zero_grad":
            opt.zero_grad()
        self.manual_backward(loss)
        if self.slip != "step":
            opt.step()


class ImageModel(pl.LightningModule):
    """Batches are dicts. `only_head`: the optimizer gets no other parameters."""

    def __init__(self, dropout: float = 0.25, decay: float = 1e-2, lr: float = 2e-3, only_head: bool = False) -> None:
        super().__init__()
        self.model, self.criterion, self.only_head = cnn(dropout), nn.CrossEntropyLoss(), only_head
        self.lr, self.decay = lr, decay

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return {"loss": self.criterion(self.model(batch["image"]), batch["label"])}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self.model(batch["image"])
        self.log("val_loss", self.criterion(logits, batch["label"]))
        self.log("val_acc", (logits.argmax(-1) == batch["label"]).float().mean())

    def configure_optimizers(self) -> Any:
        params = self.model[-1].parameters() if self.only_head else self.parameters()
        return torch.optim.AdamW(params, lr=self.lr, weight_decay=self.decay)


class Autoencoder(pl.LightningModule):
    """`detach`: its encoder gets no gradient. `perceptual`: compares what a network makes of it that nobody froze."""

    def __init__(self, lr: float = 2e-3, detach: bool = False, perceptual: bool = False, latent: int = 8) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp([64, 64, latent]), mlp([8, 64, 64])
        self.features = mlp([64, 32, 32], nn.Tanh) if perceptual else None
        self.lr, self.detach = lr, detach

    def step(self, batch: Any, name: str) -> Tensor:
        x, z = batch[0], self.encoder(batch[0])
        out = self.decoder(z.detach() if self.detach else z)
        loss = F.mse_loss(out, x)
        if self.features:
            loss = loss + 0.1 * F.mse_loss(self.features(out), self.features(x))
        self.log(f"{name}_loss", loss)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.step(batch, "val")

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([*self.encoder.parameters(), *self.decoder.parameters()], lr=self.lr)


class VAE(Autoencoder):
    def step(self, batch: Any, name: str) -> Tensor:
        x, _ = batch
        mu, logvar = self.encoder(x).chunk(2, 1)
        recon = F.mse_loss(self.decoder(mu + torch.randn_like(mu) * (0.5 * logvar).exp()), x, reduction="sum") / len(x)
        kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(1).mean()
        self.log_dict({f"{name}_recon_loss": recon, f"{name}_kl_loss": kl, f"{name}_loss": recon + 0.1 * kl})
        return recon + 0.1 * kl


class GAN(pl.LightningModule):
    """Of a cloud around (2, -1), with two optimizers. `detach`: the generator gets no gradient."""

    automatic_optimization = False

    def __init__(self, detach: bool = False, lr: float = 2e-3) -> None:
        super().__init__()
        self.detach, self.lr = detach, lr
        self.generator, self.discriminator = mlp([4, 32, 2]), mlp([2, 32, 1], lambda: nn.LeakyReLU(0.2))

    def judged(self, x: Tensor, real: bool) -> Tensor:
        out = self.discriminator(x)
        return F.binary_cross_entropy_with_logits(out, torch.full_like(out, float(real)))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        opt_g, opt_d = self.optimizers()
        real, fake = batch[0], self.generator(torch.randn(len(batch[0]), 4))
        d_loss = self.judged(real, True) + self.judged(fake.detach(), False)
        opt_d.zero_grad()
        self.manual_backward(d_loss)
        opt_d.step()
        g_loss = self.judged(fake.detach() if self.detach else fake, True)
        opt_g.zero_grad()
        self.manual_backward(g_loss)
        opt_g.step()
        self.log_dict({"g_loss": g_loss, "d_loss": d_loss}, prog_bar=True)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        fake, real = self.generator(torch.randn(len(batch[0]), 4)), batch[0]
        self.log("val_g_loss", self.judged(fake, True))
        self.log("val_distance", (fake.mean(0) - real.mean(0)).norm() + (fake.std(0) - real.std(0)).norm())

    def configure_optimizers(self) -> Any:
        nets = self.generator, self.discriminator
        return [torch.optim.Adam(net.parameters(), lr=self.lr, betas=(0.5, 0.999)) for net in nets]


class Contrastive(Lit):
    """Two noisy views of a sample are each other's positives."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.normalize(self.net(x + 0.1 * torch.randn_like(x))) for _ in range(2)])


def nt_xent(z: Tensor, y: Tensor) -> Tensor:
    like = (z @ z.T / 0.2).masked_fill(torch.eye(len(z), dtype=torch.bool), -1e9)
    return F.cross_entropy(like, (torch.arange(len(z)) + len(y)) % len(z))


class MCDropout(Lit):
    """Dropout stays on in validation, where several answers are averaged."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.net.train()
        p = torch.stack([self.net(batch[0]).softmax(1) for _ in range(8)]).mean(0)
        self.net.eval()
        self.log_dict({"val_loss": F.nll_loss(p.log(), batch[1]), "val_acc": top(p, batch[1]).float().mean()})


# Losses, and what is right


def top(out: Tensor, y: Tensor) -> Tensor:
    return out.argmax(1) == y


def above(half: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda out, y: (out > half) == (y > 0.5)


def squares(out: Tensor, y: Tensor) -> Tensor:
    """Of targets [N] or [N, 1], also whole numbers."""
    return F.mse_loss(out, y.float().view_as(out))


def by_hand(eps: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The formula of a textbook, with what keeps it from log(0), or without."""
    return lambda p, y: -(y * torch.log(p + eps) + (1 - y) * torch.log(1 - p + eps)).mean()


def softmax_of_batch(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(F.softmax(out, dim=0), y)


def rounded(out: Tensor, y: Tensor) -> Tensor:
    return out[:, 0].round() == y


def schedule(make: Any, interval: str = "epoch", **more: Any) -> Callable[[Any], dict[str, Any]]:
    return lambda opt: {"scheduler": make(opt), "interval": interval, **more}


halved = partial(lr_scheduler.StepLR, step_size=5, gamma=0.5)
one_cycle = schedule(lambda opt: lr_scheduler.OneCycleLR(opt, opt.param_groups[0]["lr"], 380), "step")
plateau = schedule(partial(lr_scheduler.ReduceLROnPlateau, patience=5), monitor="val_loss")
bce, logistic, CLIP = F.binary_cross_entropy, F.binary_cross_entropy_with_logits, "trainer.gradient_clip_val"
