import csv
import re
import time

import pytest
from conftest import SMALL

STEP_SEC, WAIT_SEC = 0.02, 0.06


def slow_steps() -> None:
    """In the process that trains: each step takes 20 ms, each batch 60 ms to fetch."""
    from src.data.module import Arrays
    from src.models.classification import Classification

    fetch, step = Arrays.__getitem__, Classification.training_step

    def slow_fetch(self, index):
        time.sleep(WAIT_SEC)
        return fetch(self, index)

    def slow_step(self, batch, batch_idx):
        time.sleep(STEP_SEC)
        return step(self, batch, batch_idx)

    Arrays.__getitem__, Classification.training_step = slow_fetch, slow_step


@pytest.mark.parametrize("micro", ["64", "32"])
def test_speed_and_waiting_are_those_that_were_made(run, tmp_path, micro):
    flags = ["--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0", "--data.micro_batch_size", micro]
    run([*SMALL, *flags, "--trainer.log_every_n_steps", "10", "--run_dir", tmp_path / "run"], first=slow_steps)
    with open(tmp_path / "run/metrics.csv") as f:
        rows = [row for row in csv.DictReader(f) if row["perf/step_sec"]]
    assert [row["step"] for row in rows] == ["9", "19"]
    accumulated, last = 64 // int(micro), rows[-1]
    step_sec = float(last["perf/step_sec"])
    assert accumulated * (STEP_SEC + WAIT_SEC) < step_sec < 3 * accumulated * (STEP_SEC + WAIT_SEC)
    assert float(last["perf/samples_per_sec"]) == pytest.approx(64 / step_sec)
    assert 0.4 < float(last["perf/data_wait_frac"]) < 0.9  # three quarters, less what else a step takes


def as_h200() -> None:
    """In the process that trains: its device is one of the table."""
    from src.callbacks import throughput
    from src.cost.devices import named

    throughput.here = lambda device: named("h200")


def test_share_of_the_peak_where_it_is_known(run, tmp_path):
    flags = ["--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "10"]
    output = run([*SMALL, *flags, "--run_dir", tmp_path / "gpu"], first=as_h200)
    run([*SMALL, *flags, "--run_dir", tmp_path / "cpu"])
    with open(tmp_path / "gpu/metrics.csv") as f:
        (last,) = (row for row in csv.DictReader(f) if row["step"] == "19" and row["perf/mfu"])
    flops = float(re.search(r"^compute +([\d,]+) FLOP a sample", output, re.MULTILINE)[1].replace(",", ""))
    assert float(last["perf/mfu"]) == pytest.approx(3 * flops * float(last["perf/samples_per_sec"]) / 67e12, rel=1e-3)
    assert "perf/mfu" not in (tmp_path / "cpu/metrics.csv").read_text()


def mfu_flops(folder) -> float:
    """Operations of a sample, by what was logged of the share of the peak and of the speed."""
    with open(folder / "metrics.csv") as f:
        last = [row for row in csv.DictReader(f) if row["perf/mfu"]][-1]
    return float(last["perf/mfu"]) * 67e12 / float(last["perf/samples_per_sec"])


FORWARD = [2 * a * b for a, b in [(64, 48), (48, 32), (32, 16), (16, 10)]]


@pytest.mark.parametrize("again", ["true", "false"])
@pytest.mark.parametrize(
    ("frozen", "flops"),
    [("[]", 3 * sum(FORWARD)), ("[blocks.0.*,blocks.1.*]", sum(FORWARD) + FORWARD[2] + 2 * FORWARD[3])],
)
def test_only_what_must_be_computed_counts(run, tmp_path, again, frozen, flops):
    """No gradient of what is frozen, and nothing for the second time."""
    args = [*SMALL, "--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "10", "--run_dir", tmp_path / "run"]
    args += ["--model.network.widths", "[48,32,16]", "--model.freeze", frozen]
    run([*args, "--model.activation_checkpointing", again], first=as_h200)
    assert mfu_flops(tmp_path / "run") == pytest.approx(flops, rel=1e-3)
