"""Which changes are worth a trial: what is wrong is among them, and a healthy config has few."""

import copy
import math

import pytest
from conftest import SMALL

from src.config.check import check
from src.config.request import command_parser, merge, read_request
from src.diagnosis.case import Case
from src.diagnosis.probe import Probe
from src.diagnosis.suspects import suspects
from src.diagnosis.trials import Scale

WELL = [2.3 * 0.97**i for i in range(120)]  # losses
COSINE = "src.optim.schedules.WarmupCosine"
FALLS = ("--model.schedule", "torch.optim.lr_scheduler.ExponentialLR", "--model.schedule.gamma", 0.8)
POORLY = [2.3 - 0.001 * i for i in range(120)]


def case(*flags, losses=WELL, scores=(), parameters=200_000, **how):
    request = read_request(command_parser("diagnose", None), [*SMALL, *map(str, flags)])
    extra = {"parameters": parameters, "num_samples": {"train": 5000}}
    probe = Probe(losses=list(losses), scores=[{"val/loss": s} for s in scores], extra=extra)
    return Case(request.config, probe, 120, 120, [probe], scale=Scale("val/loss"), **how)


def found(*flags, **how):
    """{check: [change, ...]}, each of which is a config that may be trained."""
    one = case(*flags, **how)
    out: dict[str, list] = {}
    for finding in suspects(one):
        assert not finding.tried
        assert finding.text
        check(merge(copy.deepcopy(one.config), finding.change), {})
        out.setdefault(finding.check, []).append(finding.change)
    return out


def at(change, key):
    for part in key.split("."):
        change = change.get("init_args", change) if part != "class_path" else change
        change = change[part]
    return change


def test_a_healthy_config_has_few():
    flat = [0.1] * 3
    assert found(losses=[*WELL, *[WELL[-1]] * 240], scores=flat).keys() == {"lr_too_low", "lr_too_high"}


@pytest.mark.parametrize(
    ("name", "flags", "key", "value"),
    [
        ("lr_too_low", (), "model.optimizer.lr", 3e-2),
        ("lr_too_high", (), "model.optimizer.lr", 3e-4),
        ("weight_decay_too_strong", ("--model.optimizer.weight_decay", 30), "model.optimizer.weight_decay", 0.01),
        ("dropout_too_strong", ("--model.network.dropout", 0.95), "model.network.dropout", 0.1),
        ("labels_too_smooth", ("--model.label_smoothing", 0.9), "model.label_smoothing", 0.0),
        ("clipped_too_short", ("--trainer.gradient_clip_val", 1e-3), "trainer.gradient_clip_val", 1.0),
        ("average_too_slow", ("--ema.decay", 0.9999), "ema.decay", None),
        ("untrained_parameters", ("--model.freeze", "[blocks.*]"), "model.freeze", []),
        ("class_weights", ("--model.class_weights", [1] * 9 + [50]), "model.class_weights", None),
        ("precision_too_low", ("--trainer.precision", "bf16-true"), "trainer.precision", "32-true"),
        ("batches_too_small", ("--data.batch_size", 2), "data.batch_size", 32),
        ("batches_too_large", ("--data.batch_size", 1280), "data.batch_size", 128),
        ("schedule_too_slow", ("--model.schedule.warmup_frac", 0.9), "model.schedule.class_path", COSINE),
        ("schedule_too_slow", FALLS, "model.schedule.class_path", COSINE),
    ],
)  # fmt: skip
def test_a_value_that_is_odd(name, flags, key, value):
    assert value in [at(change, key) for change in found(*flags)[name]]


def test_what_is_tried_where_little_is_learned():
    sgd = ("--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", 1e-5)
    assert at(found(*sgd, losses=POORLY)["optimizer_too_slow"][0], "model.optimizer.class_path") == "torch.optim.AdamW"
    narrow = ("--model.network.widths", "[2,2]")
    assert at(found(*narrow, losses=POORLY, parameters=100)["too_narrow"][0], "model.network.widths") == [32, 32]
    assert not {"optimizer_too_slow", "too_narrow"} & found(*sgd, *narrow, parameters=100).keys()


def test_what_is_tried_where_numbers_are_lost():
    lost = found(losses=[2.3, math.nan])
    assert at(lost["gradients_explode"][0], "trainer.gradient_clip_val") == 1.0
    assert "lr_too_low" not in lost


def test_an_end_too_soon_or_too_late():
    assert found()["too_short"] == [{"trainer": {"max_epochs": 9}}]
    rising = [0.5, 0.3, 0.2, 0.3, 0.6]
    changes = found(scores=rising)["overfitting"]
    assert at(changes[0], "model.network.dropout") == 0.3
    assert at(changes[1], "model.optimizer.weight_decay") == 0.2
    assert "overfitting" not in found(scores=sorted(rising, reverse=True))
