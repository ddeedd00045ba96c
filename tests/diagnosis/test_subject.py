"""A LightningModule from outside: how its own Trainer, schedule and hooks train in a trial."""

import time
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor, ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

from src.diagnose import diagnose
from src.diagnosis.case import Case
from src.diagnosis.data import examine
from src.diagnosis.levers import Levers
from src.diagnosis.metric import best_where, judged_by, wrong_mode
from src.diagnosis.probe import Probe, Runner, run_trial
from src.diagnosis.samples import first_samples
from src.diagnosis.speed import slow_module
from src.diagnosis.subject import LimitVal, ModuleSubject, Trial
from src.diagnosis.suspects import of_module
from src.diagnosis.trials import Scale
from src.run.errors import ConfigError

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
    run_trial(ModuleSubject(module, **loaders()), Trial({"lr_times": times}, steps=24, validations=0), tuple, 60, True)
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
    subject = ModuleSubject(Module(sgd()), given, **loaders())
    trainer, model, fit = subject.made(Trial(steps=9), [])
    assert (trainer.gradient_clip_val, trainer.accumulate_grad_batches, trainer.max_epochs) == (0.5, 2, 900)
    trainer.fit(model, **fit)
    assert trainer.global_step == 9
    assert [type(one) for one in trainer.callbacks] == [LearningRateMonitor, Levers, LimitVal]
    assert not list(tmp_path.iterdir())
    changed = subject.made(Trial({"trainer": {"gradient_clip_val": 1.0}}), [])[0]
    assert changed.gradient_clip_val == 1.0


def add_figure(module):
    module.logger.experiment.add_text("a", "b")


@pytest.mark.parametrize("compiled", [False, True])
def test_what_a_healthy_module_does_is_no_finding(compiled):
    module = Module(sgd(), started=add_figure)
    if compiled:
        module.network = torch.compile(module.network, backend="eager")
    found = diagnose(module, minutes=1.5, **loaders())
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
    found = diagnose(Module(sgd(), step=fail), minutes=1.5, **loaders())
    assert (found.verdict, dict(found.unknown)["training"]) == ("unknown", "RuntimeError: too late")


def test_large_samples_are_read_until_there_are_enough():
    given, batch = [], torch.zeros(4, 2**22)  # 64 MiB

    def batches():
        for _ in range(10):
            given.append(1)
            yield batch, torch.arange(4)

    assert len(first_samples(batches())) == 8
    assert len(given) == 2


class Groups:
    """A sampler: four samples of one class in a row."""

    def __iter__(self):
        rows = [(Y[:1280] == c).nonzero().flatten() for c in range(3)]
        for c in torch.arange(300) % 3:
            yield from rows[c][torch.randint(len(rows[c]), (4,))].tolist()

    def __len__(self):
        return 1200


def data_of(train, val=None):
    data = ModuleSubject(Module(sgd()), train_dataloaders=train, val_dataloaders=val).data()
    return data, {one.check for one in examine(data, 20).findings}


def test_a_sorted_loader_is_told():
    order = Y[:1280].argsort()
    assert data_of(loader(X[order], Y[order]), loader(X[1280:], Y[1280:]))[1] == {"not_shuffled"}


def sampled():
    half, plain = loader(X[1280:], Y[1280:]), {"x": X[:1280], "y": Y[:1280]}
    weights = 1 / torch.bincount(Y).float()[Y]
    yield loader(**plain, shuffle=True), half
    yield loader(**plain, sampler=Groups()), half
    yield loader(**plain, sampler=WeightedRandomSampler(weights[:1280], 1280)), half
    yield loader(sampler=SubsetRandomSampler(range(1200))), loader(sampler=SubsetRandomSampler(range(1200, 1600)))


@pytest.mark.parametrize(("train", "val"), [*sampled()], ids=["shuffle", "groups", "weights", "subset"])
def test_a_sampler_is_no_fault(train, val):
    data, found = data_of(train, val)
    assert not found
    assert data.ordered is not None


def test_without_val_a_part_of_train_is_left_for_it():
    data, found = data_of(loader(shuffle=True))
    assert ([len(data.splits[name]) for name in ("train", "val")], found) == ([1280, 320], set())
    assert data_of(loader(X, Y.roll(5), shuffle=True))[1] == {"labels_independent"}


def test_rates_that_the_code_sets_are_multiplied():
    rates = []

    class Hand(SGD):
        def step(self, closure=None):
            loss = closure()
            rates.append(self.param_groups[0]["lr"])
            return loss

    def set_by_hand(module):
        module.trainer.optimizers[0].param_groups[0]["lr"] = 0.01 * (module.trainer.global_step + 1)

    module = Module(lambda m: (Hand(m.parameters(), 0.5),), step=set_by_hand)
    subject = ModuleSubject(module, **loaders())
    probe = run_trial(subject, Trial({"lr_times": 10.0}, steps=6, validations=0), tuple, 60, True)
    assert rates == pytest.approx([0.1 * n for n in range(1, 7)])
    assert probe.rates == pytest.approx([0.01 * n for n in range(1, 7)])


def test_levers_of_a_module():
    network = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, momentum=0.99), nn.Sigmoid(), nn.Dropout(0.9))
    module = Module(lambda m: (SGD(m.parameters(), 0.1, weight_decay=5.0, momentum=0.99),))
    module.network, before = network, network[0].weight.detach().clone()
    gelu = {"2": {"class_path": "torch.nn.GELU"}}
    overlay = {"dropout": 0.1, "norm_momentum": 0.1, "weight_decay": 0.01, "momentum": 0.9, "lr_times": 0.0}
    overlay["model"] = {"init_args": {"reset": True, "swap": gelu}}
    probe = run_trial(ModuleSubject(module, **loaders()), Trial(overlay, steps=2), tuple, 60, True)
    assert not probe.failed
    assert (network[1].momentum, type(network[2]), network[3].p) == (0.1, nn.GELU, 0.1)
    group = module.trainer.optimizers[0].param_groups[0]
    assert (group["weight_decay"], group["momentum"]) == (0.01, 0.9)
    assert not torch.equal(network[0].weight, before)
    assert probe.extra["dropout"] == 0.1


class Manual(Module):
    """Two optimizers, as of a GAN, that Lightning does not count."""

    steps = True

    def __init__(self):
        super().__init__(None)
        self.automatic_optimization = False

    def training_step(self, batch, _):
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        optimizers = self.optimizers(use_pl_optimizer=False)
        [one.zero_grad() for one in optimizers]
        self.manual_backward(loss)
        [one.step() for one in optimizers if self.steps]
        return loss

    def validation_step(self, batch, _):
        self.log("val_g_loss", F.cross_entropy(self.network(batch[0]), batch[1]))

    def configure_optimizers(self):
        return [SGD(part.parameters(), 0.1) for part in (self.network[0], self.network[2])], []


class Forgets(Manual):
    steps = False


def test_steps_that_lightning_does_not_count_are_counted():
    probe = run_trial(ModuleSubject(Manual(), **loaders()), Trial(steps=5), tuple, 60, True)
    assert (len(probe.losses), probe.scores[-1]["step"], probe.findings) == (5, 5, [])
    assert judged_by({}, probe) is None
    assert judged_by({}, probe, [EarlyStopping("val_g_loss", mode="max")]) == ("val_g_loss", "max")


def test_no_step_at_all_is_told():
    probe = run_trial(ModuleSubject(Forgets(), **loaders()), Trial(steps=5), tuple, 60, True)
    assert [one.check for one in probe.findings] == ["untrained_parameters"]
    assert probe.findings[0].evidence["batches"] == 200


@pytest.mark.parametrize(
    ("names", "monitored", "metric"),
    [
        (["val_kl_loss", "val_loss", "val_recon_loss"], [], ("val_loss", "min")),
        (["val_kl_loss", "val_recon_loss"], [], ("", "min")),
        (["val_kl_loss", "val_auc"], [("val_auc", "max")], ("val_auc", "max")),
        (["loss/val", "acc/val"], [], ("loss/val", "min")),
        (["val_acc"], [], ("val_acc", "max")),
        (["train_loss"], [], ("", "min")),
        (["val_loss/dataloader_idx_0", "val_loss/dataloader_idx_1"], [], ("val_loss/dataloader_idx_0", "min")),
        (["val_mae", "train_mae"], [], ("val_mae", "min")),
        (["val_macro_f1"], [], ("val_macro_f1", "max")),
        (["val_kl_loss", "val_recon_loss", "val_f1"], [], ("", "min")),
    ],
)
def test_what_a_module_is_judged_by(names, monitored, metric):
    first = Probe(scores=[dict.fromkeys([*names, "step"], 1.0)], extra={"monitored": monitored})
    assert judged_by({"trainer": {}}, first) == metric


def test_what_a_schedule_monitors_may_come_late():
    def made(module):
        optimizer = SGD(module.parameters(), 0.1)
        return optimizer, {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "val_loss"}

    for trial in (Trial(steps=45), Trial(steps=45, validations=0)):
        probe = run_trial(ModuleSubject(Module(made), **loaders()), trial, tuple, 60, True)
        assert (probe.failed, len(probe.losses)) == ("", 45)
        assert probe.extra["monitored"] == [("val_loss", "min")]


def test_a_network_that_cannot_be_copied_is_trained():
    module = Module(sgd())
    module.network[0] = nn.utils.weight_norm(module.network[0])
    module.network(X)  # after which a copy is an error
    assert not run_trial(ModuleSubject(module, **loaders()), Trial(steps=3), tuple, 60, True).failed


def test_validations_take_so_many_samples_in_any_order():
    order, seen = Y.argsort(), []

    class Looks(Module):
        def validation_step(self, batch, index):
            seen.append(batch[1])
            super().validation_step(batch, index)

    subject = ModuleSubject(Looks(sgd()), train_dataloaders=loader(), val_dataloaders=loader(X[order], Y[order]))
    subject.sample_sec = 1 / 150
    run_trial(subject, Trial(steps=2), tuple, 60, True)
    assert [len(y) for y in seen] == [64, 64, 22]
    assert len(torch.cat(seen).unique()) == 3


class Sleeps(torch.utils.data.Dataset):
    def __len__(self):
        return 1280

    def __getitem__(self, index):
        time.sleep(0.001)
        return X[index], Y[index]


class Waits(Callback):
    def on_train_batch_end(self, *_):
        time.sleep(0.03)


@pytest.mark.parametrize("check", ["", "data_bound", "slow_callback"])
def test_what_takes_time_in_a_step(check, tmp_path):
    data = loaders() | ({"train_dataloaders": DataLoader(Sleeps(), 64)} if check == "data_bound" else {})
    trainer = {"callbacks": [Waits()] if check == "slow_callback" else []}
    subject = ModuleSubject(Module(sgd()), trainer, **data)
    found, _, unknown = slow_module(subject, Runner(subject, tmp_path / "log", time.monotonic() + 60))
    assert ([one.check for one in found if one.todo], unknown) == ([check] * bool(check), [])


def test_what_is_odd_in_a_module_is_tried():
    extra = {"dropout": 0.95, "weight_decay": 10.0, "norm_momentum": 0.999}
    losses, rates = [2.0 * 0.97**i for i in range(100)], [0.1 * 0.8**i for i in range(100)]
    first = Probe(losses=losses, rates=rates, extra=extra)
    tried = [next(iter(one.change)) for one in of_module(Case({"trainer": {}}, first, scale=Scale("val_loss")), {})]
    assert tried == ["lr_times", "lr_times", "dropout", "weight_decay", "norm_momentum", "schedule"]
    healthy = Probe(losses=losses, rates=[0.1] * 100, extra={"dropout": 0.5, "weight_decay": 0.1})
    case = Case({"trainer": {"max_epochs": 3}}, healthy, 100, 300, scale=Scale("val_loss"))
    assert [one.check for one in of_module(case, {})] == ["lr_too_low", "lr_too_high"]
    ended = replace(case, total=100)
    assert of_module(ended, {})[-1].change == {"trainer": {"max_epochs": 9}}


def test_a_rate_in_a_long_warm_up_is_not_too_low():
    first = Probe(losses=[2.0] * 100, rates=[0.001] * 100)
    found = of_module(Case({"trainer": {}}, first), {"config": 0.1, "suggested": 2.0})
    assert "lr_too_low" not in [one.check for one in found]
    assert [one.change for one in found if one.check == "initial_weights"] == []  # nothing can have been learned yet


def test_a_warm_up_that_does_not_end_in_a_run_is_tried_without():
    first = Probe(losses=[2.0] * 100, rates=[1e-5 * i for i in range(100)])
    of = [one.check for one in of_module(Case({"trainer": {}}, first, 100, 400), {"config": 0.1})]
    assert "schedule_too_slow" in of
    soon = [one.check for one in of_module(Case({"trainer": {}}, first, 100, 1e5), {"config": 0.1})]
    assert "schedule_too_slow" not in soon


@pytest.mark.parametrize(
    ("model", "given", "text"),
    [
        (nn.Linear(2, 2), {}, "model: Linear is no LightningModule -> wrap it in one"),
        (None, {"train_loader": []}, "train_loader: Trainer.fit has no such argument -> train_dataloaders?"),
        (None, {"trainer": {"max_epoch": 3}}, "max_epoch: Trainer.__init__ has no such argument -> max_epochs?"),
    ],
)
def test_arguments_that_are_not_known_end_it_at_once(model, given, text):
    with pytest.raises(ConfigError) as e:
        diagnose(model or Module(sgd()), **given)
    assert str(e.value) == text


@pytest.mark.in_fork  # else all later forks of the tests' own process would wait
def test_a_process_that_has_used_several_threads_is_forked(tmp_path):
    """OpenMP's threads do not live on in a fork: what needs them there waits for ever."""
    torch.set_num_threads(2)
    torch.randn(2000, 2000).exp().sum()
    subject = ModuleSubject(Module(sgd()), **loaders())
    runner = Runner(subject, tmp_path / "log", time.monotonic() + 60)
    runner.jobs, runner.one_thread = 1, Runner(subject, tmp_path / "log", 0).one_thread
    assert runner.all([(threads_of, ())], 20) == [1]


def threads_of():
    torch.randn(2000, 2000).exp().sum()
    return torch.get_num_threads()


class Asks(Module):
    """Asks for what a Trainer usually has."""

    def on_fit_start(self):
        self.path = Path(self.logger.log_dir, "x")
        self.stopped = self.trainer.early_stopping_callback.stopped_epoch


def test_what_a_module_asks_its_trainer_for_is_there():
    subject = ModuleSubject(Asks(sgd()), {"callbacks": [EarlyStopping("val_loss")]}, **loaders())
    probe = run_trial(subject, Trial(steps=5), tuple, 60, True)
    assert (probe.failed, len(probe.losses)) == ("", 5)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("val/loss", "min"), ("val_f1", "max"), ("val/acc_loss", ""), ("val_rmse", "min"), ("speed", "")],
)
def test_where_a_metric_is_best(name, mode):
    assert best_where(name) == mode
    for given in ("min", "max"):
        found = wrong_mode({"checkpoints": {"monitor": name, "mode": given}})
        assert [one.change["checkpoints"]["mode"] for one in found] == [mode] * (mode not in (given, ""))
