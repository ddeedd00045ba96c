# kind: images
"""MNIST's test to 0.99 with the example's layers: the whole command, beside what peers take for their ten epochs.

    python -m benchmarks.mnist_99 --repeats 5 --steps 421 --data_dir DIR --keras PYTHON --lht PATH

src.train  configs/experiment/mnist_cnn_fast.yaml, another seed each time. The data are prepared by a first command,
           whose time is told apart
Keras      ten epochs of `model.fit`, batch 128, Adam as it comes (benchmarks/peers/mnist_keras.py), with an interpreter
           that has it
lightning-hydra-template
           its own `src/train.py` from a checkout, with this network in place of its own, all else as it comes: ten
           epochs, batch 128, Adam. `--lht_python` names an interpreter that has what it needs. torch since 2.6 does
           not load its checkpoints, with which it tests, but where TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set, as here

Sides that are not named are left out. The settings of the experiment were chosen on val, never on test. Both peers
are told with what they reach after ten epochs: that is what their time is for.
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import torch

from benchmarks.side_by_side import Times, conditions, in_turn, picture, spread, table, threads, timed

PEERS = Path(__file__).parent / "peers"
OURS, KERAS, LHT = "src.train", "Keras", "lightning-hydra-template"
OWN_KEYS = ("input_size", "lin1_size", "lin2_size", "lin3_size", "output_size")  # of lht's own network
Found = tuple[float, float]  # seconds of the whole command, test accuracy


def train(args: argparse.Namespace, seed: int, cache: str) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "src.train", "--config", "configs/experiment/mnist_cnn_fast.yaml"]
        command += ["--data.data_dir", args.data_dir, "--data.cache_dir", cache, "--seed_everything", str(seed)]
        command += ["--trainer.limit_train_batches", str(args.steps), "--trainer.accelerator", "cpu"]
        if args.steps < 421:  # Keras' val and test are shortened, too
            command += [f"--trainer.limit_{split}_batches={min(args.steps, 46)}" for split in ("val", "test")]
        seconds, _ = timed([*command, "--run_dir", f"{folder}/run"], env=threads(args.threads))
        return seconds, json.loads(Path(folder, "run/summary.json").read_text())["test/acc"]


def keras(args: argparse.Namespace, seed: int) -> Found:
    command = [args.keras, str(PEERS / "mnist_keras.py"), "--data_dir", args.data_dir, "--epochs", "10"]
    command += ["--seed", str(seed), "--limit", str(min(54_000, args.steps * 128))]
    seconds, output = timed(command, env=threads(args.threads))
    return seconds, json.loads(output.splitlines()[-1])["acc"]


def hydra_template(args: argparse.Namespace, seed: int) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        command = [args.lht_python, "src/train.py", "trainer=cpu", f"data.data_dir={args.data_dir}/", f"seed={seed}"]
        command += ["model.net._target_=mnist_net.Net", *(f"~model.net.{key}" for key in OWN_KEYS)]
        command += [f"hydra.run.dir={folder}"]
        command += [f"+trainer.limit_train_batches={args.steps}"] if args.steps < 421 else []
        env = threads(args.threads) | {
            "PYTHONPATH": str(PEERS),
            "COLUMNS": "200",
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
        }
        seconds, output = timed(command, env=env, cwd=args.lht)
        return seconds, float(re.findall(r"test/acc\W+([\d.]+)", output)[-1])


def measure(args: argparse.Namespace, cache: str) -> tuple[Times, Times]:
    """Seconds and accuracies of each repeat."""
    sides = {OURS: lambda seed: train(args, seed, cache)}
    if args.keras:
        sides[KERAS] = lambda seed: keras(args, seed)
    if args.lht:
        sides[LHT] = lambda seed: hydra_template(args, seed)
    accuracies = defaultdict(list)

    def seconds(name: str, seed: int) -> float:
        taken, accuracy = sides[name](seed)
        accuracies[name].append(accuracy)
        return taken

    called = {name: lambda seed, name=name: seconds(name, seed) for name in sides}
    return in_turn(called, args.repeats, warm_up=0), accuracies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=421, help="of an epoch, at most")
    parser.add_argument("--data_dir", required=True, help="that holds MNIST/raw")
    parser.add_argument("--keras", metavar="PYTHON", help="an interpreter that has Keras")
    parser.add_argument("--lht", metavar="PATH", help="a checkout of lightning-hydra-template")
    parser.add_argument("--lht_python", metavar="PYTHON", default=sys.executable, help="an interpreter for it")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--picture", type=Path, help="where to draw it")
    args = parser.parse_args()
    args.data_dir = str(Path(args.data_dir).resolve())
    for name in ("keras", "lht"):
        if not getattr(args, name):
            print(f"without {name}: --{name} names it")
    with tempfile.TemporaryDirectory() as cache:
        first, _ = train(args, 0, cache)
        times, accuracies = measure(args, cache)
    print(f"\n{table(times, OURS, 'whole command, s')}\n")
    for name, found in accuracies.items():
        print(f"{name}: test accuracy {statistics.mean(found):.4f}, {spread(found, 4)}")
    print(f"{OURS}, the first command, which prepares the data: {first:.1f} s")
    print(f"{args.threads} threads; {conditions(args.repeats)}")
    if args.picture:
        picture(times, args.picture, "MNIST: to 0.99, and peers' ten epochs, whole command", "seconds")


if __name__ == "__main__":
    main()


# end
