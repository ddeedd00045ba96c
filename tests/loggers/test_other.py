"""Lightning's loggers, by their real files."""

import csv
import json
import os
from collections import Counter

import pytest
import yaml
from conftest import SMALL

from src.loggers.curves import whole_rows
from src.loggers.other import at_home
from src.run.errors import ConfigError
from src.run.folder import RunFolder, flat

PLACE = "lightning.pytorch.loggers"
ALL = f"[{PLACE}.TensorBoardLogger, {PLACE}.CSVLogger, {PLACE}.MLFlowLogger]"
EVERY_STEP = [*SMALL, "--trainer.log_every_n_steps", 1, "--checkpoints.every_n_steps", 10]


def killed(step):
    def first() -> None:
        from src.models.classification import Classification

        training_step = Classification.training_step

        def dying(self, batch, batch_idx):
            if self.trainer.global_step == step:
                for logger in self.trainer.loggers[1:]:
                    getattr(logger.experiment, "flush", lambda: None)()  # as after some seconds
                    logger.save()
                os.kill(os.getpid(), 9)
            return training_step(self, batch, batch_idx)

        Classification.training_step = dying

    return first


@pytest.fixture(scope="module")
def logged(loaded, tmp_path_factory):
    """A run that was killed at step 45 and went on after step 40, recorded by all three."""
    from conftest import runner, starter

    before, folder = os.getcwd(), tmp_path_factory.mktemp("logged")
    start, _ = starter(folder)
    args = [*EVERY_STEP, "--trainer.logger", ALL, "--run_dir", folder / "exp/run"]
    assert start(args, first=killed(45)).wait() == -9
    output = runner(start)([*args, "--data.num_workers", 1])  # a key that may differ, of which MLflow has a parameter
    os.chdir(before)
    return folder / "exp/run", output


def losses(run_dir) -> dict[int, float]:
    return {
        int(row["step"]): float(row["train/loss"]) for row in whole_rows(run_dir / "metrics.csv") if row["train/loss"]
    }


def test_tensorboard_has_one_curve_of_a_run_that_went_on(logged):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir, _ = logged
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    points = events.Scalars("train/loss")
    assert [point.step for point in points] == list(range(60))
    assert {p.step: p.value for p in points} == pytest.approx(losses(run_dir), rel=1e-6)
    assert events.Scalars("test/acc")[-1].value == pytest.approx(
        json.loads((run_dir / "summary.json").read_text())["test/acc"]
    )
    recorded = yaml.unsafe_load((run_dir / "tensorboard/hparams.yaml").read_text())
    assert recorded["model.optimizer.lr"] == 0.003


def test_csv_keeps_what_was_before(logged):
    run_dir, _ = logged
    rows = []
    for version in (0, 1):
        with open(run_dir / f"csv/version_{version}/metrics.csv") as f:
            rows.append([int(row["step"]) for row in csv.DictReader(f) if row["train/loss"]])
    assert rows == [list(range(45)), list(range(40, 60))]
    assert yaml.safe_load((run_dir / "csv/version_0/hparams.yaml").read_text())["data.batch_size"] == 64


def test_mlflow_has_one_run(logged, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run_dir, _ = logged
    client = MlflowClient(f"file:{run_dir}/mlruns")
    (found,) = client.search_runs([client.get_experiment_by_name("exp").experiment_id])
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.params["model.optimizer.lr"] == "0.003"
    assert found.data.params["data.num_workers"] == "0"  # of the start: it takes no other later
    points = client.get_metric_history(found.info.run_id, "train/loss")
    assert {p.step: p.value for p in points} == pytest.approx(losses(run_dir), rel=1e-6)
    twice = {step for step, times in Counter(p.step for p in points).items() if times > 1}
    assert twice == set(range(40, 45))  # nothing can be taken back from it


def test_nothing_is_left_elsewhere(logged):
    run_dir, output = logged
    assert "going on after 40 steps" in output
    assert sorted(path.name for path in run_dir.parent.parent.iterdir()) == ["exp", "output0.txt", "output1.txt"]
    config = flat(yaml.safe_load((run_dir / "config.yaml").read_text()))
    assert not any("save_dir" in key for key in str(config["trainer.logger"]).split("'"))


def breaks() -> None:
    from lightning.pytorch.loggers import CSVLogger

    def broken(self, metrics, step=None):
        if step and step > 20:
            raise RuntimeError("the server\nhas gone")

    CSVLogger.log_metrics = broken


def test_a_logger_that_fails_in_mid_run_is_named_once(run, tmp_path):
    args = [*EVERY_STEP, "--trainer.logger", f"{PLACE}.CSVLogger", "--run_dir", tmp_path / "run"]
    output = run(args, first=breaks)
    line = "CSVLogger: the server has gone; nothing more is recorded there. metrics.csv has all metrics."
    assert output.count(line) == 1
    assert len(losses(tmp_path / "run")) == 60


def test_a_logger_that_cannot_begin_ends_the_run_before_training(run, tmp_path):
    (tmp_path / "file").touch()
    for flags in (
        ["--trainer.logger", f"{PLACE}.CSVLogger", "--trainer.logger.save_dir", tmp_path / "file"],
        ["--trainer.logger", f"{PLACE}.MLFlowLogger", "--trainer.logger.tracking_uri", "http://127.0.0.1:9"],
    ):
        output = run([*SMALL, *flags, "--run_dir", tmp_path / "run"], code=75)
        assert output.splitlines()[-1].startswith("error: trainer.logger: ")
        assert output.endswith("-> mend that, or leave it out\n")
        assert not (tmp_path / "run/metrics.csv").exists()


@pytest.mark.parametrize("kind", ["TensorBoardLogger", "MLFlowLogger"])
def test_a_package_that_is_missing_is_named(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("src.run.errors.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'is not installed -> pip install -e "\.\[(tensorboard|mlflow)\]"'):
        at_home({"class_path": f"{PLACE}.{kind}"}, RunFolder(tmp_path))
