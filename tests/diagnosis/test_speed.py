import time

import pytest
from conftest import SMALL
from lightning.pytorch.callbacks import Timer

from src.config.request import read_request
from src.data.loader import Arrays
from src.data.waves import WavesDataModule
from src.diagnose import diagnose_parser
from src.diagnosis.probe import Runner
from src.diagnosis.speed import slow
from src.diagnosis.subject import ConfigSubject
from src.tuning import search

TIMER = "[lightning.pytorch.callbacks.Timer]"


@pytest.fixture
def examine(loaded, start, tmp_path, monkeypatch):
    """examine(*flags) -> the findings by check, and what was measured; `tune`'s blocks are short."""
    monkeypatch.setattr(search, "BLOCK_SEC", 0.1)
    monkeypatch.setattr(search, "PAIRS", 8)

    def examine(*flags):
        request = read_request(diagnose_parser(), [*SMALL, *flags])
        runner = Runner(ConfigSubject(request), tmp_path / "log", time.monotonic() + 100)
        found, measured, unknown = slow(request, runner, tmp_path, 60)
        assert unknown == []
        return {one.check: one for one in found}, measured

    return examine


def test_a_healthy_config_is_quick_and_has_a_ledger(examine):
    t0 = time.monotonic()
    found, measured = examine()
    assert found == {}
    assert time.monotonic() - t0 < 30
    assert {"forward", "backward", "optimizer", "data_wait", "validation", "checkpoints"} <= measured["ledger"].keys()
    assert min(measured["ledger"].values()) >= 0
    assert 0 < measured["step_sec"] < 1


FAULTS = {
    "micro_batch": (["--data.micro_batch_size", "2"], {"data": {"init_args": {"micro_batch_size": 64}}}),
    "detect_anomaly": (["--trainer.detect_anomaly", "true"], {"trainer": {"detect_anomaly": False}}),
    "logs_too_often": (["--trainer.log_every_n_steps", "1"], {"trainer": {"log_every_n_steps": 50}}),
}


@pytest.mark.parametrize("check", FAULTS)
def test_what_costs_time_is_named_with_what_mends_it(examine, check):
    flags, change = FAULTS[check]
    found, _ = examine(*flags)
    assert [*found] == [check]
    assert found[check].change == change
    assert found[check].tried
    assert found[check].gain > 0.2


def test_a_slow_callback_is_named(examine, monkeypatch):
    monkeypatch.setattr(Timer, "on_train_batch_end", lambda *_, **__: time.sleep(0.01))
    found, _ = examine("--trainer.callbacks", TIMER)
    assert [*found] == ["slow_callback"]
    assert "Timer" in found["slow_callback"].text
    assert found["slow_callback"].change == {"trainer": {"callbacks": []}}


class Slow(Arrays):
    def __getitem__(self, index):
        time.sleep(0.02)
        return super().__getitem__(index)


def test_slow_storage_gets_workers(examine, monkeypatch):
    setup = WavesDataModule.setup

    def slowed(self, stage):
        setup(self, stage)
        self.splits["train"] = Slow(self.splits["train"].x, self.splits["train"].targets)

    monkeypatch.setattr(WavesDataModule, "setup", slowed)
    found, _ = examine()
    assert [*found] == ["data_bound"]
    assert found["data_bound"].change["data"]["init_args"]["num_workers"] in (2, 4)


def test_a_slow_transform_no_worker_takes(examine, monkeypatch):
    def slowed(self, batch, dataloader_idx):
        time.sleep(0.02)
        return batch

    monkeypatch.setattr(WavesDataModule, "on_after_batch_transfer", slowed)
    found, _ = examine()
    assert [*found] == ["data_bound"]
    assert found["data_bound"].change == {}
    assert "data module" in found["data_bound"].todo


def test_validation_after_each_step_of_a_long_run(examine):
    found, measured = examine("--trainer.val_check_interval", "1", "--trainer.max_epochs", "300")
    assert [*found] == ["validation_too_often"]
    after = found["validation_too_often"].change["trainer"]
    assert after["check_val_every_n_epoch"] is None
    assert 20 < after["val_check_interval"] < 6000
    assert measured["ledger"]["validation"] > sum(measured["ledger"].values()) / 4


def test_a_checkpoint_after_each_step_of_a_long_run(examine):
    found, _ = examine("--checkpoints.every_n_steps", "1", "--trainer.max_epochs", "300")
    assert [*found] == ["checkpoints_too_often"]
    assert found["checkpoints_too_often"].change["checkpoints"]["every_n_steps"] > 10
