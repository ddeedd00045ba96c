"""What the first steps show: a fault and a healthy control of each check, on modules of others and on ours."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from conftest import SMALL
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from processes import in_fork
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from src.data.waves import WavesDataModule
from src.diagnosis.checks import watches
from src.diagnosis.probe import run_trial
from src.diagnosis.subject import ModuleSubject, Trial
from src.models.classification import Classification
from src.networks.mlp import MLP

pytestmark = pytest.mark.in_fork  # a process that has trained cannot be forked to train
IDENTITY = {"class_path": "torch.nn.Identity"}


def layers(*more, out=3, width=16):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, out), *more)


class Foreign(LightningModule):
    """Somebody's: no network of that name, batches are pairs."""

    direct = False  # whether forward() is left out

    def __init__(self, body=None, loss=F.cross_entropy, rate=0.05):
        super().__init__()
        self.body, self.loss, self.rate = body or layers(), loss, rate

    def forward(self, x):
        return self.body(x)

    def training_step(self, batch, batch_idx):
        loss = self.loss((self.body if self.direct else self)(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss((self.body if self.direct else self)(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class Direct(Foreign):
    """The commonest way: the network is called, and forward() is not."""

    direct = True


def loaders(targets="classes", shape=(8,)):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(512, *shape, generator=rng)
    y = {"classes": x.flatten(1)[:, :3].argmax(1), "numbers": 2 * x.flatten(1)[:, 0]}
    y |= {"column": y["numbers"][:, None], "one": (x.flatten(1)[:, 0] > 0).float()[:, None]}
    loader = DataLoader(TensorDataset(x, y[targets]), batch_size=32)
    return {"train_dataloaders": loader, "val_dataloaders": loader}


def found(model, steps=24, **data):
    """{check: finding} of a short training."""
    probe = run_trial(ModuleSubject(model, **(data or loaders())), Trial(steps=steps), watches, 60, True)
    assert probe.failed == ""
    assert probe.unknown == []
    assert len(probe.losses) == steps
    return {one.check: one for one in probe.findings}


def certain(findings):
    """Those that no trial decides."""
    return [name for name, one in findings.items() if one.certain]


def ours(network, rate=3e-3, **how):
    model = Classification(network=network, optimizer=partial(torch.optim.AdamW, lr=rate), **how)
    return found(model, datamodule=WavesDataModule(batch_size=64))


class Ended(MLP):
    def __init__(self, end, **kwargs):
        super().__init__(**kwargs)
        self.end = end

    def forward(self, x):
        return self.end(super().forward(x))


def ending(end):
    def made(in_features: int, num_classes: int) -> Ended:
        return Ended(end, in_features=in_features, num_classes=num_classes)

    return made


@pytest.mark.parametrize(
    ("end", "check", "change"),
    [
        (nn.Softmax(1), "softmax_before_loss", {"swap": {"end": IDENTITY}}),
        (partial(torch.softmax, dim=1), "softmax_before_loss", {"outputs": "probabilities"}),
        (nn.Sigmoid(), "sigmoid_before_loss", {"swap": {"end": IDENTITY}}),
        (torch.sigmoid, "sigmoid_before_loss", {"outputs": "probabilities"}),
        (nn.ReLU(), "head_activation", {"swap": {"end": IDENTITY}}),
    ],
)
def test_the_end_of_a_network_of_ours(end, check, change):
    assert ours(ending(end))[check].change == ({"model": {"init_args": change}} if change else {})


@pytest.mark.parametrize(
    "end", [nn.Identity(), nn.LogSoftmax(1), lambda z: z + 30, lambda z: z * 0.01 + 0.5, nn.Tanh()]
)
def test_healthy_ends(end):
    """Among them logits that happen to be positive, or between 0 and 1."""
    assert ours(ending(end)).keys() <= {"large_initial_weights"}


def low():
    """Hardly an output is above 0, of which a ReLU takes the rest."""
    body = layers(nn.ReLU())
    nn.init.constant_(body[2].bias, -10.0)
    return body


def softmaxed(logits, y):
    return F.cross_entropy(logits.softmax(1), y)


def once_more(p, y):
    return F.binary_cross_entropy(p.sigmoid(), y)


def binary(end):
    return lambda logits, y: F.binary_cross_entropy_with_logits(end(logits), y)


@pytest.mark.parametrize(
    ("loss", "body", "targets", "check"),
    [
        (softmaxed, layers, "classes", "softmax_before_loss"),
        (lambda z, y: F.nll_loss(z.softmax(1), y), layers, "classes", "softmax_before_loss"),
        (F.cross_entropy, low, "classes", "head_activation"),
        (binary(torch.relu), partial(layers, out=1), "one", "head_activation"),
        (lambda z, y: F.cross_entropy(z.softmax(0), y), layers, "classes", "softmax_before_loss"),
        (F.cross_entropy, partial(layers, nn.Softmax(0)), "classes", "softmax_before_loss"),
        (F.cross_entropy, partial(layers, nn.Sigmoid()), "classes", "sigmoid_before_loss"),
        (F.nll_loss, layers, "classes", "no_log_probabilities"),
        (F.binary_cross_entropy, partial(layers, nn.Sigmoid(), nn.Sigmoid(), out=1), "one", "sigmoid_before_loss"),
        (once_more, partial(layers, nn.Sigmoid(), out=1), "one", "sigmoid_before_loss"),
        (binary(torch.sigmoid), partial(layers, out=1), "one", "sigmoid_before_loss"),
        (F.mse_loss, partial(layers, nn.Tanh(), out=1), "column", "head_activation"),
        (F.l1_loss, partial(layers, nn.ReLU(), out=1), "column", "head_activation"),
        (lambda z, y: (z - y).square().mean(), partial(layers, out=1), "numbers", "shape_broadcast"),
        (lambda z, y: F.mse_loss(z, y), partial(layers, out=1), "numbers", "shape_broadcast"),
        (lambda z, y: F.cross_entropy(z[:, :1], y * 0), layers, "classes", "one_class"),
    ],
)
@pytest.mark.parametrize("kind", [Foreign, Direct])
@pytest.mark.filterwarnings("error:Using a target size")  # as in a training
def test_losses_of_others(loss, body, targets, check, kind):
    assert check in found(kind(body(), loss), **loaders(targets))


def test_what_nll_loss_wants():
    probable, raw = (found(Foreign(layers(*end), F.nll_loss)) for end in ([nn.Softmax(1)], []))
    assert [*probable, *raw] == ["softmax_before_loss", "no_log_probabilities"]
    for finding in [*probable.values(), *raw.values()]:
        assert finding.text.startswith("nll_loss wants log-probabilities")
        assert finding.todo == "take log_softmax, or cross_entropy"


@pytest.mark.parametrize(
    ("loss", "body", "targets"),
    [
        (F.cross_entropy, layers, "classes"),
        (lambda z, y: F.nll_loss(z.log_softmax(1), y), layers, "classes"),
        (binary(lambda z: z), partial(layers, out=1), "one"),
        (F.binary_cross_entropy, partial(layers, nn.Sigmoid(), out=1), "one"),
        (lambda z, y: F.binary_cross_entropy(z.sigmoid(), y), partial(layers, out=1), "one"),
        (lambda z, y: F.mse_loss(z.sigmoid(), y), partial(layers, out=1), "one"),
        (F.mse_loss, partial(layers, nn.ReLU(), out=1), "one"),
        (lambda z, y: F.mse_loss(z.squeeze(1), y), partial(layers, out=1), "numbers"),
        (lambda z, y: (z - z.detach().mean(0) - y).square().mean(), partial(layers, out=1), "column"),
    ],
)
@pytest.mark.parametrize("kind", [Foreign, Direct])
def test_healthy_losses_of_others(loss, body, targets, kind):
    assert found(kind(body(), loss), **loaders(targets)) == {}


class Builtins(nn.Module):
    """Calls functions that are not written in Python."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.last(torch.dropout(self.first(x).relu(), 0.1, self.training))


class Cosine(nn.Module):
    """A first loss that is large on purpose."""

    def __init__(self):
        super().__init__()
        self.body, self.centres = layers(out=8), nn.Parameter(torch.randn(3, 8))

    def forward(self, x):
        return 30 * F.normalize(self.body(x)) @ F.normalize(self.centres).T


class Aside(nn.Module):
    """A second head, called last."""

    def __init__(self):
        super().__init__()
        self.body, self.aside = layers(out=1), nn.Linear(8, 3)

    def forward(self, x):
        return 10 + self.body(x), self.aside(x)


def linear(value):
    body = nn.Linear(8, 3)
    for p in body.parameters():
        nn.init.constant_(p, value)
    return body


@pytest.mark.parametrize("kind", [Foreign, Direct])
@pytest.mark.parametrize("body", [Builtins, Cosine, partial(linear, 0.0), lambda: torch.compile(layers())])
def test_healthy_networks_of_others(body, kind):
    assert found(kind(body())) == {}


def test_a_compiled_network_with_a_fault():
    assert certain(found(Direct(torch.compile(low())))) == ["head_activation"]


def test_what_another_head_gives_is_no_bound():
    assert found(Foreign(Aside(), lambda z, y: F.mse_loss(z[0], y + 10) + 0 * z[1].sum()), **loaders("column")) == {}


def test_what_cannot_be_noted_is_told_and_the_training_goes_on():
    model = Foreign(loss=lambda z, y: F.cross_entropy(z, y, reduction="none").mean())
    probe = run_trial(ModuleSubject(model, **loaders()), Trial(steps=8), broken, 60, True)
    assert (probe.failed, len(probe.losses)) == ("", 8)
    assert [name for name, _ in probe.unknown] == ["structure"]


def broken():
    seen, *looks = watches()
    seen.losses = None  # so that none can be added
    return [seen, looks[-1]]


def test_a_training_that_does_not_start_is_no_failure_of_the_watch():
    class Fails(Foreign):
        def configure_optimizers(self):
            raise RuntimeError("no optimizer")

    probe = run_trial(ModuleSubject(Fails(), **loaders()), Trial(steps=8), watches, 60, True)
    assert (probe.failed, probe.unknown, probe.findings) == ("RuntimeError: no optimizer", [], [])


def test_an_exception_ends_the_watch():
    class Fails(Foreign):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("in a step")

    seen = watches()
    assert run_trial(ModuleSubject(Fails(), **loaders()), Trial(steps=8), lambda: seen, 60, True).failed
    assert torch.overrides._get_current_function_mode() is None


def filled(value):
    body = layers()
    for p in body.parameters():
        nn.init.constant_(p, value)
    return body


def scaled(factor):
    body = layers()
    with torch.no_grad():
        for p in body.parameters():
            p *= factor
    return body


@pytest.mark.parametrize(
    ("body", "check"),
    [
        (partial(filled, 0.0), "constant_weights"),
        (partial(filled, 0.01), "constant_weights"),
        (lambda: layers().apply(down), "dead_units"),
        (lambda: Called().apply(down), "dead_units"),
    ],
)
@pytest.mark.parametrize("kind", [Foreign, Direct])
def test_wrong_weights_at_the_start(body, check, kind):
    assert [name for name, one in found(kind(body(), rate=1e-4)).items() if one.certain] == [check]


class Called(nn.Module):
    """With its ReLU as a function."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


def down(module):
    if isinstance(module, nn.Linear) and module.out_features == 16:
        nn.init.constant_(module.bias, -10.0)


def test_a_large_first_loss_is_a_suspicion_that_only_a_trial_can_prove():
    def big(in_features: int, num_classes: int) -> nn.Module:
        network = MLP(in_features=in_features, num_classes=num_classes)
        with torch.no_grad():
            for p in network.parameters():
                p *= 20
        return network

    finding = ours(big, rate=1e-5)["large_initial_weights"]
    assert finding.change == {"model": {"init_args": {"reset": True}}}
    assert not finding.certain
    assert found(Foreign(scaled(20.0), rate=1e-4))["large_initial_weights"].change


def test_an_end_of_zeros_and_a_linear_model_are_healthy():
    body = layers()
    nn.init.zeros_(body[2].weight)
    linear = nn.Linear(8, 3)
    nn.init.constant_(linear.weight, 0.1)
    assert found(Foreign(body)) == found(Foreign(nn.Sequential(linear))) == {}


class Part(nn.Module):
    """A forward pass with a fault in it."""

    def __init__(self, fault):
        super().__init__()
        self.first, self.norm, self.last, self.fault = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 3), fault
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        if self.fault == "blind":
            x = x.mean(0, keepdim=True).expand_as(x)
        x = F.relu(self.norm(self.first(x)))
        x = x.detach() if self.fault == "detached" else x
        if self.fault in ("dropout", "healthy"):
            x = F.dropout(x, 0.5, **({} if self.fault == "dropout" else {"training": self.training}))
        return self.last(x)


@pytest.mark.parametrize(
    ("fault", "check"),
    [("blind", "ignores_input"), ("detached", "untrained_parameters"), ("dropout", "wrong_mode"), ("healthy", None)],
)
def test_faults_of_a_forward_pass(fault, check):
    assert found(Foreign(Part(fault))).keys() - {"vanishing_gradients"} == ({check} if check else set())


def test_what_is_not_in_the_optimizer():
    """But a linear probe is meant: all but the head is left out, which gradients reach nevertheless."""

    class Half(Foreign):
        def configure_optimizers(self):
            return torch.optim.SGD(self.body[self.known].parameters(), lr=0.05)

    model = Half()
    model.known = 0
    finding = found(model)["untrained_parameters"]
    assert finding.text == "2 parts of the network are not in the optimizer"
    assert finding.evidence == {"names": ["body.2.weight", "body.2.bias"]}
    model.known = 2
    assert [*found(model)] == ["untrained_parameters"]  # its weights are as they were drawn
    model = Half(layers(width=64))
    model.known = 2
    model.body[0].weight.data += torch.randn(64, 1) * torch.randn(8)  # as of one that has learned
    assert found(model) == {}


def test_an_optimizer_of_another_network():
    class Other(Foreign):
        def configure_optimizers(self):
            return torch.optim.SGD(layers().parameters(), lr=0.05)

    assert len(found(Other())["untrained_parameters"].evidence["names"]) == 4


@pytest.mark.parametrize("kind", [Foreign, Direct])
def test_a_loss_of_a_number(kind):
    def cut(z, y):
        return torch.tensor(F.cross_entropy(z, y).item(), requires_grad=True)

    assert list(found(kind(loss=cut))) == ["untrained_parameters"]


@pytest.mark.parametrize("size", [100, 5000])
def test_an_embedding_first(size):
    class Tokens(Direct):
        def training_step(self, batch, batch_idx):
            return super().training_step(((batch[0].abs() * 30).long().clamp(max=99), batch[1]), batch_idx)

        def validation_step(self, batch, batch_idx):
            return super().validation_step(((batch[0].abs() * 30).long().clamp(max=99), batch[1]), batch_idx)

    table = nn.Embedding(size, 64)
    assert found(Tokens(nn.Sequential(table, nn.Flatten(), nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 3)))) == {}
    assert found(Tokens(nn.Sequential(nn.EmbeddingBag(size, 16), nn.Linear(16, 3)))) == {}


def test_rare_tokens_and_frozen_layers_are_no_fault():
    class Tokens(Foreign):
        def training_step(self, batch, batch_idx):
            return super().training_step(((batch[0].abs() * 3).long().clamp(max=90), batch[1]), batch_idx)

        def validation_step(self, batch, batch_idx):
            return super().validation_step(((batch[0].abs() * 3).long().clamp(max=90), batch[1]), batch_idx)

    body = nn.Sequential(nn.Embedding(100, 4), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))
    body[2].requires_grad_(False)
    assert found(Tokens(body)) == {}


class Stays(Foreign):
    def on_train_batch_start(self, batch, batch_idx):
        self.eval()


class Keeps(Foreign):
    def optimizer_zero_grad(self, *_):
        pass


def test_modes_and_gradients_that_stay():
    assert list(found(Stays(Part("healthy")))) == ["wrong_mode"]
    assert list(found(Keeps())) == ["gradients_not_reset"]


class Manual(Foreign):
    """Two optimizers by hand, and a network that the loss sees in two calls."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(self(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.body[i].parameters(), lr=0.05) for i in (0, 2)]


def by_hand(model):
    probe = run_trial(ModuleSubject(model, **loaders()), Trial(steps=24), watches, 60, True)
    assert (probe.failed, probe.unknown) == ("", [])
    return [one.check for one in probe.findings]


def test_manual_optimization():
    assert by_hand(Manual()) == []


class ByHand(Direct):
    automatic_optimization, resets, plain = False, True, False

    def training_step(self, batch, batch_idx):
        loss, optimizer = self.loss(self.body(batch[0]), batch[1]), self.optimizers()
        if self.resets:
            optimizer.zero_grad()
        if self.plain:
            loss.backward()
        else:
            self.manual_backward(loss)
        optimizer.step()


class InTurns(ByHand):
    """Each of two networks leaves its gradients in the other, whose own zero_grad() comes before its step."""

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            loss = self.loss(self.body(batch[0]), batch[1])
            if self.resets:
                optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.body[i].parameters(), lr=0.05) for i in (0, 2)]


@pytest.mark.parametrize(("kind", "plain"), [(ByHand, False), (ByHand, True), (InTurns, False)])
@pytest.mark.parametrize("resets", [False, True])
def test_gradients_that_stay_in_manual_optimization(kind, plain, resets):
    model = kind(rate=1e-3)
    model.resets, model.plain = resets, plain
    assert by_hand(model) == ([] if resets else ["gradients_not_reset"])


class Adversaries(LightningModule):
    """The generator's loss leaves gradients in the discriminator, which are reset before that one's own."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.made, self.judged = layers(out=8), layers(out=1)

    def training_step(self, batch, batch_idx):
        made, (first, second) = self.made(torch.randn_like(batch[0])), self.optimizers()
        one = torch.ones(len(made), 1)
        loss = F.binary_cross_entropy_with_logits(self.judged(made), one)
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        loss = F.binary_cross_entropy_with_logits(self.judged(made.detach()), 0 * one)
        second.zero_grad()
        self.manual_backward(loss + F.binary_cross_entropy_with_logits(self.judged(batch[0]), one))
        second.step()

    def configure_optimizers(self):
        return [torch.optim.Adam(part.parameters(), 2e-4) for part in (self.made, self.judged)]


def test_adversaries():
    assert by_hand(Adversaries()) == []


@pytest.mark.parametrize(("body", "checks"), [(layers(), []), (low(), ["head_activation"])])
def test_a_forward_pass_that_gives_the_loss(body, checks):
    class Whole(Foreign):
        def forward(self, x, y):
            return {"loss": F.cross_entropy(self.body(x), y)}

        def training_step(self, batch, batch_idx):
            return self(*batch)["loss"]

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self(*batch)["loss"])

    assert certain(found(Whole(body))) == checks


def deep(activation):
    def made(in_features: int, num_classes: int) -> nn.Sequential:
        sizes = [in_features] + [32] * 8
        body = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), activation())]
        return nn.Sequential(*body, nn.Linear(32, num_classes))

    return made


def test_gradients_that_vanish():
    change = ours(deep(nn.Sigmoid))["vanishing_gradients"].change["model"]["init_args"]["swap"]
    assert change == {str(i): {"class_path": "torch.nn.GELU"} for i in range(1, 17, 2)}
    assert "vanishing_gradients" not in ours(deep(nn.ReLU))


def dead(in_features: int, num_classes: int) -> MLP:
    network = MLP(in_features=in_features, num_classes=num_classes)
    nn.init.constant_(network.blocks[1][0].bias, -10.0)
    return network


def test_dead_units():
    findings = ours(dead)
    assert list(findings) == ["dead_units"]
    assert findings["dead_units"].change == {"model": {"init_args": {"reset": True}}}
    assert ours(MLP) == {}


def watched(losses):
    from src.config.request import command_parser, read_request
    from src.diagnosis.subject import ConfigSubject

    request = read_request(command_parser("diagnose", None), [*SMALL, "--model.optimizer.lr", "1e-3"])
    probe = run_trial(ConfigSubject(request), Trial(steps=12), losses, 60, True)
    return probe.losses, [one.check for one in probe.findings], probe.failed


def test_a_watched_training_is_the_same_to_the_bit(loaded):
    def check():
        plain, with_watches = watched(tuple), watched(watches)
        assert plain == with_watches
        assert plain[1:] == ([], "")

    in_fork(check)


def test_the_noise_scale_of_gradients():
    body, rng = nn.Linear(8, 3), torch.Generator().manual_seed(0)
    x = torch.randn(4096, 8, generator=rng)
    y = (x[:, :3] + torch.randn(4096, 3, generator=rng)).argmax(1)
    loader = DataLoader(TensorDataset(x, y), batch_size=16)
    single = [
        torch.autograd.grad(F.cross_entropy(body(a[None]), b[None]), body.weight)[0] for a, b in zip(x, y, strict=True)
    ]
    mean = torch.stack(single).mean(0)
    scale = float((torch.stack(single) - mean).square().sum((1, 2)).mean() / mean.square().sum())
    model = ModuleSubject(Foreign(body, rate=1e-9), train_dataloaders=loader)
    measured = run_trial(model, Trial(steps=200, validations=0), watches, 60, True).measured["structure"]
    assert measured["batch"] == 16
    assert measured["noise_scale"] == pytest.approx(scale, rel=0.15)


def test_a_mean_of_relus_is_no_relu():
    """A softmax minds no shift, and classes whose logits are all 0 cannot be told apart."""
    assert ours(ending(nn.ReLU()))["head_activation"].certain
    assert certain(found(Foreign(layers(nn.ReLU())))) == ["head_activation"]
    pooled = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    x = torch.randn(512, 3, 8, 8)
    loader = DataLoader(TensorDataset(x, x.mean((2, 3)).argmax(1)), batch_size=32)
    model = Foreign(nn.Sequential(pooled, nn.Flatten()))
    assert certain(found(model, train_dataloaders=loader, val_dataloaders=loader)) == []


@pytest.mark.parametrize("depth", [8, 12, 20])
@pytest.mark.parametrize("kind", [Foreign, Direct])
def test_many_sigmoids(depth, kind):
    sizes = [8] + [32] * depth
    body = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Sigmoid())]
    assert list(found(kind(nn.Sequential(*body, nn.Linear(32, 3))))) == ["vanishing_gradients"]
    few = [part for a, b in pairwise(sizes[:3]) for part in (nn.Linear(a, b), nn.Sigmoid())]
    assert found(kind(nn.Sequential(*few, nn.Linear(32, 3)))) == {}


def test_a_softmax_over_one_class():
    single = found(Foreign(layers(nn.Softmax(1), out=1), F.binary_cross_entropy), **loaders("one"))
    assert list(single) == ["one_class"]


def sleeping(name):
    class Sleeps(Foreign):
        def training_step(self, batch, batch_idx):
            self.get_submodule(name).eval()
            return super().training_step(batch, batch_idx)

    return Sleeps


def dropping(*ends):
    return nn.Sequential(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), *ends), nn.Linear(16, 3))


def test_a_part_that_is_not_in_training():
    """But what is frozen is meant to be, and so are norms that keep what another training has measured."""
    assert list(found(sleeping("body")(dropping()))) == ["wrong_mode"]
    assert list(found(sleeping("body")(nn.Sequential(dropping(), nn.BatchNorm1d(3))))) == ["wrong_mode"]
    frozen = dropping()
    frozen[0].requires_grad_(False)
    assert found(sleeping("body.0")(frozen)) == {}
    measured = nn.Sequential(nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU()), nn.Linear(16, 3))
    for _ in range(20):
        measured(torch.randn(32, 8))
    assert found(sleeping("body")(measured)) == {}


class Samples(Foreign):
    """Monte Carlo dropout in validation."""

    def validation_step(self, batch, batch_idx):
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.train()
        mean = torch.stack([self(batch[0]) for _ in range(8)]).mean(0)
        self.log("val_loss", self.loss(mean, batch[1]))


def test_dropout_in_validation():
    assert found(Samples(dropping())) == {}
    assert found(Foreign(Part("dropout")))["wrong_mode"].confidence == 0.6


class Perceptual(Foreign):
    """A loss by a network that is not trained, but not frozen."""

    def __init__(self, body, judge):
        super().__init__(body)
        self.judge = judge

    def training_step(self, batch, batch_idx):
        made = (self.body if self.direct else self)(batch[0])
        return F.l1_loss(self.judge(made), self.judge(batch[0]))

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.body.parameters(), lr=0.05)


@pytest.mark.parametrize("direct", [False, True])
def test_a_network_in_the_loss(direct):
    model = Perceptual(layers(out=8), layers())
    model.direct = direct
    assert found(model) == {}


def test_what_the_first_layer_receives():
    def received(body, scale):
        x = 5 + torch.randn(512, 8) * scale
        loader = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=64)
        model = ModuleSubject(Foreign(body), train_dataloaders=loader)
        return run_trial(model, Trial(steps=8, validations=0), watches, 60, True).measured["structure"]["received"]

    scale = torch.logspace(-1, 1, 8)
    plain = received(layers(), scale)
    assert plain["mean"] == pytest.approx(5, abs=0.3)
    assert plain["std"] == pytest.approx(float(scale.square().mean().sqrt()), rel=0.1)
    assert plain["columns"] == pytest.approx(scale.quantile(torch.tensor([0.1, 0.9])).tolist(), rel=0.2)
    assert received(nn.Sequential(nn.BatchNorm1d(8), layers()), scale) is None
    assert received(nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)), scale)["mean"] == pytest.approx(5, abs=0.3)
    image = nn.Sequential(nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 4, 1), nn.Flatten(), nn.Linear(16, 3))
    assert received(image, 1.0)["columns"] is None


def one_hot(loss):
    return lambda z, y: loss(z, F.one_hot(y, 3).float())


def indices(loss):
    return lambda z, y: loss(z, y.float()[:, None])


@pytest.mark.parametrize(("loss", "sure"), [(one_hot(F.mse_loss), 0.6), (one_hot(F.l1_loss), 0.6)])
@pytest.mark.parametrize("kind", [Foreign, Direct])
def test_a_loss_of_numbers_for_classes(loss, sure, kind):
    assert found(kind(loss=loss))["wrong_loss"].confidence == sure
    assert found(kind(layers(nn.Softmax(1)), loss))["wrong_loss"].confidence == sure


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_indices_for_as_many_outputs():
    assert found(Foreign(loss=indices(F.mse_loss)))["wrong_loss"].confidence == 0.95


@pytest.mark.parametrize(("times", "names"), [(1000, ["target_scale"]), (10, [])])
def test_the_scale_of_targets(times, names):
    assert certain(found(Foreign(layers(out=1), lambda z, y: F.l1_loss(z, times * y.float()[:, None])))) == names


def test_healthy_losses_of_numbers():
    counts = lambda z, y: F.mse_loss(z, y.float()[:, None])  # noqa: E731
    pixels = lambda z, y: F.mse_loss(z, (z.detach() > 0).float())  # noqa: E731
    assert found(Foreign(layers(out=1), counts)) == found(Foreign(layers(out=8), pixels)) == {}

    class Back(Foreign):
        def training_step(self, batch, batch_idx):
            x = F.one_hot(batch[1], 8).float()
            return F.mse_loss(self(x), x)

    assert found(Back(layers(out=8))) == {}


class Apart(nn.Module):
    """Two linear layers next to each other, of which the sum is taken."""

    def __init__(self):
        super().__init__()
        self.trend, self.rest = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        return self.trend(mean.expand_as(x)) + self.rest(x - mean)


class Adapted(nn.Module):
    """A layer and a correction of low rank."""

    def __init__(self):
        super().__init__()
        self.base, self.down, self.up = nn.Linear(8, 8), nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def plain(*between, width=16):
    return nn.Sequential(nn.Linear(8, width), *between, nn.Linear(width, 3))


@pytest.mark.parametrize("between", [(), (nn.Dropout(0.1),), (nn.BatchNorm1d(16),), (nn.Linear(16, 16),)])
@pytest.mark.parametrize("kind", [Foreign, Direct])
def test_nothing_between_layers(between, kind):
    assert list(found(kind(plain(*between)))) == ["no_activation"]


@pytest.mark.parametrize(
    "body",
    [
        partial(plain, nn.PReLU(16)),
        partial(plain, nn.LayerNorm(16)),
        partial(plain, nn.Hardtanh()),
        partial(plain, width=2),
        partial(nn.Linear, 8, 3),
        lambda: nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3)),
        Apart,
        Adapted,
    ],
)
@pytest.mark.parametrize("kind", [Foreign, Direct])
def test_linear_networks_that_are_meant(body, kind):
    assert found(kind(body())) == {}


def test_a_linear_end_of_a_network():
    """What is called apart from the rest is not all of the network."""

    class Halves(Foreign):
        def training_step(self, batch, batch_idx):
            return self.loss(self.head(F.relu(self.body(batch[0]))), batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.training_step(batch, batch_idx))

    model = Halves(nn.Linear(8, 8))
    model.head = plain()
    assert found(model) == {}


class Recurrent(nn.Module):
    def __init__(self, first, end=-1):
        super().__init__()
        self.lstm, self.head, self.end = nn.LSTM(4, 16, batch_first=first), nn.Linear(16, 3), end

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, self.end])


class Compared(nn.Module):
    """All with all, as contrastive losses want it."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, x):
        z = F.normalize(self.body(x))
        return z @ z.T


class Normed(nn.Module):
    """Statistics of the batch, in evaluation too."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(6, 8, 3), nn.BatchNorm1d(8, track_running_stats=False), nn.ReLU())
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


@pytest.mark.parametrize("kind", [Foreign, Direct])
def test_samples_that_mix(kind):
    data, shaped = loaders(shape=(6, 4)), partial(nn.Unflatten, 1, (6, 4))
    assert list(found(kind(Recurrent(False)), **data)) == ["mixes_samples"]
    assert list(found(kind(nn.Sequential(nn.Flatten(), shaped(), Recurrent(False))), **data)) == ["mixes_samples"]
    assert found(kind(Recurrent(True)), **data) == found(kind(Normed()), **data) == {}
    pairs = lambda z, y: F.cross_entropy(z, torch.arange(len(z)))  # noqa: E731
    assert found(kind(Compared(), pairs), **data) == {}


class Root(Foreign):
    """The derivative of a root has no limit at 0, nor has a logarithm."""

    at, function = 3, torch.sqrt

    def training_step(self, batch, batch_idx):
        x = self(batch[0]).softmax(1)
        zero = x * 0 if batch_idx == self.at else x
        return self.loss(x.log(), batch[1]) + type(self).function(zero).mean()


class Log(Root):
    function = torch.log


class Infinite(nn.Module):
    def forward(self, x):
        return x / (x.abs() > 1e-30) / (self.training - 1.0)


def unsound(model):
    probe = run_trial(ModuleSubject(model, **loaders()), Trial(steps=12), watches, 60, True)
    return {one.check: one.evidence for one in probe.findings}.get("not_finite")


def test_numbers_that_are_not_finite():
    assert unsound(Root(loss=F.nll_loss)) == {"step": 3, "first": "the gradient of body.2.weight"}
    assert unsound(Log(loss=F.nll_loss)) == {"step": 3, "first": "nll_loss"}
    assert unsound(Foreign(layers(Infinite(), nn.Identity()))) == {"step": 0, "first": "body.3"}
    assert unsound(Foreign(rate=1e25, loss=lambda z, y: z.square().mean())) is None
    assert unsound(Foreign()) is None


@pytest.mark.parametrize("kind", [Foreign, Direct])
def test_several_classes_for_a_loss_of_one(kind):
    def several(z, y):
        return F.cross_entropy(z, torch.stack([y == 0, y != 1, y > 0], 1).float())

    assert certain(found(kind(loss=several))) == ["wrong_loss"]


def test_a_softmax_over_another_dimension():
    def loss(dim):
        return lambda z, y: F.nll_loss(F.log_softmax(z, dim), y[:, None].expand(-1, 4))

    body = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 12), nn.Unflatten(1, (3, 4)))
    assert found(Foreign(body, loss(1))) == {}
    text = found(Foreign(body, loss(2)))["no_log_probabilities"].text
    assert text == "nll_loss wants log-probabilities, but gets a softmax over dimension 2"


def test_a_relu_before_a_softmax_before_its_loss():
    def loss(z, y):
        return F.nll_loss(F.log_softmax(z, 1), y)

    assert certain(found(Foreign(layers(nn.ReLU()), loss))) == ["head_activation"]
    assert found(Foreign(layers(), loss)) == {}


class Speaker(nn.Module):
    """A small language model, which sees what comes later, or not."""

    def __init__(self, causal=True):
        super().__init__()
        self.table, self.rnn = nn.Embedding(9, 16), nn.GRU(16, 32, batch_first=True, bidirectional=not causal)
        self.end = nn.Linear(32 if causal else 64, 9)

    def forward(self, x):
        return self.end(self.rnn(self.table(x))[0])


@pytest.mark.parametrize(
    ("causal", "shift", "checks"), [(1, 0, ["target_leak"]), (1, 1, []), (0, 0, []), (0, 1, ["target_leak"])]
)
def test_tokens_that_tell_themselves_or_the_next_one(causal, shift, checks):
    """What sees all of a text, such as an autoencoder, may give it back."""
    text = torch.randint(0, 9, (256, 11), generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(text[:, :10], text[:, shift : 10 + shift]), batch_size=32)
    model = Foreign(Speaker(causal), lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten()))
    assert certain(found(model, train_dataloaders=data, val_dataloaders=data)) == checks


class Kept(nn.Module):
    """Begins with the state in which the batch before has ended."""

    def __init__(self, keeps):
        super().__init__()
        self.rnn, self.end, self.keeps, self.state = nn.GRU(2, 16, batch_first=True), nn.Linear(16, 3), keeps, None

    def forward(self, x):
        fits = self.keeps and self.state is not None and self.state.shape[1] == len(x)
        _, state = self.rnn(F.dropout(x, 0.1), self.state if fits else None)
        self.state = state.detach()
        return self.end(state[0])


@pytest.mark.parametrize(
    ("keeps", "shuffle", "checks"), [(True, True, ["keeps_state"]), (True, False, []), (False, True, [])]
)
def test_a_state_that_is_kept(keeps, shuffle, checks):
    """Without shuffling, sequences may go on from batch to batch."""
    data = loaders(shape=(4, 2))["train_dataloaders"].dataset
    of = {
        f"{s}_dataloaders": DataLoader(data, batch_size=32, shuffle=shuffle and s == "train") for s in ("train", "val")
    }
    assert [n for n in found(Foreign(Kept(keeps)), **of) if n != "wrong_mode"] == checks


@pytest.mark.parametrize(("most", "checks"), [(1e-3, ["clipped_too_short"]), (10.0, [])])
def test_gradients_that_the_module_cuts(most, checks):
    class Cut(Foreign):
        def configure_gradient_clipping(self, optimizer, *args, **kwargs):
            nn.utils.clip_grad_norm_(self.parameters(), most)

    assert certain(found(Cut())) == checks


@pytest.mark.parametrize(("learned", "checks"), [(False, ["untrained_parameters"]), (True, [])])
def test_a_first_layer_without_gradients(learned, checks):
    """Weights that were learned elsewhere may be meant so."""

    class Still(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.end = nn.Linear(8, 64), nn.Linear(64, 3)
            self.first.weight.data += learned * torch.randn(64, 1) * torch.randn(8)

        def forward(self, x):
            with torch.set_grad_enabled(False):
                x = self.first(x).relu()
            return self.end(x)

    assert certain(found(Foreign(Still()))) == checks


@pytest.mark.parametrize(("end", "checks"), [(nn.Softmax(1), ["softmax_before_loss"]), (nn.Sigmoid(), [])])
def test_a_softmax_where_a_sample_has_several_classes(end, checks):
    def several(p, y):
        return F.binary_cross_entropy(p, torch.stack([y == 0, y != 1, y > 0], 1).float())

    assert certain(found(Foreign(layers(end), several))) == checks


class Listed(nn.Module):
    def __init__(self, of):
        super().__init__()
        self.first, self.end = of([nn.Linear(8, 16)]), nn.Linear(16, 3)

    def forward(self, x):
        return self.end(self.first[0](x).relu())


@pytest.mark.parametrize(("of", "checks"), [(list, ["untrained_parameters"]), (nn.ModuleList, [])])
@pytest.mark.parametrize("kind", [Foreign, Direct])
def test_layers_in_a_list(of, checks, kind):
    assert certain(found(kind(Listed(of)))) == checks


@pytest.mark.parametrize(("learned", "checks"), [(False, ["untrained_parameters"]), (True, [])])
def test_vectors_that_are_frozen(learned, checks):
    """Vectors from elsewhere are meant so, if they are no random numbers."""
    text = torch.randint(0, 50, (256, 6), generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(text, text[:, 0] % 3), batch_size=32)
    vectors = torch.randn(50, 16) + learned * torch.randn(50, 1) * torch.randn(16)
    body = nn.Sequential(nn.Embedding.from_pretrained(vectors), nn.Flatten(), nn.Linear(96, 3))
    assert certain(found(Foreign(body), train_dataloaders=data, val_dataloaders=data)) == checks


@pytest.mark.parametrize(
    ("monitor", "mode", "checks"),
    [("val_loss", "max", ["monitor_mode"]), ("val_acc", "min", ["monitor_mode"]), ("val_loss", "min", [])],
)
def test_what_a_callback_takes_for_best(monitor, mode, checks):
    subject = ModuleSubject(Foreign(), {"callbacks": [EarlyStopping(monitor, mode=mode)]}, **loaders())
    probe = run_trial(subject, Trial(steps=12), watches, 60, True)
    assert [one.check for one in probe.findings] == checks
