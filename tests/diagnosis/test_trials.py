"""What paired trainings say of a change, and what is said where there was no time for them."""

import math
import time
from dataclasses import replace

import pytest
from conftest import SMALL

from src.config.request import command_parser, read_request
from src.diagnosis.finding import BADLY, SPACE, Finding, ranked
from src.diagnosis.probe import Probe, Runner
from src.diagnosis.subject import ConfigSubject
from src.diagnosis.trials import Scale, Trials

RATE = {"model": {"init_args": {"optimizer": {"init_args": {"lr": 3e-3}}}}}
OUTPUTS = {"model": {"init_args": {"outputs": "logits"}}}


def trials(folder, seconds, *flags):
    request = read_request(command_parser("diagnose", None), [*SMALL, *flags])
    runner = Runner(ConfigSubject(request), folder / "log", time.monotonic() + seconds)
    return Trials(runner, Scale("val/loss", trivial=math.log(10)), 30)


def test_what_no_time_was_left_for_is_named(tmp_path):
    certain = Finding("softmax_before_loss", BADLY, "", gain=0.5, change=OUTPUTS, certain=True)
    late = trials(tmp_path, -1)
    (kept,) = late.judge([certain, Finding("lr_too_low", BADLY, "", change=RATE)])
    assert (kept.check, kept.tried, kept.evidence) == ("softmax_before_loss", False, {})
    assert {*late.late} == {"softmax_before_loss", "lr_too_low"}


@pytest.mark.in_fork
def test_a_rate_that_helps_is_found_and_one_that_does_not_is_left(tmp_path):
    low, all_right = (trials(tmp_path, 60, "--model.optimizer.lr", rate) for rate in ("1e-5", "3e-3"))
    (kept,) = low.judge([Finding("lr_too_low", BADLY, "", change=RATE)])
    assert kept.tried
    assert kept.gain > 0.5
    assert max(kept.evidence["after"]) < min(kept.evidence["before"])
    assert all_right.judge([Finding("lr_too_high", BADLY, "", change={**RATE})]) == []
    assert low.late == all_right.late == []


@pytest.mark.parametrize(
    ("scores", "score"),
    [([3, 2, 1], 1.5), ([3, 0, 3, 2], 1.5), ([2], 2), ([], math.inf), ([math.nan, 2, 1], 1.5)],
)
def test_one_low_validation_is_luck(scores, score):
    probe = Probe(losses=[math.inf], scores=[{"val/loss": one} for one in scores] or [{"other": 1}])
    assert Scale("val/loss").score(probe) == score


@pytest.mark.in_fork
def test_what_helps_must_help_in_longer_trainings(tmp_path):
    """Of two findings that short trainings have kept, one has a change that changes nothing."""
    no_gain, gain = (Finding(check, BADLY, "", change=change) for check, change in (("a", OUTPUTS), ("b", RATE)))
    low = trials(tmp_path, 60, "--model.optimizer.lr", "1e-5")
    assert low.lasting([no_gain, gain]) == [gain]
    low.total = low.steps
    assert low.lasting([no_gain, gain]) == [no_gain, gain]
    late = trials(tmp_path, -1)  # then only what wins back nearly all is told
    much = replace(gain, gain=0.8)
    assert late.lasting([gain, much]) == [replace(much, confidence=0.7)]
    assert late.late == ["b"]


def test_what_structure_shows_is_first():
    rate = Finding("lr_too_high", BADLY, "", gain=0.9, confidence=0.9, tried=True)
    slip = Finding("input_scale", BADLY, "", gain=0.5, confidence=0.9, certain=True)
    labels = Finding("label_noise", BADLY, "", gain=0.1, confidence=0.9, certain=True)
    full = Finding("out_of_memory", SPACE, "", gain=0.1, confidence=0.9)
    assert ranked([rate, labels, slip]) == [slip, rate, labels]
    assert ranked([rate, labels, slip, full]) == [full, slip, rate]
    assert ranked([rate, replace(rate, gain=0.2)]) == [rate]


@pytest.mark.in_fork
@pytest.mark.parametrize("check", ["label_noise", "dropout_too_strong"])
def test_a_trial_does_not_refute_wrong_labels(check, tmp_path):
    """Val has them, too: a model that is surer without them may be worse by it."""
    worse = {"model": {"init_args": {"optimizer": {"init_args": {"lr": 1e-5}}}}}
    of = trials(tmp_path, 60, "--model.optimizer.lr", "3e-3")
    kept = of.judge([Finding(check, BADLY, "", {"share": 0.2}, 0.2, 0.9, worse, certain=True)])
    assert [(one.check, one.change) for one in kept] == [("label_noise", {})] * (check == "label_noise")


@pytest.mark.in_fork
def test_what_helps_little_in_few_steps_is_tried_in_more(tmp_path):
    """Not what is far from helping, not beyond a whole run, and not where there is no time for it."""
    of = replace(trials(tmp_path, 60, "--model.optimizer.lr", "2.6e-3"), steps=2, total=12)
    near, nothing = (Finding(check, BADLY, "", change=change) for check, change in (("a", RATE), ("b", OUTPUTS)))
    assert of.judge([near, nothing]) == []
    (kept,), long = of.again([near, nothing], 1000, 1)
    assert (kept.check, kept.tried, long.steps, bool(long.probe({}, 0))) == ("a", True, 12, True)
    whole = replace(of, total=2)
    endless = replace(of, total=math.inf)
    for one, base, left_sec in ((nothing, of, 1000), (near, of, 50), (near, whole, 1000), (near, endless, 1000)):
        assert base.again([one], left_sec, 1) == ([], base)
    assert of.again([replace(near, certain=True)], 1000, 1) == ([], of)  # it was judged as it is
    assert of.late == []


@pytest.mark.in_fork
def test_a_reason_makes_surer(tmp_path):
    of = trials(tmp_path, 60, "--model.optimizer.lr", "1e-5")
    blind, reason = (Finding(check, BADLY, "", {}, 0, sure, RATE) for check, sure in (("a", 0.5), ("b", 0.6)))
    assert [one.confidence for one in of.confirmed([blind, reason])] == [0.7, 0.9]
