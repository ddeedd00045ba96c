# kind: images
"""CIFAR-10 as a folder of JPEG images: time and accuracy of our experiment beside a plain port of airbench94.

    python -m benchmarks.cifar_90 --repeats 1 --steps 1000 --archive DIR/cifar10_images.tar.xz

Both sides run at the same time, each with its own threads, so that both have the same machine. The port is float32, as
its users would write it (benchmarks/peers/cifar_airbench.py); ours is configs/experiment/cifar10_resnet.yaml with
fewer epochs, by its real command. The images are re-encoded, so that 0.94 is out of reach.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.side_by_side import conditions, table, threads, timed

PEER = Path(__file__).parent / "peers/cifar_airbench.py"
OURS, PORT, IMAGES = "src.train", "airbench94, a port", 50_000
BATCH = 512  # ours


def train(args: argparse.Namespace, data: str, folder: str, seed: int) -> tuple[float, float, float]:
    """Seconds of the command, microseconds of training for an image, and test accuracy."""
    every, steps = min(20, max(1, args.steps // 3)), min(args.steps, IMAGES // BATCH)
    command = [sys.executable, "-m", "src.train", "--config", "configs/experiment/cifar10_resnet.yaml"]
    command += ["--data.data_dir", data, "--data.cache_dir", f"{folder}/cache", "--run_dir", f"{folder}/run"]
    command += ["--trainer.max_epochs", str(args.epochs), "--trainer.check_val_every_n_epoch", str(args.epochs)]
    command += ["--trainer.limit_train_batches", str(steps), "--data.batch_size", str(min(BATCH, args.batch_size))]
    command += ["--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", str(every)]
    command += ["--seed_everything", str(seed)]
    seconds, _ = timed(command, env=threads(args.threads))
    with open(f"{folder}/run/metrics.csv") as f:
        each = [float(row["perf/step_sec"]) for row in csv.DictReader(f) if row.get("perf/step_sec")]
    us = statistics.mean(each) / min(BATCH, args.batch_size) * 1e6
    return seconds, us, json.loads(Path(folder, "run/summary.json").read_text())["test/acc"]


def port(args: argparse.Namespace, data: str, seed: int) -> tuple[float, float, float]:
    command = [sys.executable, str(PEER), "--data_dir", data, "--seed", str(seed), "--steps", str(args.steps)]
    seconds, output = timed(command, env=threads(args.threads))
    found = json.loads(output.splitlines()[-1])
    return seconds, found["us"], found["acc"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1000, help="of ours in an epoch, of the port in all, at most")
    parser.add_argument("--epochs", type=int, default=10, help="of ours; the port has 9.9")
    parser.add_argument("--batch_size", type=int, default=BATCH, help="of ours")
    parser.add_argument("--archive", required=True, help="of cifar10/train/CLASS/*.jpg and cifar10/test/CLASS/*.jpg")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names of the files that are taken")
    parser.add_argument("--threads", type=int, default=1, help="of each side")
    args = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {OURS: [], PORT: []}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        pattern = ["--wildcards", f"*/{args.only}.jpg"]
        subprocess.run(["tar", "xf", args.archive, "-C", folder, *pattern], check=True)
        data = f"{folder}/cifar10"
        for seed in range(args.repeats):
            with tempfile.TemporaryDirectory() as run:
                ours, other = pool.submit(train, args, data, run, seed), pool.submit(port, args, data, seed)
                found[OURS].append(ours.result())
                found[PORT].append(other.result())
    for i, (what, digits) in enumerate((("whole command, s", 1), ("training, us an image", 0), ("test accuracy", 4))):
        print(f"\n{table({name: [row[i] for row in rows] for name, rows in found.items()}, OURS, what, digits)}")
    print(f"\n{args.threads} threads a side, both at a time; {conditions(args.repeats)}")


if __name__ == "__main__":
    main()


# end
