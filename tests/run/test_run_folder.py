from pathlib import Path

import pytest
from conftest import SMALL

from src.config.request import command_parser, read_request
from src.run.folder import RunFolder, grown

SAVED = Path(__file__).parent / "config_before.txt"  # the config of a run, before `model.reset` and others


@pytest.fixture
def before(tmp_path):
    (tmp_path / "config.yaml").write_text(SAVED.read_text())
    return RunFolder(tmp_path)


def now(*flags):
    from src.config.build import Experiment

    return Experiment(read_request(command_parser("train", None), [*SMALL, *flags])).plain_config


def test_a_run_of_earlier_code_goes_on(before):
    assert "reset" not in before.config()["model"]["init_args"]
    assert before.differences(now()) == []


def test_a_new_argument_that_is_set_is_a_difference(before):
    changed = now("--model.reset", "true", "--model.outputs", "probabilities", "--data.without", "some.txt")
    assert before.differences(changed) == [
        "data.without was None, now 'some.txt'",
        "model.outputs was 'logits', now 'probabilities'",
        "model.reset was False, now True",
    ]


def test_defaults_are_those_of_bases_and_functions_within_lists():
    spec = {"class_path": "src.networks.mlp.MLP", "init_args": {"widths": [8]}}
    later = {"class_path": "src.networks.mlp.MLP", "init_args": {"widths": [9], "dropout": 0.0}}
    assert grown([spec], [later]) == [{**spec, "init_args": {"widths": [8], "dropout": 0.0}}]
    unknown = {"class_path": "no.such.Thing"}
    assert grown(unknown, {**unknown, "init_args": {"a": 1}}) == unknown
