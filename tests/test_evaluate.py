import csv
import json

import pyarrow.parquet
import pytest
import torch
from conftest import (
    SMALL,
    SMALL_CNN,  # kind: images
)

import src.evaluate
import src.generate  # kind: text
import src.predict
from src import load_run
from src.run.errors import CheckpointError

COMMANDS = [src.evaluate.main, src.predict.main]
COMMANDS += [src.generate.main]  # kind: text


@pytest.fixture
def trained(copied):
    return copied(SMALL)


def test_evaluate_gives_the_runs_own_figures(run, trained):
    summary = json.loads((trained / "summary.json").read_text())
    output = run(["--run_dir", trained], command=src.evaluate.main)
    assert f"test/acc {summary['test/acc']:.4f}" in output
    saved = json.loads((trained / "evaluate_test.json").read_text())
    assert {name: saved[name] for name in ("test/acc", "test/loss")} == pytest.approx(
        {name: summary[name] for name in ("test/acc", "test/loss")}
    )


def test_all_samples_are_measured_of_a_run_that_was_limited(run, tmp_path):
    run([*SMALL, "--config", "configs/trainer/smoke.yaml", "--run_dir", tmp_path / "run"])
    run(["--run_dir", tmp_path / "run"], command=src.evaluate.main)
    run(["--run_dir", tmp_path / "run"], command=src.predict.main)
    with open(tmp_path / "run/predictions.csv") as f:
        rows = list(csv.DictReader(f))
    measured = json.loads((tmp_path / "run/evaluate_test.json").read_text())
    assert measured["samples"] == len(rows) == 360
    assert measured["test/acc"] == pytest.approx(sum(row["target"] == row["prediction"] for row in rows) / 360)


def test_other_split_and_checkpoint(run, trained):
    output = run(["--run_dir", trained, "--split", "val", "--checkpoint", "last"], command=src.evaluate.main)
    with open(trained / "metrics.csv") as f:
        last = [row["val/acc"] for row in csv.DictReader(f) if row["val/acc"]][-1]
    assert f"val/acc {float(last):.4f}" in output


def test_predictions_agree_with_the_accuracy(run, trained, tmp_path):
    run(["--run_dir", trained], command=src.predict.main)
    with open(trained / "predictions.csv") as f:
        rows = list(csv.DictReader(f))
    assert [int(row["id"]) for row in rows] == list(range(360))
    accuracy = sum(row["target"] == row["prediction"] for row in rows) / 360
    assert accuracy == pytest.approx(json.loads((trained / "summary.json").read_text())["test/acc"])
    run(["--run_dir", trained, "--split", "val", "--output", tmp_path / "p.parquet"], command=src.predict.main)
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet")
    assert table.num_rows == 144
    assert sum(table[f"probability_{k}"][0].as_py() for k in range(10)) == pytest.approx(1, abs=1e-5)


def test_load_run_gives_the_trained_model(run, trained):
    state = torch.get_rng_state()
    model = load_run(trained)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    data = model.data
    data.setup("test")
    split = data.splits["test"]
    with torch.no_grad():
        logits = model(split.x)
    accuracy = (logits.argmax(1) == split.targets).float().mean().item()
    assert accuracy == pytest.approx(json.loads((trained / "summary.json").read_text())["test/acc"])


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 2, "give --run_dir"),
        (["--run_dir", "nowhere"], 4, "no run is here"),
        (["--run_dir", "nowhere", "--split", "tset"], 2, "--split"),
    ],
)
@pytest.mark.parametrize("command", [src.evaluate.main, src.predict.main], ids=["evaluate", "predict"])
def test_what_is_wrong_is_one_line(command, args, code, message, run):
    output = run(args, code=code, command=command)
    assert message in output
    assert len(output.splitlines()) == 1


def test_output_must_have_a_known_ending(run, trained):
    assert ".csv or .parquet" in run(["--run_dir", trained, "--output", "x.txt"], code=2, command=src.predict.main)


def test_a_run_without_a_checkpoint(run, trained):
    (trained / "checkpoints/best.ckpt").unlink()
    words = "no best checkpoint is there: the run finished after 60 steps -> "
    assert words in run(["--run_dir", trained], code=4, command=src.evaluate.main)
    with pytest.raises(CheckpointError, match=words):
        load_run(trained)
    load_run(trained, "last")
    (trained / "summary.json").unlink()
    output = run(["--run_dir", trained], code=4, command=src.predict.main)
    assert "the run was cut short after 60 steps -> give its command again" in output


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_that_failed_before_its_first_checkpoint(run, tmp_path, command):
    flags = ["--data.batch_size", 5000, "--run_dir", tmp_path / "run"]
    run([*SMALL, *flags], code=3)
    error = json.loads((tmp_path / "run/summary.json").read_text())["error"].partition(" -> ")[0]
    output = run(["--run_dir", tmp_path / "run"], code=4, command=command)
    assert output.startswith(f"error: {tmp_path / 'run'}: no best checkpoint is there: the run failed after 0 steps (")
    assert f"({error}) -> give its command again" in output
    assert len(output.splitlines()) == 1


def test_code_that_has_changed_since_is_said(run, trained, capsys):
    words, args = "The code has changed since this run was trained", ["--run_dir", trained]
    assert words not in run(args, command=src.evaluate.main)
    state = json.loads((trained / "run.json").read_text())
    state["code"]["src_sha256"] = "0" * 64
    (trained / "run.json").write_text(json.dumps(state))
    for command in (src.evaluate.main, src.predict.main):
        assert run(args, command=command).count(words) == 1
    assert words in run(args, command=src.generate.main, code=2)  # kind: text
    assert words not in run([*args, "--print_config"], command=src.evaluate.main)
    load_run(trained)
    assert words in capsys.readouterr().out


# kind: images
def test_limited_batches_are_a_sample_of_all_classes(run, tmp_path):
    """The images of a folder lie by class; the first 64 of its 360 tests would be of two."""
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    for i, (image, target) in enumerate(zip(bunch.images, bunch.target, strict=True)):
        path = tmp_path / f"data/{target}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype("uint8")).save(path)
    flags = ["--data.dataset", "folder", "--data.data_dir", tmp_path / "data", "--data.cache_dir", tmp_path / "cache"]
    output = run([*SMALL_CNN, *flags, "--trainer.limit_test_batches", "1", "--run_dir", tmp_path / "run"])
    assert "test has only, or no, samples of class" not in output
    limited = json.loads((tmp_path / "run/summary.json").read_text())["test/acc"]
    run(["--run_dir", tmp_path / "run"], command=src.evaluate.main)
    whole = json.loads((tmp_path / "run/evaluate_test.json").read_text())
    assert limited != whole["test/acc"]
    assert limited == pytest.approx(whole["test/acc"], abs=0.15)
    assert whole["test/auroc"] > 0.9


# end
