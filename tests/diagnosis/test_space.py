import time

import pytest
import yaml
from conftest import SMALL

import src.plan
from src.config.request import read_request
from src.diagnosis.probe import Runner
from src.diagnosis.space import plan_of, space
from src.diagnosis.subject import ConfigSubject

# Two weight matrices of 10 and 1 GB, and activations: more than a T4's 14.6 GiB in float32, less on an H200.
WIDE = ["--model.network.widths", "[40000,40000]", "--data.batch_size", "1024"]


@pytest.fixture
def examine(loaded, start, tmp_path):
    def examine(*flags):
        request = read_request(src.plan.plan_parser(), [*SMALL, *flags])
        request.options.facts = {}
        runner = Runner(ConfigSubject(request), tmp_path / "log", time.monotonic() + 60)
        return space(runner.all([(plan_of, (request,))], 60)[0])

    return examine


def test_what_fits_is_silent_and_has_its_memory_by_part(examine):
    found, measured, unknown = examine()
    assert (found, unknown) == ([], [])
    assert measured["parts"]["weights"] > 4 * 64 * 32


def test_what_does_not_fit_gets_the_levers_of_plan(examine, run, tmp_path):
    found, _, unknown = examine(*WIDE, "--device", "t4")
    assert unknown == []
    (one,) = found
    assert one.evidence["needs_gib"] > one.evidence["has_gib"]
    assert one.evidence["parts_mib"]["optimizer"] > 10_000
    overlay = tmp_path / "fits.yaml"
    run([*SMALL, *WIDE, "--device", "t4", "--overlay", overlay], command=src.plan.main)
    assert one.change == (yaml.safe_load(overlay.read_text()) if overlay.exists() else {})
    assert bool(one.change) != bool(one.todo)
    assert examine(*WIDE, "--device", "h200")[0] == []
