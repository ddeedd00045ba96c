"""Steps per second of an LSTM that forecasts a series, against the usual ways to write it in Lightning and in Keras.

    python -m benchmarks.lstm_forecaster --repeats 5 --steps 200
    python -m benchmarks.lstm_forecaster --repeats 5 --steps 200 --keras PYTHON    # an interpreter that has Keras

Seven columns of 17,420 rows as ETTh1 has, 96 steps to 24, one layer of LSTM with a linear layer on its last output,
Adam, squared error. Each side trains as a user would have it:

- `ours`: src.train's Trainer, model and data module with metrics, throughput, gradient norm, guard and checkpoints on,
  in float32, and in what `trainer.precision: auto` takes here, bfloat16 where the processor computes in it
- `Lightning`: a Dataset that slices one window, a DataLoader, a LightningModule that logs its loss, Trainer() as it
  comes, but for validation, which it has not, and its logger, which writes a CSV file
- `Keras`: timeseries_dataset_from_array, shuffled, with its targets, and fit(), with the threads of the others

A figure is the steps per second from step 20 on, so that no start-up and no compiling counts. The sides run in turn.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import warnings
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.in_process import Stopwatch, built
from benchmarks.side_by_side import conditions, in_turn, picture, table, threads
from benchmarks.windows import COLUMNS, ROWS, WINDOW, write

HORIZON, FIRST = 24, 20
PRECISIONS = {"ours": "32-true", "ours, precision auto": "auto"}
KERAS = """
import json, sys, time
import numpy as np, keras
args = json.loads(sys.argv[1])
window, horizon, hidden, batch = (args[name] for name in ("window", "horizon", "hidden", "batch"))
values = np.random.default_rng(0).normal(size=(args["rows"], args["columns"])).astype("float32")
targets = np.lib.stride_tricks.sliding_window_view(values[window:], horizon, axis=0).transpose(0, 2, 1)
data = keras.utils.timeseries_dataset_from_array(values[:-horizon], targets, window, batch_size=batch, shuffle=True)
model = keras.Sequential([
    keras.Input((window, args["columns"])), keras.layers.LSTM(hidden),
    keras.layers.Dense(horizon * args["columns"]), keras.layers.Reshape((horizon, args["columns"])),
])
model.compile("adam", "mse")
class Watch(keras.callbacks.Callback):
    done = 0
    def on_train_batch_end(self, batch, logs=None):
        self.done += 1
        if self.done == args["first"]: self.t0 = time.perf_counter()
        self.end = time.perf_counter()
watch = Watch()
model.fit(data.repeat().take(args["first"] + args["steps"]), callbacks=[watch])
print("STEPS", args["steps"] / (watch.end - watch.t0))
"""


class Slices(Dataset):
    def __init__(self, values):
        self.values = torch.tensor(values)

    def __len__(self):
        return len(self.values) - WINDOW - HORIZON + 1

    def __getitem__(self, index):
        middle = index + WINDOW
        return self.values[index:middle], self.values[middle : middle + HORIZON]


class Forecaster(LightningModule):
    def __init__(self, hidden):
        super().__init__()
        self.lstm = nn.LSTM(COLUMNS, hidden, batch_first=True)
        self.head = nn.Linear(hidden, HORIZON * COLUMNS)

    def training_step(self, batch, batch_idx):
        x, targets = batch
        outputs, _ = self.lstm(x)
        loss = F.mse_loss(self.head(outputs[:, -1]).view_as(targets), targets)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def usual(hidden, batch, steps, number):
    values = np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).astype("float32")
    watch = Stopwatch(FIRST)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        trainer = Trainer(max_steps=FIRST + steps, max_epochs=-1, callbacks=watch, logger=CSVLogger(folder))
        trainer.fit(Forecaster(hidden), DataLoader(Slices(values), batch, shuffle=True))
    return 1 / watch.seconds()


def ours(precision, hidden, batch, steps, number):
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        write(folder)
        options = {"file": f"{folder}/data.csv", "cache_dir": f"{folder}/cache", "dataset": "null", "batch_size": batch}
        options |= {"window": WINDOW, "horizon": HORIZON}
        flags = [f"--data.{name}={value}" for name, value in options.items()]
        flags += ["--model.network", "src.networks.series_rnn.SeriesRNN", "--model.network.dim", str(hidden)]
        flags += [
            "--trainer.max_epochs",
            "-1",
            "--trainer.max_steps",
            str(FIRST + steps),
            "--pictures.enabled",
            "false",
        ]
        flags += ["--trainer.limit_val_batches", "0", "--trainer.precision", precision]
        config = ["--config", "configs/experiment/seasons_linear.yaml", "--config", "configs/trainer/cpu.yaml"]
        watch = Stopwatch(FIRST)
        experiment = built([*config, *flags], folder, watch)
        experiment.trainer.fit(experiment.model, datamodule=experiment.datamodule)
    return 1 / watch.seconds()


def keras(python, hidden, batch, steps, number):
    """In a process of its own, with as many threads as the others."""
    args = {"window": WINDOW, "horizon": HORIZON, "rows": ROWS, "columns": COLUMNS, "hidden": hidden, "batch": batch}
    args |= {"steps": steps, "first": FIRST}
    command = [python, "-c", KERAS, json.dumps(args)]
    done = subprocess.run(command, env=threads(torch.get_num_threads()), capture_output=True, text=True)
    if "STEPS " not in done.stdout:
        sys.exit(f"{python}: {done.stderr[-2000:]}")
    return float(done.stdout.rpartition("STEPS ")[2])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--hidden", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--keras", metavar="PYTHON", help="an interpreter that has Keras")
    parser.add_argument("--picture", type=Path, help="where to draw it")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if not args.keras:
        print("Keras is left out: --keras PYTHON names an interpreter that has it.")
    drawn = {}
    for batch in args.batch_sizes:
        for hidden in args.hidden:
            how = {"hidden": hidden, "batch": batch, "steps": args.steps}
            sides = {name: partial(ours, precision, *how.values()) for name, precision in PRECISIONS.items()}
            sides["Lightning"] = partial(usual, *how.values())
            if args.keras:
                sides["Keras"] = partial(keras, args.keras, *how.values())
            rates = in_turn(sides, args.repeats, warm_up=0)
            print(f"\nbatch {batch}, {hidden} units\n\n{table(rates, 'ours', 'steps/s', 1)}", flush=True)
            drawn |= {f"{name}, batch {batch}, {hidden} units": found for name, found in rates.items()}
    print(f"\n{conditions(args.repeats)}, {torch.get_num_threads()} threads")
    if args.picture:
        picture(drawn, args.picture, "An LSTM forecaster: steps per second", "steps per second")


if __name__ == "__main__":
    main()
