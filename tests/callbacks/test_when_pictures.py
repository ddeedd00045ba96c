import csv

import numpy as np
from conftest import (
    SMALL,
    SMALL_CNN,  # kind: images
)
from PIL import Image  # kind: images

DRAWN = [*SMALL, "--pictures.enabled", "true"]


# kind: images
def test_pictures_are_in_the_run_folder_and_in_wandb(run, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    output = run([*SMALL_CNN, "--pictures.enabled", "true", "--run_dir", folder])
    assert "pictures  confusion.png, curves.png, samples.png" in output
    assert output.count("W&B") == 2, output  # that it records, and how to send it: nothing went wrong
    for name in ("confusion", "curves", "samples"):
        image = np.asarray(Image.open(folder / f"{name}.png").convert("RGB"))
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50, name
        (sent,) = folder.glob(f"wandb/offline-run-*/files/media/images/pictures/{name}_*.png")
        assert sent.read_bytes() == (folder / f"{name}.png").read_bytes()
    assert not list(folder.glob("*.tmp"))


# end


# kind: images
def test_drawing_changes_nothing_in_training(run, tmp_path):
    run([*SMALL_CNN, "--pictures.enabled", "true", "--run_dir", tmp_path / "with"])
    run([*SMALL_CNN, "--run_dir", tmp_path / "without"])
    with_, without = ((tmp_path / n / "checkpoints/last.ckpt").resolve() for n in ("with", "without"))
    import torch

    one, other = (torch.load(p, weights_only=True)["state_dict"] for p in (with_, without))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not list((tmp_path / "without").glob("*.png"))


# end


def test_evaluating_draws_nothing(run, tmp_path):
    from src import evaluate

    run([*SMALL, "--run_dir", tmp_path / "run"])
    run(["--run_dir", tmp_path / "run", "--pictures.enabled", "true"], command=evaluate.main)
    assert not list((tmp_path / "run").glob("*.png"))


def test_no_step_waits_for_a_drawing(run, tmp_path):
    def slow_save() -> None:
        import time

        from src.callbacks.pictures import Pictures

        save = Pictures.save

        def slow(self, trainer, name, figure):
            time.sleep(3)
            (tmp_path / name).write_text(str(trainer.global_step))
            save(self, trainer, name, figure)

        Pictures.save = slow

    flags = ["--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "10", "--run_dir", tmp_path / "run"]
    run([*DRAWN, *flags], first=slow_save)
    assert (tmp_path / "samples").read_text() == "20"
    with open(tmp_path / "run/metrics.csv") as f:
        rows = [row for row in csv.DictReader(f) if row["perf/step_sec"]]
    assert all(float(row["perf/step_sec"]) < 0.3 for row in rows)  # 3 s would be 0.3 s in each of ten steps
    assert [row["step"] for row in rows] == ["9", "19"]
