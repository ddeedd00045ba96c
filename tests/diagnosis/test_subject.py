"""A LightningModule from outside: how its own Trainer, schedule and hooks train in a trial."""

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from src.diagnose import diagnose
from src.diagnosis.data import examine
from src.diagnosis.levers import Levers
from src.diagnosis.probe import serve_short
from src.diagnosis.samples import first_samples
from src.diagnosis.subject import OfModule, Short, Sized

X = torch.randn(1600, 8, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0)


def loader(x=X, y=Y, **how):
    return DataLoader(TensorDataset(x, y), 64, **how)


def loaders():
    return {
        "train_dataloaders": loader(X[:1280], Y[:1280], shuffle=True),
        "val_dataloaders": loader(X[1280:], Y[1280:]),
    }


class Module(L.LightningModule):
    def __init__(self, optimizers, started=str, step=str):
        super().__init__()
        self.network, self.optimizers_of = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)), optimizers
        self.started, self.step = started, step

    def on_train_start(self):
        self.started(self)

    def training_step(self, batch, _):
        self.step(self)
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("val_loss", F.cross_entropy(self.network(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer, *schedule = self.optimizers_of(self)
        return [optimizer], schedule


def sgd(lr=0.1, schedule=None):
    def made(module):
        optimizer = SGD(module.parameters(), lr, momentum=0.9)
        return (optimizer, {"scheduler": schedule(optimizer, module), "interval": "step"}) if schedule else (optimizer,)

    return made


def rates_of(schedule, times):
    rates = []
    module = Module(sgd(schedule=schedule), step=lambda m: rates.append(m.trainer.optimizers[0].param_groups[0]["lr"]))
    serve_short(OfModule(module, **loaders()), Short({"lr_times": times}, steps=24, validations=0), tuple, 60, True)
    return rates


@pytest.mark.parametrize(
    "schedule",
    [
        None,
        lambda o, m: OneCycleLR(o, 0.1, total_steps=int(m.trainer.estimated_stepping_batches)),
        lambda o, m: CyclicLR(o, 0.001, 0.1, step_size_up=6),
        lambda o, m: CosineAnnealingLR(o, m.trainer.max_epochs),
    ],
)
def test_a_rate_is_multiplied_under_each_schedule(schedule):
    plain, more = rates_of(schedule, 1.0), rates_of(schedule, 10.0)
    assert len(plain) == 24
    assert more[1:] == pytest.approx([10 * rate for rate in plain[1:]], rel=1e-3)
    assert max(plain) <= 0.1001
    assert min(plain) > 0  # where a schedule ends with the Trainer, it does not turn back


def test_the_trainer_is_as_given_but_short_and_writes_nothing(tmp_path):
    monitor = LearningRateMonitor()
    given = {
        "gradient_clip_val": 0.5, "accumulate_grad_batches": 2, "max_epochs": 900, "max_time": "00:00:00:00",
        "logger": True, "callbacks": [monitor, ModelCheckpoint(tmp_path / "kept")], "default_root_dir": tmp_path,
        "fast_dev_run": True,
    }  # fmt: skip
    subject = OfModule(Module(sgd()), given, **loaders())
    trainer, model, fit = subject.made(Short(steps=9), [])
    assert (trainer.gradient_clip_val, trainer.accumulate_grad_batches, trainer.max_epochs) == (0.5, 2, 900)
    trainer.fit(model, **fit)
    assert trainer.global_step == 9
    assert [type(one) for one in trainer.callbacks] == [LearningRateMonitor, Levers, Sized]
    assert not list(tmp_path.iterdir())
    changed = subject.made(Short({"trainer": {"gradient_clip_val": 1.0}}), [])[0]
    assert changed.gradient_clip_val == 1.0


def add_figure(module):
    module.logger.experiment.add_text("a", "b")


@pytest.mark.parametrize("compiled", [False, True])
def test_what_a_healthy_module_does_is_no_finding(compiled):
    module = Module(sgd(), started=add_figure)
    if compiled:
        module.network = torch.compile(module.network, backend="eager")
    found = diagnose(module, minutes=0.5, **loaders())
    assert (found.verdict, found.findings) == ("healthy", [])


@pytest.mark.parametrize(
    ("lr", "trainer", "check"), [(1e-5, {}, "lr_too_low"), (0.1, {"gradient_clip_val": 1e-4}, "clipped_too_short")]
)
def test_what_is_far_off_is_found(lr, trainer, check):
    found = diagnose(Module(sgd(lr)), minutes=1, trainer=trainer, **loaders())
    # A rate that makes up for the clipping is as good an answer, and the other is its echo then.
    assert {check, "lr_too_low"} & {one.check for one in found.findings if one.tried}


def fail(module):
    if module.trainer.global_step > 45:
        raise RuntimeError("too late")


def test_an_error_of_the_longer_training_is_told():
    found = diagnose(Module(sgd(), step=fail), minutes=0.5, **loaders())
    assert (found.verdict, dict(found.unknown)["training"]) == ("unknown", "RuntimeError: too late")


def test_large_samples_are_read_until_there_are_enough():
    given, batch = [], torch.zeros(4, 2**22)  # 64 MiB

    def batches():
        for _ in range(10):
            given.append(1)
            yield batch, torch.arange(4)

    assert len(first_samples(batches())) == 8
    assert len(given) == 2


@pytest.mark.parametrize(
    ("train", "val", "check", "why"),
    [
        ((0, 600), (1500, 1600), "baselines", "are both sorted by class"),
        ((0, 100), (0, 1600), "read", "have one target"),
    ],
)
def test_sorted_loaders_are_named_in_words(train, val, check, why):
    order = Y.argsort()
    train, val = ([loader(X[order][a:b], Y[order][a:b])] for a, b in (train, val))
    subject = OfModule(Module(sgd()), train_dataloaders=train[0], val_dataloaders=val[0])
    assert why in dict(examine(subject.data(), 20).unknown)[check]
