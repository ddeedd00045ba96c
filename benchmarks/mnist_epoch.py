# kind: images
"""One epoch of the example CNN on MNIST, batch 128: `python -m src.train` beside loops by hand and Keras.

    python -m benchmarks.mnist_epoch --repeats 5 --steps 421 --data_dir DIR --keras PYTHON

Each side is a whole process. It trains on 54,000 images without augmentation, validates on 6,000, tests on 10,000:

src.train        configs/experiment/mnist_cnn.yaml, `trainer.precision auto`, all else as every run has it: metrics,
                 guard against non-finite numbers, checkpoints, pictures. The data are prepared in the warm-up round
careful loop     the set as one tensor, fused Adam, channels_last, bfloat16 if the processor has it (mnist_careful.py)
tutorial loop    DataLoader, a transform for each image, Adam, `.item()` (mnist_tutorial.py)
Keras            `model.fit` (mnist_keras.py), with an interpreter that has it; without --keras this side is left out

Training is timed from the end of an epoch's first step, on all sides, because that one warms up, and told as seconds
for 54,000 images. A whole command is from process start to end; "beyond imports" is without what a process takes
that only imports what each side is built on, measured in the same turn.
"""

import argparse
import csv
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.side_by_side import Times, conditions, in_turn, picture, seconds_of, table, threads, timed
from src.run.device import has_bfloat16

PEERS, IMAGES = Path(__file__).parent / "peers", 54_000
OURS, CAREFUL, TUTORIAL, KERAS = "src.train", "careful loop", "tutorial loop", "Keras"
IMPORTS = {OURS: "lightning.pytorch", CAREFUL: "torch, torchvision", TUTORIAL: "torch, torchvision", KERAS: "keras"}


def train(args: argparse.Namespace, seed: int, cache: str) -> tuple[float, float]:
    """Seconds of the whole command and of training, as the run has recorded it."""
    with tempfile.TemporaryDirectory() as folder:
        every = min(50, max(1, args.steps // 3))
        command = [sys.executable, "-m", "src.train", "--config", "configs/experiment/mnist_cnn.yaml"]
        command += ["--data.data_dir", args.data_dir, "--data.cache_dir", cache, "--data.augment", "null"]
        command += ["--data.batch_size", str(args.batch_size), "--trainer.limit_train_batches", str(args.steps)]
        command += ["--trainer.max_epochs", "1", "--trainer.precision", "auto", "--trainer.accelerator", "cpu"]
        command += ["--trainer.log_every_n_steps", str(every), "--seed_everything", str(seed)]
        if args.steps < IMAGES // args.batch_size:  # the peers' val and test are shortened, too
            for split, images in (("val", 6_000), ("test", 10_000)):
                limit = min(args.steps, images // args.batch_size)
                command += [f"--trainer.limit_{split}_batches={limit}"]
        seconds = seconds_of([*command, "--run_dir", f"{folder}/run"], env=threads(args.threads))
        with open(f"{folder}/run/metrics.csv") as f:
            steps = [float(row["perf/step_sec"]) for row in csv.DictReader(f) if row.get("perf/step_sec")]
    return seconds, statistics.mean(steps) / args.batch_size * IMAGES


def peer(args: argparse.Namespace, name: str, seed: int, python: str = sys.executable) -> tuple[float, float]:
    command = [python, str(PEERS / f"mnist_{name}.py"), "--data_dir", args.data_dir, "--seed", str(seed)]
    command += ["--batch_size", str(args.batch_size), "--limit", str(min(IMAGES, args.steps * args.batch_size))]
    if name == "careful" and has_bfloat16(torch.device("cpu")):
        command += ["--bf16"]
    seconds, output = timed(command, env=threads(args.threads))
    return seconds, json.loads(output.splitlines()[-1])["us"] * IMAGES / 1e6


def measure(args: argparse.Namespace, cache: str) -> tuple[Times, Times, Times]:
    """Seconds of training, of the whole command, and of the imports."""
    sides: dict[str, Callable[[int], tuple[float, float]]] = {
        CAREFUL: lambda seed: peer(args, "careful", seed),
        OURS: lambda seed: train(args, seed, cache),
        TUTORIAL: lambda seed: peer(args, "tutorial", seed),
    }
    pythons = dict.fromkeys(sides, sys.executable)
    if args.keras:
        sides[KERAS] = lambda seed: peer(args, "keras", seed, args.keras)
        pythons[KERAS] = args.keras
    training, imports = defaultdict(list), defaultdict(list)

    def whole(name: str, seed: int) -> float:
        import_only = [pythons[name], "-c", f"import {IMPORTS[name]}"]
        imports[name].append(seconds_of(import_only, env=threads(args.threads)))
        seconds, in_training = sides[name](seed)
        training[name].append(in_training)
        return seconds

    called = {name: lambda seed, name=name: whole(name, seed) for name in sides}
    times = in_turn(called, args.repeats, warm_up=args.repeats > 1)
    training, imports = ({name: t[name][-args.repeats :] for name in sides} for t in (training, imports))
    return training, times, imports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=IMAGES // 128, help="of the epoch, at most")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--data_dir", required=True, help="that holds MNIST/raw")
    parser.add_argument("--keras", metavar="PYTHON", help="an interpreter that has Keras")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--picture", type=Path, help="where to draw it")
    args = parser.parse_args()
    if not args.keras:
        print("without Keras: --keras PYTHON names an interpreter that has it")
    with tempfile.TemporaryDirectory() as cache:
        training, whole, imports = measure(args, cache)
    beyond = {name: [a - b for a, b in zip(whole[name], imports[name], strict=True)] for name in whole}
    for what, times in (("training", training), ("whole command", whole), ("beyond imports", beyond)):
        print(f"\n{table(times, CAREFUL, f'{what}, s')}")
    print(f"\nbatch {args.batch_size}, {args.threads} threads; {conditions(args.repeats)}")
    if args.picture:
        picture(training, args.picture, "MNIST, one epoch of the example CNN: training", "seconds")


if __name__ == "__main__":
    main()


# end
