"""FSDP2 on two gloo processes of this machine does what one process does."""

import csv
import json
from pathlib import Path

import pytest
import torch
from conftest import SMALL

from src.run import checkpoint

FSDP = ["--config", "configs/trainer/fsdp.yaml", "--trainer.devices", 2, "--trainer.accelerator", "cpu"]
SHORT = ["--trainer.accelerator", "cpu", "--pictures.enabled", "false", "--trainer.max_epochs", 2]
SHORT += ["--trainer.limit_train_batches", 4, "--trainer.limit_test_batches", 2, "--trainer.log_every_n_steps", 4]
SHORT += ["--checkpoints.every_n_steps", 3]
# No dropout and no batch norm, which see each device's samples apart.
TINY = [*SMALL, *SHORT, "--model.network.dropout", 0, "--model.network.widths", "[33,33]"]
NETWORKS = {
    "mlp, clipped": [*TINY, "--trainer.gradient_clip_val", 0.1],
    "accumulated": TINY,
    "frozen": [*TINY, "--model.freeze", "[blocks.0.*]"],
    "muon": [*TINY, "--model.optimizer", "src.optim.muon.Muon"],
    # kind: images
    "cnn": [
        *["--config", "configs/experiment/digits_cnn.yaml", *SHORT, "--model.network.widths", "[5,8]"],
        *["--model.network.dropout", 0, "--model.network.batch_norm", "false"],
    ],
    "lstm": [
        *["--config", "configs/experiment/digits_lstm.yaml", *SHORT, "--model.network.dropout", 0],
        *["--model.network.dim", 9],
    ],
    "vit": [
        *["--config", "configs/experiment/digits_vit.yaml", *SHORT, "--model.network.dim", 24],
        *["--model.network.depth", 2, "--model.network.dropout", 0],
    ],
    # end
    # kind: text
    "gpt": [
        *["--config", "configs/experiment/text_gpt.yaml", *SHORT, "--trainer.max_steps", 8, "--data.seq_len", 16],
        *["--trainer.val_check_interval", 4, "--trainer.limit_val_batches", 2],
        *["--model.network.dim", 24, "--model.network.depth", 2],
    ],
    # end
    # kind: tables
    "table": [
        *["--config", "configs/experiment/diabetes_mlp.yaml", *SHORT, "--model.network.dropout", 0],
        *["--trainer.limit_train_batches", 4],
    ],
    # end
    # kind: series
    "series": ["--config", "configs/experiment/seasons_linear.yaml", *SHORT],
    # end
}
if "gpt" in NETWORKS:
    NETWORKS["gpt, not tied"] = [*NETWORKS["gpt"], "--model.network.tie_embeddings", "false"]


def rows(folder: Path) -> list[dict[str, float]]:
    """Of the log, what does not depend on the clock or on which device's samples they are."""
    with open(folder / "metrics.csv") as f:
        return [
            {name: float(v) for name, v in row.items() if v and not name.startswith(("perf/", "train/"))}
            for row in csv.DictReader(f)
        ]


def saved(folder: Path) -> dict:
    return checkpoint.load(folder / "checkpoints/last.ckpt")


def assert_close(one: Path, other: Path, rel: float = 1e-4) -> None:
    a, b = rows(one), rows(other)
    assert len(a) == len(b) > 1
    assert any("optim/grad_norm" in row for row in a)
    for x, y in zip(a, b, strict=True):
        exact = {name: v for name, v in x.items() if "loss" in name or name.startswith("optim/")}
        assert {name: y[name] for name in exact} == pytest.approx(exact, rel=rel)
    assert_same_weights(saved(one), saved(other), rel)
    ends = [json.loads((folder / "summary.json").read_text()) for folder in (one, other)]
    assert ends[0]["test/loss"] == pytest.approx(ends[1]["test/loss"], rel=rel)


def assert_same_weights(a: dict, b: dict, tolerance: float) -> None:
    a, b = a["state_dict"], b["state_dict"]
    assert list(a) == list(b)
    for name in a:
        assert torch.allclose(a[name].float(), b[name].float(), rtol=tolerance, atol=tolerance), name


DIVIDED = {"accumulated": ["--data.micro_batch_size", 16, "--trainer.limit_train_batches", 8]}
DIVIDED["accumulated"] += ["--trainer.limit_test_batches", 4]


@pytest.mark.parametrize("name", NETWORKS)
def test_two_devices_give_what_one_gives(run, tmp_path, name):
    run([*NETWORKS[name], "--run_dir", tmp_path / "one"])
    run([*NETWORKS[name], *FSDP, *DIVIDED.get(name, []), "--run_dir", tmp_path / "two"], twins=1)
    assert_close(tmp_path / "one", tmp_path / "two", 5e-3 if name == "muon" else 1e-4)  # Muon computes in bfloat16


SHARDED = ["--trainer.strategy.sharded_checkpoints", "true"]
# The first two epochs of three on two devices, the last on others; plain is one process without FSDP.
OTHERS = {"two": (FSDP, 1), "three": ([*FSDP, "--trainer.devices", 3], 2), "one": ([*FSDP, "--trainer.devices", 1], 0)}
OTHERS["plain"] = ([], 0)
BATCH = ["--data.batch_size", 60]


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_goes_on_with_another_number_of_devices(run, tmp_path, sharded):
    flags = [*TINY, *BATCH]
    run([*flags, "--run_dir", tmp_path / "begun"])
    run([*flags, "--trainer.max_epochs", 3, "--resume", tmp_path / "begun", "--run_dir", tmp_path / "reference"])
    run([*flags, *FSDP, *(SHARDED if sharded else []), "--run_dir", tmp_path / "divided"], twins=1)
    assert list((tmp_path / "divided/checkpoints").glob("*.shards")) != [] or not sharded
    for name, (how, twins) in OTHERS.items():
        more = [*how, *(SHARDED if sharded and how else []), "--trainer.max_epochs", 3]
        run([*flags, *more, "--resume", tmp_path / "divided", "--run_dir", tmp_path / name], twins=twins)
        assert_close(tmp_path / "reference", tmp_path / name)
