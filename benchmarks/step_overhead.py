# kind: images
"""What a training step costs through the Trainer, over a careful hand loop with the same network, loader and optimizer.

    python -m benchmarks.step_overhead --repeats 7 --steps 500 --widths 8 8

Four sides in turn, in one process, each counted from step 100 on. `hand loop`: whole batches from memory, normalized
at once, fused AdamW, no metrics, no schedule. `src.train`: the same through the Trainer, with all that a run has:
logging every 50 steps, gradient norm and update ratio, the guard against numbers that are not finite, throughput,
progress, schedule, metrics.csv, checkpoints. `bare Trainer`: the hand loop's step and batches through a Trainer without
logger, callbacks, progress bar and checkpoints: what is above the hand loop there is Lightning's own. `Lightning`: a
LightningModule as its users write it, on a TensorDataset and a DataLoader, with the Trainer's own logger, progress bar
and checkpoints, and AdamW as it comes. Nothing is validated. The digits are 10 steps of 128; with `--copies` an epoch
has so many times as many, so that its end weighs less.
"""

import argparse
import contextlib
import os
import tempfile
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.in_process import Stopwatch, built
from benchmarks.side_by_side import conditions, in_turn, picture, table
from src.data.loader import Arrays
from src.data.order import TrainOrder
from src.models.factory import build_network

START = 100  # the steps before are start-up
CLOCK = time.perf_counter


class AtDefaults(pl.LightningModule):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.network(x)
        loss = F.cross_entropy(logits, y, label_smoothing=0.05)
        self.log("train_loss", loss, prog_bar=True)
        self.log("train_acc", (logits.argmax(1) == y).float().mean(), prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.05)


def build(args, folder, *watching):
    flags = ["--trainer.max_epochs", "-1", "--trainer.max_steps", str(args.steps), "--trainer.limit_val_batches", "0"]
    flags += ["--model.network.widths", str(args.widths), "--model.network.hidden", str(args.hidden)]
    flags += ["--data.augment", "null", "--data.batch_size", str(args.batch_size), "--trainer.log_every_n_steps", "50"]
    flags += ["--trainer.accelerator", "cpu"]
    config = ["--config", "configs/experiment/digits_cnn.yaml"]
    experiment = built([*config, *flags], folder, *watching)
    data = experiment.datamodule
    data.prepare_data()
    data.setup("fit")
    train = data.splits["train"]
    x, targets = (t.repeat(args.copies, *[1] * (t.ndim - 1)) for t in (train.x, train.targets))
    data.splits["train"] = Arrays(x, targets)
    return experiment


def trainer_step(args, folder):
    watch = Stopwatch(args.first)
    experiment = build(args, folder, watch)
    experiment.trainer.fit(experiment.model, datamodule=experiment.datamodule)
    return watch.seconds() * 1e3


def order(arrays, batch_size, at):
    return TrainOrder(len(arrays), batch_size, batch_size, 0, lambda: at)


def hand_step(args, folder):
    experiment = build(args, folder)
    data = experiment.datamodule
    network = build_network(experiment.model.factory, data.facts)
    optimizer = experiment.model.optimizer(network.parameters())
    arrays, done, epoch = data.splits["train"], 0, 0
    while True:
        for index in order(arrays, args.batch_size, (epoch, 0)):
            batch = arrays[index]
            logits = network(data.standardize(batch["x"].float().div_(255)))
            loss = F.cross_entropy(logits, batch["targets"], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if done == args.first:
                t0 = CLOCK()
            if done == args.steps:
                return (CLOCK() - t0) / (args.steps - args.first) * 1e3
        epoch += 1


class Bare(pl.LightningModule):
    def __init__(self, network, optimizer, standardize):
        super().__init__()
        self.network, self.optimizer, self.standardize = network, optimizer, standardize

    def training_step(self, batch, batch_idx):
        logits = self.network(self.standardize(batch["x"].float().div_(255)))
        return F.cross_entropy(logits, batch["targets"], label_smoothing=0.05)

    def configure_optimizers(self):
        return self.optimizer(self.network.parameters())


class InTurn:
    """Whole batches of `arrays`, an epoch after the other in another order."""

    def __init__(self, arrays, batch_size):
        self.arrays, self.batch_size, self.epoch = arrays, batch_size, -1

    def __len__(self):
        return len(self.arrays) // self.batch_size

    def __iter__(self):
        self.epoch += 1
        at = (self.epoch, 0)
        return (self.arrays[index] for index in order(self.arrays, self.batch_size, at))


def bare_step(args, folder):
    experiment = build(args, folder)
    model, data, watch = experiment.model, experiment.datamodule, Stopwatch(args.first)
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = pl.Trainer(max_steps=args.steps, callbacks=[watch], accelerator="cpu", **dict.fromkeys(off, False))
    network = build_network(model.factory, data.facts)
    trainer.fit(Bare(network, model.optimizer, data.standardize), InTurn(data.splits["train"], args.batch_size))
    return watch.seconds() * 1e3


def lightning_step(args, folder):
    experiment = build(args, folder)
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # as Lightning sets it, and `build` does not leave it
    data = experiment.datamodule
    train, watch = data.splits["train"], Stopwatch(args.first)
    dataset = TensorDataset(data.standardize(train.x.float() / 255), train.targets)
    loader = DataLoader(dataset, args.batch_size, shuffle=True, drop_last=True)
    trainer = pl.Trainer(max_steps=args.steps, callbacks=[watch], default_root_dir=folder, accelerator="cpu")
    trainer.fit(AtDefaults(build_network(experiment.model.factory, data.facts)), loader)
    return watch.seconds() * 1e3


def quietly(step, args):
    """What a run prints goes nowhere, on all sides."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        nowhere = stack.enter_context(open(os.devnull, "w"))
        for redirect in (contextlib.redirect_stdout, contextlib.redirect_stderr):
            stack.enter_context(redirect(nowhere))
        return step(args, folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 8])
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--sides", nargs="+", default=["hand loop", "src.train", "bare Trainer", "Lightning"])
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    args.first = min(START, args.steps // 2)
    known = {"hand loop": hand_step, "src.train": trainer_step, "bare Trainer": bare_step, "Lightning": lightning_step}
    sides = {name: lambda i, step=known[name]: quietly(step, args) for name in args.sides}
    times = in_turn(sides, args.repeats)
    sizes = f"widths {args.widths}, hidden {args.hidden}, batch {args.batch_size}, {args.copies} copies"
    print(f"{sizes}; {torch.get_num_threads()} threads; {conditions(args.repeats)}\n")
    print(table(times, args.sides[0], "ms a step"))
    if args.picture:
        picture(times, args.picture, f"A training step, {sizes}", "ms")


if __name__ == "__main__":
    main()


# end
