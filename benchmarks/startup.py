# kind: images
"""From the start of a process to its first optimizer step, and to its end, against loading Lightning alone.

    python -m benchmarks.startup --repeats 5 --steps 20

`python -c "import lightning.pytorch"` and `python -m src.train` on the digits, in turn; the second has the ledger of
its run. Without W&B.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.side_by_side import conditions, in_turn, picture, seconds_of, table

LOADING = "import lightning.pytorch"
BEFORE = ("start", "imports", "config", "wandb", "build", "data", "plan", "data_wait", "first_step", "validation")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--config", default="configs/experiment/digits_cnn.yaml")
    parser.add_argument("--picture", type=Path, help="where to draw it")
    args = parser.parse_args()
    env = {**os.environ, "WANDB_MODE": "disabled"}
    first_step, parts = [], []

    def lightning(i):
        return seconds_of([sys.executable, "-c", LOADING], env=env)

    def train(i):
        with tempfile.TemporaryDirectory() as folder:
            flags = ["--trainer.max_steps", str(args.steps), "--run_dir", f"{folder}/run"]
            whole = seconds_of([sys.executable, "-m", "src.train", "--config", args.config, *flags], env=env)
            ledger = json.loads(Path(f"{folder}/run/summary.json").read_text())["ledger"]
        first_step.append(sum(ledger.get(part, 0) for part in BEFORE))
        parts.append({**ledger, "after it": whole - sum(ledger.values())})
        return whole

    times = in_turn({LOADING: lightning, f"src.train, {args.steps} steps": train}, args.repeats)
    times["src.train to its first step"] = first_step[-args.repeats :]
    print(f"{args.config}; {conditions(args.repeats)}\n\n{table(times, LOADING, 's')}\n")
    last = sorted(parts[-1].items(), key=lambda part: -part[1])
    print("the last run, s: " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in last if seconds > 0.02))
    if args.picture:
        picture(times, args.picture, f"Start-up, {args.config}", "seconds")


if __name__ == "__main__":
    main()


# end
