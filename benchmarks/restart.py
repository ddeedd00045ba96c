"""Seconds from the command to the first step of a run that was killed, and where they go.

python -m benchmarks.restart --repeats 5 --config configs/experiment/digits_cnn.yaml
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHILD = """
import json, os, sys, time
stamps = {"python": time.time()}
import torch; stamps["import torch"] = time.time()
import src.config.build; stamps["import the rest"] = time.time()
from src import train
from src.run import resume
from src.callbacks.checkpoints import Checkpoints
begin = resume.begin
def marked(*args):
    stamps["config, objects, W&B"] = time.time()
    start = begin(*args)
    stamps["find and verify a checkpoint"] = time.time()
    return start
def first_step(self, *_):
    stamps["data, weights, until the first step"] = time.time()
    print("STAMPS" + json.dumps(stamps), flush=True)
    os._exit(0)
resume.begin = marked
if sys.argv[1] == "stop":
    Checkpoints.on_train_batch_start = first_step
train.main(sys.argv[2:])
"""


def command(mode, config, run_dir):
    return [sys.executable, "-c", CHILD, mode, "--config", config, "--run_dir", str(run_dir)]


def killed_run(config, run_dir):
    child = subprocess.Popen([*command("go", config, run_dir), "--checkpoints.every_n_steps", "50"])
    while not (run_dir / "checkpoints/last.ckpt").exists():
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()


def restart(config, run_dir):
    t0 = time.time()
    flags = ["--checkpoints.every_n_steps", "50"]
    done = subprocess.run([*command("stop", config, run_dir), *flags], capture_output=True, text=True)
    assert "going on after" in done.stdout, done.stdout + done.stderr
    stamps = {"start": t0, **json.loads(done.stdout.split("STAMPS")[1])}
    names, times = list(stamps), list(stamps.values())
    return {name: times[i + 1] - times[i] for i, name in enumerate(names[1:])}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--config", default="configs/experiment/digits_cnn.yaml")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        killed_run(args.config, run_dir)
        rows = [restart(args.config, run_dir) for _ in range(args.repeats)]
    total = [sum(row.values()) for row in rows]
    for name in rows[0]:
        print(f"{name:40} {statistics.median(row[name] for row in rows):5.2f} s")
    spread = f"({min(total):.2f} to {max(total):.2f})"
    print(f"{'in all':40} {statistics.median(total):5.2f} s  {spread}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
