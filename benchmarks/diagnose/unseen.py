"""Held out, to be asked once: programs of other authors with faults that studies and public reports tell of, rebuilt on
data that is here. Kinds of faults are as often as Humbatova et al. find them (Taxonomy of Real Faults in Deep Learning
Systems, ICSE 2020). Of each the source stands beside it: DeepLocalize (ICSE 2021), DeepFD (ICSE 2022), UMLAUT (CHI
2021), Defects4ML (Morovati et al., 2023), TrainCheck (OSDI 2025), TensorFlow Program Bugs (Zhang et al., ISSTA 2018),
issues of GitHub. Written without a look at how src.diagnose works: where no check of an older case fits, the truth has
natural names for one, marked `invented`."""

import json
import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import lightning.pytorch as pl
import polars
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping
from PIL import Image
from sklearn import datasets
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.datasets import MNIST

from benchmarks.diagnose.cases import BASES, DATA, Base, Case, answers, rows
from benchmarks.diagnose.modules import Program, rng
from benchmarks.diagnose.slips import PROGRAMS

CASES: list[Case] = []
FILES = {"data.data_dir": DATA}  # of programs that read files


def healthy(name: str, metric: str, trivial: float, make: Callable[..., Program], reads: bool = False) -> None:
    if name in PROGRAMS or name in BASES:
        raise ValueError(f"there is a {name} already")
    PROGRAMS[name], BASES[name] = make, Base("", FILES if reads else {}, f"test/{metric}", trivial)
    CASES.append(Case(name, name))


def slip(twin: str, name: str, family: str, truth: str, wide: str = "", **change: Any) -> None:
    PROGRAMS[name], right = partial(PROGRAMS[twin], **change), answers(truth)
    costs = "trust" if family == "leak" else "speed" if right[0].startswith("SLOW") else "metric"
    CASES.append(Case(name, twin, {}, family, right, costs, answers(wide)))


# 1. The CNN of PyTorch's examples: functional pooling, log-probabilities at the end, SGD.


@cache
def mnist(n: int = 5000) -> tuple[Tensor, Tensor]:
    data = MNIST(DATA, train=True)
    i = torch.randperm(len(data), generator=rng())[:n]  # because files may be sorted by class
    return data.data[i], data.targets[i]


class Scans(Dataset):
    """`pil`: enlarges and turns each image as it is asked for, as if it came from a scanner."""

    def __init__(self, x: Tensor, y: Tensor, pil: bool = False) -> None:
        self.x, self.y, self.pil = x, y, pil

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        img = self.x[i]
        if self.pil:
            scan = Image.fromarray(img.numpy()).resize((112, 112), Image.Resampling.BICUBIC)
            scan = scan.rotate(1, Image.Resampling.BICUBIC).resize((28, 28), Image.Resampling.LANCZOS)
            img = torch.frombuffer(bytearray(scan.tobytes()), dtype=torch.uint8).view(28, 28)
        return (img[None] / 255 - 0.1307) / 0.3081, int(self.y[i])

    def __len__(self) -> int:
        return len(self.x)


class Net(nn.Module):
    def __init__(self, last: Any) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 10, kernel_size=5), nn.Conv2d(10, 20, kernel_size=5)
        self.conv2_drop, self.last = nn.Dropout2d(0.2), last
        self.fc1, self.fc2 = nn.Linear(320, 50), nn.Linear(50, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2_drop(self.conv2(x)), 2))
        x = self.fc2(F.relu(self.fc1(x.view(-1, 320))))
        return self.last(x, dim=1) if self.last else x


class LitMNIST(pl.LightningModule):
    def __init__(self, last: Any = F.log_softmax, loss: Any = F.nll_loss, lr: float = 0.015) -> None:
        super().__init__()
        self.model, self.loss_fn, self.lr = Net(last), loss, lr

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: Any, batch_nb: int) -> dict[str, Any]:
        x, y = batch
        return {"loss": self.loss_fn(self(x), y)}

    def validation_step(self, batch: Any, batch_nb: int) -> None:
        x, y = batch
        output = self(x)
        self.log("valid_loss", self.loss_fn(output, y))
        self.log("valid_acc", output.argmax(dim=1).eq(y).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.model.parameters(), lr=self.lr, momentum=0.9)


def course(pil: bool = False, epochs: int = 10, **model: Any) -> Program:
    x, y = mnist()
    train = DataLoader(Scans(x[:3000], y[:3000], pil), batch_size=50, shuffle=True)
    test = DataLoader(Scans(x[3500:], y[3500:]), batch_size=500)
    return Program(LitMNIST(**model), {"train_dataloaders": train, "val_dataloaders": test}, {"max_epochs": epochs})


# 2. LeNet as a textbook has it, on images of 14 x 14.


class LeNet(pl.LightningModule):
    def __init__(self, act: Any = nn.Tanh, lr: float = 0.15) -> None:
        super().__init__()
        self.lr = lr
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2), act(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 3), act(), nn.AvgPool2d(2)
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 120), act(), nn.Linear(120, 84), act(), nn.Linear(84, 10)
        )
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, img: Tensor) -> Tensor:
        return self.classifier(self.features(img))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.criterion(self(batch[0]), batch[1])
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        correct = (logits.max(1).indices == batch[1]).sum() / len(batch[1])
        self.log_dict({"val_loss": self.criterion(logits, batch[1]), "val_acc": correct})

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.lr)


def lenet(epochs: int = 20, **model: Any) -> Program:
    x, y = mnist()
    x = F.avg_pool2d((x[:, None] / 255 - 0.13) / 0.31, 2)
    sets = TensorDataset(x[:2500], y[:2500]), TensorDataset(x[3000:], y[3000:])
    loaders = DataLoader(sets[0], 32, shuffle=True, drop_last=True), DataLoader(sets[1], 1000)
    return Program(
        LeNet(**model),
        dict(zip(("train_dataloaders", "val_dataloaders"), loaders, strict=True)),
        {"max_epochs": epochs},
    )


# 3. Prices of houses from a CSV, in units of 100,000 dollars.


class HousePrices(pl.LightningModule):
    """`unit`: dollars that a target of 1 is."""

    def __init__(self, unit: float = 1e5, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.l1, self.l2, self.out = nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.l2(torch.relu(self.l1(x)))))

    def training_step(self, batch: Any, _: int) -> Tensor:
        features, price = batch
        mse = F.mse_loss(self(features).squeeze(-1), price)
        self.log("train_mse", mse)
        return mse

    def validation_step(self, batch: Any, _: int) -> None:
        features, price = batch
        mse = F.mse_loss(self(features).squeeze(-1), price)
        self.log("val_rmse", mse.sqrt() * self.hparams.unit / 1e5)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


def houses(scaled: bool = True, epochs: int = 15, **model: Any) -> Program:
    table = polars.read_csv(f"{DATA}/california_housing.csv").drop("ocean_proximity").drop_nulls()
    values = torch.tensor(table.sample(5000, shuffle=True, seed=1).to_numpy()).float()
    x, y = values[:, :-1], values[:, -1] / model.get("unit", 1e5)
    x = (x - x[:4000].mean(0)) / x[:4000].std(0) if scaled else x
    train = DataLoader(TensorDataset(x[:4000], y[:4000]), 64, shuffle=True)
    test = DataLoader(TensorDataset(x[4000:], y[4000:]), 1000)
    return Program(HousePrices(**model), {"train_dataloaders": train, "val_dataloaders": test}, {"max_epochs": epochs})


# 4. A GRU that goes on with text, of a language of 24 words.


class CharRNN(pl.LightningModule):
    def __init__(self, vocab: int, scramble: bool = False, lr: float = 2e-3) -> None:
        super().__init__()
        self.encoder, self.rnn, self.decoder = nn.Embedding(vocab, 24), nn.GRU(24, 64), nn.Linear(64, vocab)
        self.scramble, self.lr = scramble, lr

    def forward(self, seq: Tensor) -> Tensor:
        hidden, _ = self.rnn(self.encoder(seq.t()))
        return self.decoder(hidden.transpose(0, 1))

    def nll(self, batch: dict[str, Tensor]) -> Tensor:
        scores = self(batch["input"])  # [N, T, V]; the loss wants [N, V, T]
        n, t, v = scores.shape
        scores = scores.reshape(n, v, t) if self.scramble else scores.permute(0, 2, 1)
        return F.cross_entropy(scores, batch["target"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        nll = self.nll(batch)
        self.log("nats", nll, prog_bar=True)
        return nll

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.nll(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), self.lr)


def babble(shift: int = 1, epochs: int = 12, **model: Any) -> Program:
    letters = torch.randint(1, 15, (24, 6), generator=rng(3))
    letters[:, 5] = 0  # a space
    said = letters[torch.randint(0, 24, (6000,), generator=rng(4))].flatten()

    def loaders(shift: int) -> list[DataLoader]:
        chunks = [{"input": c[:-1], "target": c[shift : 30 + shift]} for c in said.unfold(0, 31, 30)]
        return [DataLoader(chunks[:900], 32, shuffle=True), DataLoader(chunks[900:], 100)]  # type: ignore[arg-type]

    train, val = loaders(shift)
    own = {"train_dataloaders": train, "val_dataloaders": val}
    return Program(CharRNN(15, **model), own, {"max_epochs": epochs}, loaders(1)[1])


# 5. A small U-Net that finds discs among squares.


def block(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True))


class UNet(pl.LightningModule):
    def __init__(self, final: Any = nn.Identity, lr: float = 1e-2) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = block(1, 8), block(8, 16), block(16, 16)
        self.up2, self.up1, self.final = block(32, 8), block(16, 8), nn.Sequential(nn.Conv2d(8, 1, 1), final())
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        d1 = self.down1(x)
        d2 = self.down2(F.max_pool2d(d1, 2))
        m = F.interpolate(self.middle(F.max_pool2d(d2, 2)), scale_factor=2)
        u = F.interpolate(self.up2(torch.cat([m, d2], 1)), scale_factor=2)
        return self.final(self.up1(torch.cat([u, d1], 1)))

    def shared_step(self, batch: dict[str, Tensor], stage: str) -> Tensor:
        mask, out = batch["mask"], self(batch["image"])
        p = out.sigmoid()
        bce = F.binary_cross_entropy_with_logits(out, mask)
        dice = 1 - (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1)
        right = (p > 0.5).eq(mask > 0.5).float().mean()
        self.log_dict({f"{stage}_bce": bce, f"{stage}_dice_loss": dice, f"{stage}_pixel_acc": right}, on_epoch=True)
        return bce + dice

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.shared_step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.shared_step(batch, "val")

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class Discs(Dataset):
    """`flips`: what is mirrored in training by chance."""

    def __init__(self, n: int, seed: int, flips: tuple[str, ...] = ()) -> None:
        draw, grid, self.flips = rng(seed), torch.arange(24.0), flips
        dx, dy = ((grid - torch.randint(4, 20, (n, 2, 1), generator=draw)).abs() for _ in range(2))
        dx, dy = dx[:, :, None], dy[..., None]
        self.masks = (dx[:, 0] ** 2 + dy[:, 0] ** 2 < 16).float()[:, None]
        squares = (torch.maximum(dx[:, 1], dy[:, 1]) < 4).float()[:, None]
        self.images = torch.maximum(self.masks, squares) + 0.4 * torch.randn(n, 1, 24, 24, generator=draw)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        item = {"image": self.images[i], "mask": self.masks[i]}
        if self.flips and torch.rand(()) < 0.5:
            item |= {k: item[k].flip(-1) for k in self.flips}
        return item


def discs(flips: tuple[str, ...] = ("image", "mask"), epochs: int = 25, **model: Any) -> Program:
    train, val = DataLoader(Discs(480, 1, flips), 20, shuffle=True), DataLoader(Discs(300, 2), 100)
    return Program(UNet(**model), {"train_dataloaders": train, "val_dataloaders": val}, {"max_epochs": epochs})


# 6. Whether a review is kind: padded sequences, packed for a GRU.


class Reviews(pl.LightningModule):
    """`given`: vectors of words from elsewhere, as `from_pretrained` takes them. `decay`: steps, or epochs."""

    def __init__(self, given: bool = False, decay: str = "", lr: float = 2e-2, epochs: int = 8) -> None:
        super().__init__()
        self.emb = nn.Embedding.from_pretrained(torch.randn(400, 16)) if given else nn.Embedding(400, 16, padding_idx=0)
        self.gru, self.fc = nn.GRU(16, 32, batch_first=True, bidirectional=True), nn.Linear(64, 1)
        self.lr, self.decay, self.epochs, self.bce = lr, decay, epochs, nn.BCEWithLogitsLoss()

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.emb(ids), lengths, batch_first=True, enforce_sorted=False)
        _, h = self.gru(packed)
        return self.fc(torch.cat([h[0], h[1]], 1)).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, lengths, kind = batch
        loss = self.bce(self(ids, lengths), kind)
        self.log("train/bce", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        ids, lengths, kind = batch
        score = self(ids, lengths)
        self.log("val_bce", self.bce(score, kind), batch_size=len(kind))
        self.log("val_acc", ((score > 0) == (kind > 0.5)).float().mean(), batch_size=len(kind))

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), self.lr)
        if not self.decay:
            return opt
        linear = torch.optim.lr_scheduler.LambdaLR(opt, lambda n: max(0.0, 1 - n / self.epochs))
        return [opt], [{"scheduler": linear, "interval": self.decay}]


def padded(batch: list[tuple[Tensor, float]]) -> tuple[Tensor, Tensor, Tensor]:
    ids = [one for one, _ in batch]
    lengths = torch.tensor([len(one) for one in ids])
    return pad_sequence(ids, batch_first=True), lengths, torch.tensor([kind for _, kind in batch])


def reviews(epochs: int = 8, **model: Any) -> Program:
    draw, mood = rng(5), torch.zeros(400)
    mood[1:61], mood[61:121] = 1.0, -1.0
    texts = [torch.randint(1, 400, (int(n),), generator=draw) for n in torch.randint(6, 20, (9000,), generator=draw)]
    felt = [(ids, float(mood[ids].sum() > 0)) for ids in texts if mood[ids].sum() != 0][:3200]
    train, val = DataLoader(felt[:2400], 60, True, collate_fn=padded), DataLoader(felt[2400:], 250, collate_fn=padded)  # type: ignore[arg-type]
    model = {"decay": "epoch", "epochs": epochs} | model
    return Program(Reviews(**model), {"train_dataloaders": train, "val_dataloaders": val}, {"max_epochs": epochs})


# 7. Several tags of a text, each yes or no; layers by a loop.


class Tagger(pl.LightningModule):
    """`listed`: its layers are in a list of Python."""

    def __init__(self, end: str = "sigmoid", listed: bool = False, lr: float = 2e-3) -> None:
        super().__init__()
        layers = [nn.Linear(a, b) for a, b in ((40, 64), (64, 64))]
        self.layers = layers if listed else nn.ModuleList(layers)
        self.tags, self.end, self.lr = nn.Linear(64, 6), end, lr

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.gelu(layer(x))
        x = self.tags(x)
        return x.softmax(-1) if self.end == "softmax" else x.sigmoid()

    def training_step(self, batch: Any, i: int) -> Tensor:
        return F.binary_cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, i: int) -> None:
        p = self(batch[0])
        self.log("val_loss", F.binary_cross_entropy(p, batch[1]))
        self.log("val_tag_acc", p.round().eq(batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.NAdam(self.parameters(), lr=self.lr)


def tags(stop: str = "min", epochs: int = 25, **model: Any) -> Program:
    x = torch.randn(5000, 40, generator=rng(6))
    y = ((x[:, :6] * x[:, 6:12] + x[:, 12:18]) > 0.4).float()
    train, val = (
        DataLoader(TensorDataset(x[:4000], y[:4000]), 100, True),
        DataLoader(TensorDataset(x[4000:], y[4000:]), 500),
    )
    stopper = EarlyStopping("val_loss", mode=stop, patience=4)
    more = {"max_epochs": epochs, "callbacks": [stopper]}
    return Program(Tagger(**model), {"train_dataloaders": train, "val_dataloaders": val}, more)


# 8. Cultivars of wine by name; scikit-learn's rows are sorted by them.


class WineNet(pl.LightningModule):
    def __init__(self, lr: float = 5e-3) -> None:
        super().__init__()
        self.lr, self.seq = lr, nn.Sequential(nn.Linear(13, 24), nn.Tanh(), nn.Linear(24, 3))

    def common(self, batch: Any, which: str) -> Tensor:
        logits = self.seq(batch[0])
        ce = F.cross_entropy(logits, batch[1])
        self.log(f"{which}_ce", ce)
        self.log(f"{which}_acc", (logits.argmax(1) == batch[1]).float().mean())
        return ce

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.common(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.common(batch, "val")

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr, weight_decay=1e-4)


def cultivars(shuffle: bool = True, codes: str = "all", epochs: int = 30, **model: Any) -> Program:
    """`codes`: a name's number, by all names, or by those of a split as they come, as `factorize` does."""
    x, y = datasets.load_wine(return_X_y=True)
    x = torch.tensor((x - x.mean(0)) / x.std(0)).float()
    order = torch.randperm(178, generator=rng(2)) if shuffle else torch.arange(178)
    parts = []
    for i in order.tensor_split([125]):
        names = [f"cultivar {y[j]}" for j in i]
        known = sorted(set(names)) if codes == "all" else [*dict.fromkeys(names)]
        parts.append(TensorDataset(x[i], torch.tensor([known.index(n) if shuffle else int(n[-1]) for n in names])))
    data = pl.LightningDataModule.from_datasets(parts[0], parts[1], batch_size=25)
    return Program(WineNet(**model), {"datamodule": data}, {"max_epochs": epochs})


# 9. Ratings of films by factors of users and films, SGD.


class Factors(pl.LightningModule):
    """`same`: looks the user up in place of the film."""

    def __init__(self, reduction: str = "mean", same: bool = False, std: float = 0.1, lr: float = 0.3) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(200, 6), nn.Embedding(200, 6)
        self.user_bias, self.item_bias = nn.Embedding(200, 1), nn.Embedding(200, 1)
        self.mean, self.reduction, self.same, self.lr = nn.Parameter(torch.tensor(3.5)), reduction, same, lr
        for table in (self.user, self.item, self.user_bias, self.item_bias):
            nn.init.normal_(table.weight, std=std)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        items = users if self.same else items
        dot = (self.user(users) * self.item(items)).sum(1)
        return self.mean + dot + self.user_bias(users)[:, 0] + self.item_bias(items)[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch["user"], batch["item"]), batch["stars"], reduction=self.reduction)
        self.log("mse", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mse", F.mse_loss(self(batch["user"], batch["item"]), batch["stars"]))

    def configure_optimizers(self) -> Any:
        opt = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        return [opt], [torch.optim.lr_scheduler.StepLR(opt, 7, 0.5)]


def ratings(epochs: int = 20, **model: Any) -> Program:
    draw = rng(7)
    u, v = 0.8 * torch.randn(200, 2, generator=draw), 0.8 * torch.randn(200, 2, generator=draw)
    bu, bi = 0.4 * torch.randn(200, generator=draw), 0.5 * torch.randn(200, generator=draw)
    who, what = (torch.randint(0, 200, (14000,), generator=draw) for _ in range(2))
    stars = 3.5 + (u[who] * v[what]).sum(1) + bu[who] + bi[what] + 0.3 * torch.randn(14000, generator=draw)
    said = [{"user": a, "item": b, "stars": s} for a, b, s in zip(who, what, stars, strict=True)]
    train, val = DataLoader(said[:12000], 100, True), DataLoader(said[12000:], 500)  # type: ignore[arg-type]
    return Program(Factors(**model), {"train_dataloaders": train, "val_dataloaders": val}, {"max_epochs": epochs})


# 10. Where a pendulum will be: a GRU on sixteen noisy positions.


class Pendulum(pl.LightningModule):
    """`watch`: looks at the weights after each step, as somebody did to find out why they grow."""

    def __init__(self, relu: bool = False, watch: bool = False, lr: float = 3e-2) -> None:
        super().__init__()
        self.cell, self.head, self.relu, self.watch, self.lr = nn.GRUCell(1, 32), nn.Linear(32, 1), relu, watch, lr

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 32)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t, None], h)
        y = self.head(h)
        return F.relu(y) if self.relu else y

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.smooth_l1_loss(self(x), y)
        self.log("huber/train", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, *args: Any) -> None:
        if self.watch:
            seen = {n: [t.sort().values.tolist() for t in (p, p.grad)] for n, p in self.named_parameters()}
            self.last_histogram = json.dumps(seen)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mae", (self(batch[0]) - batch[1]).abs().mean())

    def configure_optimizers(self) -> Any:
        opt = torch.optim.AdamW(self.parameters(), lr=self.lr)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=self.trainer.max_epochs)
        return {"optimizer": opt, "lr_scheduler": cosine}


def pendulum(epochs: int = 35, trainer: Any = None, **model: Any) -> Program:
    draw = rng(8)
    speed, phase, size = (torch.rand(2500, 1, generator=draw) for _ in range(3))
    t = torch.arange(20.0)
    swing = (0.5 + size) * ((0.2 + 0.4 * speed) * t + 2 * math.pi * phase).sin()
    x, y = swing[:, :16] + 0.05 * torch.randn(2500, 16, generator=draw), swing[:, 19:]
    train, val = (
        DataLoader(TensorDataset(x[:2000], y[:2000]), 50, True),
        DataLoader(TensorDataset(x[2000:], y[2000:]), 500),
    )
    more = {"max_epochs": epochs, "gradient_clip_val": 1.0, **(trainer or {})}
    return Program(Pendulum(**model), {"train_dataloaders": train, "val_dataloaders": val}, more)


# 11. A network that came from Keras, with small batches.


class FromKeras(pl.LightningModule):
    """`fresh_head`: given after the optimizer had its parameters."""

    def __init__(self, fresh_head: bool = False, lr: float = 2e-3) -> None:
        super().__init__()

        def conv(a: int, b: int) -> list[nn.Module]:
            return [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

        self.body = nn.Sequential(*conv(1, 16), nn.MaxPool2d(2), *conv(16, 32), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.dense, self.top = nn.Linear(128, 32), nn.Linear(32, 1000 if fresh_head else 10)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr)
        if fresh_head:
            self.dense, self.top = nn.Linear(128, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.dense(self.body(x)).relu())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        out = self(batch[0])
        self.log("val_loss", F.cross_entropy(out, batch[1]))
        self.log("val_acc", (out.argmax(-1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return self.optimizer


def ported(epochs: int = 8, **model: Any) -> Program:
    x, y = datasets.load_digits(return_X_y=True)
    i = torch.randperm(len(x), generator=rng(9))
    x, y = torch.tensor(x).float().view(-1, 1, 8, 8)[i] / 8 - 1, torch.tensor(y)[i]
    train, val = (
        DataLoader(TensorDataset(x[:1300], y[:1300]), 8, True),
        DataLoader(TensorDataset(x[1300:], y[1300:]), 250),
    )
    return Program(FromKeras(**model), {"train_dataloaders": train, "val_dataloaders": val}, {"max_epochs": epochs})


# 12. Digits by their neighbours: triplets.


class Triplets(Dataset):
    """Of each sample also one of its class, which may be itself, and one of another."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y, self.of = x, y, [(y == c).nonzero()[:, 0] for c in range(10)]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        same, other = self.of[int(self.y[i])], self.of[(int(self.y[i]) + int(torch.randint(1, 10, ()))) % 10]
        positive, negative = (of[torch.randint(len(of), ())] for of in (same, other))
        return self.x[i], self.x[positive], self.x[negative], self.y[i]


class Embedder(pl.LightningModule):
    def __init__(self, eps: float = 1e-6, margin: float = 0.5, lr: float = 1e-3) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(64, 128), nn.LeakyReLU(), nn.Linear(128, 16))
        self.eps, self.margin, self.lr = eps, margin, lr

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.tower(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        a, p, n = (self(one) for one in batch[:3])
        near, far = (((a - b).pow(2).sum(1) + self.eps).sqrt() for b in (p, n))
        loss = (near - far + self.margin).clamp(min=0).mean()
        self.log("triplet", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        z, y = self(batch[0]), batch[3]
        nearest = (z @ z.T - 2 * torch.eye(len(z))).argmax(1)
        self.log("val_neighbour_acc", (y[nearest] == y).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def neighbours(epochs: int = 15, **model: Any) -> Program:
    x, y = datasets.load_digits(return_X_y=True)
    i = torch.randperm(len(x), generator=rng(10))
    x, y = (torch.tensor(x).float()[i] - 4.9) / 6, torch.tensor(y)[i]
    train, val = DataLoader(Triplets(x[:1200], y[:1200]), 60, True), DataLoader(Triplets(x[1200:], y[1200:]), 600)
    return Program(Embedder(**model), {"train_dataloaders": train, "val_dataloaders": val}, {"max_epochs": epochs})


# Cases

END, NOT_TRAINED = "end of the network", "check untrained_parameters"
SOFTMAX_FOR_TAGS = "check head_activation|wrong_loss|softmax_before_loss"
FLIPPED = "check label_noise|conflicting_labels|labels_independent|augmentation_changes_label"  # the last invented
SIGMOID_TWICE = "check softmax_before_loss|sigmoid_before_loss|head_activation"  # the second invented
healthy("course", "valid_acc", 0.89, course, reads=True)
# pytorch-lightning #20344, UMLAUT: the network ends in a softmax before cross-entropy
slip("course", "course_softmax", END, "check softmax_before_loss", last=F.softmax, loss=F.cross_entropy)
# pytorch-lightning #1856: F.nll_loss of what is no log-probability; `missing_log_softmax` invented
slip("course", "course_nll_of_logits", "wrong loss", "check wrong_loss|missing_log_softmax", last=None)
# pytorch-lightning #1986 and traceml #458: the loader's work takes the time
slip("course", "course_scans", "data", "SLOW check data_bound", pil=True)
healthy("lenet", "acc", 0.89, lenet, reads=True)
# DeepFD, DeepLocalize: sigmoids in all hidden layers
slip(
    "lenet",
    "lenet_sigmoid",
    "vanishing gradients",
    "check vanishing_gradients; model.swap",
    "lr_times > 3; RESET",
    act=nn.Sigmoid,
)
healthy("houses", "rmse", 1.15, houses, reads=True)
# Humbatova et al., missing preprocessing: features as they are in the CSV
slip("houses", "houses_raw", "scale", "check input_scale", "lr_times < 0.3", scaled=False)
# Stack Overflow, a network of Keras that predicts dollars; `target_scale` invented
slip("houses", "houses_dollars", "scale", "check target_scale|output_scale", "lr_times > 10", unit=1.0)
healthy("babble", "loss", 2.6, babble)
# MONAI GenerativeModels #314: the target is not shifted
slip("babble", "babble_unshifted", "leak", "check target_leak", shift=0)
# Speech-Separation #4, CARLA #16: view in place of permute; `scrambled_axes` invented
slip(
    "babble",
    "babble_view",
    "shapes",
    "check scrambled_axes|wrong_loss|wrong_shape",
    "check mixes_samples",
    scramble=True,
)
healthy("discs", "pixel_acc", 0.09, discs)
# segmentation with torchvision.transforms, many reports: the image is flipped, its mask is not
slip("discs", "discs_flipped", "labels", FLIPPED, flips=("image",))
# pytorch-lightning #13724 and others: a sigmoid before BCEWithLogitsLoss
slip("discs", "discs_sigmoid_twice", END, SIGMOID_TWICE, "check one_class", final=nn.Sigmoid)
healthy("reviews", "acc", 0.5, reviews)
# Stack Overflow: from_pretrained freezes its vectors
slip("reviews", "reviews_frozen_words", "not trained", NOT_TRAINED, given=True)
# pytorch-lightning #18570: num_training_steps is max_epochs, the interval a step
slip("reviews", "reviews_decay_per_step", "schedule", "schedule; check schedule_too_slow", decay="step")
healthy("tags", "loss", 0.66, tags)
# Stack Overflow, DeepFD: a softmax for classes that do not exclude each other
slip("tags", "tags_softmax", END, SOFTMAX_FOR_TAGS, end="softmax")
# PyTorch's forum, Zhang et al.: layers in a list are no layers of the module
slip("tags", "tags_listed", "not trained", NOT_TRAINED, listed=True)
# pytorch-lightning, EarlyStopping with the wrong mode; check invented
slip(
    "tags",
    "tags_stops_early",
    "too short",
    "trainer.callbacks; check stops_early|early_stopping|stopped_early",
    stop="max",
)
healthy("cultivars", "acc", 0.6, cultivars)
# Stack Overflow: rows sorted by class are split without a shuffle; the last name invented
slip("cultivars", "cultivars_sorted_split", "shift", "check drift|imbalance|classes_missing", shuffle=False)
# Defects4ML: labels get numbers split by split; all but `drift` invented
slip("cultivars", "cultivars_factorized", "labels", "check drift|labels_differ|label_shift|label_mapping", codes="own")
healthy("ratings", "mse", 1.25, ratings)
# DeepFD, loss and rate: a sum over the batch with the rate of a mean; check invented
slip(
    "ratings",
    "ratings_sum",
    "rate too high",
    "lr_times < 0.1; check loss_scale|wrong_loss",
    "lr_times < 0.5; trainer.gradient_clip_val; check not_finite",
    reduction="sum",
)
# Zhang et al., wrong tensor: the film's number is not looked at; `ignores_input` of a part
slip(
    "ratings",
    "ratings_user_twice",
    "ignores its input",
    "check ignores_input|ignores_part_of_input|untrained_parameters",
    same=True,
)
healthy("pendulum", "mae", 0.63, pendulum)
# DeepLocalize, so many: a ReLU at the end where targets are negative, too
slip("pendulum", "pendulum_relu", END, "check head_activation", relu=True)
# pytorch-lightning #1986: logging takes the time; names but the first invented
slip("pendulum", "pendulum_watched", "tools", "SLOW check slow_callback|slow_hook|slow_logging", watch=True)
# pytorch-lightning's speed guide: validates every other step
slip(
    "pendulum",
    "pendulum_validates",
    "validation",
    "VALIDATES; SLOW check validates_often",
    trainer={"val_check_interval": 2},
)
healthy("ported", "loss", 2.303, ported)
# TrainCheck: the optimizer was made before the head was given
slip("ported", "ported_fresh_head", "not trained", NOT_TRAINED, fresh_head=True)
healthy("neighbours", "neighbour_acc", 0.9, neighbours)
# PyTorch #2421 and many triplet losses: the gradient of the root at 0
slip("neighbours", "neighbours_root_of_0", "not finite", "check not_finite", eps=0.0)

# Configs of this project

BASES["char_rnn"] = Base(
    "shakespeare_lstm",
    {"data.files": [f"{DATA}/tinyshakespeare.txt"], "trainer.max_steps": 300, "trainer.val_check_interval": 100}
    | {"model.network.dim": 96, "model.network.depth": 1},
    trivial=3.3,
)
CASES += rows("""
char_rnn_plain_sgd | char_rnn | rate too low | opt=SGD lr=4e-3 | lr > 0.04; opt = AdamW | OPTIMIZERS; opt.momentum
char_rnn_dropout_85 | char_rnn | regularization | net.dropout=0.85 | net.dropout < 0.6 | net.dropout < 0.75
waves_eps_1 | waves | optimizer | opt.eps=1.0 | opt.eps < 0.03 | lr > 0.01; OPTIMIZERS
lstm_polynomial_20 | lstm | schedule | model.schedule=torch.optim.lr_scheduler.PolynomialLR \
model.schedule.total_iters=20 | model.schedule
cancer_class_weights | cancer | wrong loss | model.class_weights=[400.0,1.0] | model.class_weights
cancer_few_samples | cancer | too little data | data.val_frac=0.72 | data.val_frac < 0.5 | REGULARIZE
wine_smoothing_80 | wine | wrong loss | model.label_smoothing=0.8 | model.label_smoothing < 0.4
etth1_window_6 | etth1 | input | data.window=6 net.kernel_size=3 | data.window > 12
diabetes_saves_each_step | diabetes | checkpoints | checkpoints.every_n_steps=1 | SLOW checkpoints.every_n_steps
seasons_profiled | seasons | tools | trainer.profiler=advanced | SLOW trainer.profiler
""")
