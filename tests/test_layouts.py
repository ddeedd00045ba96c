"""`data.batch_size` is the contract: how it is divided over devices and micro-batches does not change the losses of a
network without batch norm and dropout."""

import csv
from pathlib import Path

import pytest
import torch

STEPS = 4
SHORT = ["--trainer.accelerator", "cpu", "--trainer.max_epochs", 1, "--trainer.max_steps", STEPS]
SHORT += ["--trainer.log_every_n_steps", 1, "--trainer.val_check_interval", 1.0, "--trainer.check_val_every_n_epoch", 1]
SHORT += ["--trainer.limit_test_batches", 1, "--pictures.enabled", "false"]
TWO = ["--trainer.strategy", "ddp", "--trainer.devices", 2]
LAYOUTS = {
    "one device": ["--trainer.limit_train_batches", STEPS],
    "two devices": [*TWO, "--trainer.limit_train_batches", STEPS],
    "two micro-batches": ["--data.micro_batch_size", 32, "--trainer.limit_train_batches", 2 * STEPS],
    "two devices with two micro-batches each": [
        *TWO,
        "--data.micro_batch_size",
        16,
        "--trainer.limit_train_batches",
        2 * STEPS,
    ],
}


def experiment(name: str, *flags: object) -> list:
    return ["--config", f"configs/experiment/{name}.yaml", "--data.batch_size", 64, *flags]


KINDS = {
    # kind: images
    "images": experiment("digits_cnn", "--model.network.batch_norm", "false", "--model.network.dropout", 0),
    "images, by a transformer": experiment("digits_vit", "--model.network.dropout", 0),
    # end
    # kind: text
    "text": experiment("text_gpt", "--data.seq_len", 16, "--model.network.dim", 32, "--model.network.num_heads", 2),
    "text with targets that are missing": experiment(
        "text_gpt", "--data.seq_len", 16, "--model.network.dim", 32, "--model.network.num_heads", 2
    ),
    # end
    # kind: tables
    "numbers": experiment("diabetes_mlp", "--model.network.dropout", 0),
    "classes that are weighted": experiment(
        "breast_cancer_mlp", "--model.network.dropout", 0, "--model.class_weights", "balanced"
    ),
    # end
    # kind: series
    "series with holes": experiment("seasons_linear"),
    # end
}


# kind: text
def without_some_targets():
    """A hook: each window of training lacks between none and all but one of its targets."""
    from src.data.text.module import Windows

    fetch = Windows.__getitem__

    def holed(self, index):
        batch = fetch(self, index)
        places = torch.arange(self.seq_len)
        return batch | {"targets": batch["targets"].masked_fill(places > (index * 7919 % self.seq_len)[:, None], -100)}

    Windows.__getitem__ = holed


# end
HOOKS = {"text with targets that are missing": "without_some_targets"}


def losses(folder: Path) -> dict[str, list[float]]:
    with open(folder / "metrics.csv") as f:
        rows = list(csv.DictReader(f))
    return {name: [float(r[name]) for r in rows if r[name]] for name in ("train/loss", "val/loss")}


@pytest.mark.parametrize("kind", KINDS)
def test_losses_do_not_depend_on_how_a_batch_is_divided(run, tmp_path, kind):
    found = {}
    for layout, flags in LAYOUTS.items():
        twins, folder = int("two devices" in layout), tmp_path / layout.replace(" ", "_")
        first = globals().get(HOOKS.get(kind))
        run([*KINDS[kind], *SHORT, *flags, "--run_dir", folder], twins=twins, first=first)
        found[layout] = losses(folder)
    one = found["one device"]
    assert (len(one["train/loss"]), len(one["val/loss"])) == (STEPS, 1)
    for layout, other in found.items():
        for name, values in one.items():
            assert other[name] == pytest.approx(values, rel=1e-5), (layout, name)
