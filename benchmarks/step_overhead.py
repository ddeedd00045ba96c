# kind: images
"""What a training step costs over a hand-written loop with the same batches, network and optimizer.

    python -m benchmarks.step_overhead --repeats 9 --steps 400 --widths 8 8

Both sides take whole batches from memory and use fused AdamW. The Trainer also does what every run does: metrics.csv,
throughput, checkpoints, schedule. The sides run in turn in one process; a step's time is the median of the repeats.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback
from torch.nn import functional as F

from src.config.build import Experiment
from src.config.request import command_parser, read_request
from src.data.order import TrainOrder
from src.loggers.metrics_csv import MetricsCSV
from src.models.factory import build_network


class Stopwatch(Callback):
    """Seconds from the first step to the end of the last, without building the loop."""

    def on_train_start(self, trainer, pl_module):
        self.t0 = time.perf_counter()

    def on_train_end(self, trainer, pl_module):
        self.seconds = time.perf_counter() - self.t0


def build(args, folder):
    flags = ["--trainer.max_epochs", "-1", "--trainer.max_steps", str(args.steps), "--trainer.limit_val_batches", "0"]
    flags += ["--model.network.widths", str(args.widths), "--model.network.hidden", "64", "--data.augment", "null"]
    flags += ["--data.batch_size", str(args.batch_size), "--trainer.log_every_n_steps", "50"]
    config = ["--config", "configs/experiment/digits_cnn.yaml"]
    experiment = Experiment(read_request(command_parser("benchmark", None), [*config, *flags]))
    experiment.build(logger=False, default_root_dir=folder)
    (Path(folder) / "config.yaml").write_text("trainer: {}\n")  # as in every run folder
    experiment.trainer.loggers = [MetricsCSV(Path(folder))]
    experiment.datamodule.prepare_data()
    experiment.datamodule.setup("fit")
    return experiment


def trainer_seconds(args):
    with tempfile.TemporaryDirectory() as folder:
        experiment, watch = build(args, folder), Stopwatch()
        experiment.trainer.callbacks.insert(0, watch)
        experiment.trainer.fit(experiment.model, datamodule=experiment.datamodule)
    return watch.seconds


def hand_seconds(args):
    with tempfile.TemporaryDirectory() as folder:
        data = build(args, folder).datamodule
        experiment = build(args, folder)
    network = build_network(experiment.model.factory, data.facts)
    optimizer = experiment.model.optimizer(network.parameters())
    arrays, done, t0 = data.splits["train"], 0, time.perf_counter()
    for epoch in range(args.steps):
        for index in TrainOrder(len(arrays), args.batch_size, args.batch_size, 0, lambda e=epoch: (e, 0)):
            if done == args.steps:
                return time.perf_counter() - t0
            batch = arrays[index]
            logits = network(data.standardize(batch["x"].float().div_(255)))
            loss = F.cross_entropy(logits, batch["targets"], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
    return time.perf_counter() - t0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 8])
    args = parser.parse_args()
    sides = {"hand loop": hand_seconds, "src.train": trainer_seconds}
    times = {name: [] for name in sides}
    for i in range(args.repeats + 1):
        for name in sorted(sides, reverse=bool(i % 2)):
            seconds = sides[name](args)
            if i:  # the first round warms up
                times[name].append(seconds / args.steps * 1e6)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {args.batch_size}, {args.repeats} repeats"
    )
    for name, us in times.items():
        print(f"{name:10} {statistics.median(us):8.0f} us a step  ({min(us):.0f} to {max(us):.0f})")
    ratios = [a / b for a, b in zip(times["src.train"], times["hand loop"], strict=True)]
    print(f"ratio      {statistics.median(ratios):8.3f}            ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()


# end
