"""Write what a trained model predicts to a file.

    python -m src.predict --run_dir logs/digits_cnn/2026-01-31_12-00-00                     # its test split
    python -m src.predict --run_dir logs/digits_cnn/2026-01-31_12-00-00 photos --top_k 3    # a folder, a file
    python -m src.predict --run_dir logs/flats/first - --output - < new.csv                 # standard input and output
    python -m src.predict --run_dir logs/pets/2026-01-31_12-00-00 --data.data_dir new       # a split of other data

What to predict stands before the keys of the config. Each row has what tells a sample (its file, a column of the table,
its stamp, or else its place), in a split its target, and the prediction: a class with the probability of each, or
--top_k of them; a number in the target's own unit, with its quantiles if the model has some; the perplexity of a text,
and what may come next. The file is CSV, Parquet or JSON lines, by its ending; by default predictions.csv in the run
folder, or predictions_NAME.csv of other data. What cannot be read is left out and named, and the exit code is 3.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, redirect_stdout
from itertools import chain, islice
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow
from pyarrow import csv, parquet
from rich.console import Console
from rich.progress import track

from src.config.trained import load_model, other_data, report_other_data, run_parser, run_request, unlimited
from src.run.command import command
from src.run.errors import ConfigError, DataError
from src.run.terminal import PLAIN, rank_zero_print

ENDINGS = (".csv", ".parquet", ".jsonl", "-")


@command
def main(args: Sequence[str]) -> int:
    parser = run_parser("predict", __doc__)
    parser.set_defaults(input=None)
    parser.usage = "%(prog)s --run_dir DIR [INPUT] [--KEY VALUE ...]"
    parser.add_argument("--text", help="a text to predict, in place of a file")
    parser.add_argument("--top_k", type=int, metavar="K", help="the K likeliest classes, in place of all")
    parser.add_argument("--output", metavar="FILE", help="a .csv, .parquet or .jsonl file, or - for CSV on stdout")
    request = run_request(parser, args)
    options = request.options
    name = f"_{Path(options.input or 'text').stem}" if options.input or options.text else other_data(request)
    output = options.output or f"{options.run_dir}/predictions{name}.csv"
    if not output.endswith(ENDINGS):
        raise ConfigError(f"--output {output}: the name must end in .csv or .parquet or .jsonl")
    with redirect_stdout(sys.stderr if output == "-" else sys.stdout):
        predict(request, Path(output))
    return 0


def predict(request: Any, output: Path) -> None:
    from src.data.report import Cleaning
    from src.models.answers import answers

    options, cleaning = request.options, Cleaning("skip")
    raw: Any = [options.text] if options.text else Path(options.input) if options.input else None
    experiment, model = load_model(request, **unlimited(request))
    if "predict" not in model.uses and raw is None:
        other = " or ".join(f"python -m src.{name}" for name in model.uses or ("evaluate",))
        raise ConfigError(f"{options.run_dir}: {type(model).__name__} predicts no rows -> {other}")
    if experiment.trainer.world_size > 1:
        raise ConfigError("trainer.devices: predictions are made by one process -> leave it out")
    model.data.trainer = experiment.trainer
    model.to(experiment.trainer.strategy.root_device)
    samples = model.data.samples_of(raw, cleaning) if raw else of_split(request, model.data)
    found = answers(model, samples, cleaning, options.top_k, targets=raw is None)
    first = next(found)
    console, rest = Console(stderr=True, **PLAIN), chain([first], found)
    shown = track(rest, "predicting", console=console, transient=True, disable=not console.is_terminal)
    place = output if output.suffix else "standard output"
    rank_zero_print(f"{write(shown, first.schema, output)} predictions: {place}")
    for one in cleaning.removed:
        rank_zero_print(": ".join(["left out", *filter(None, (one["file"], one["reason"], one["detail"]))]))
    if cleaning.skipped:
        raise DataError(f"{cleaning.skipped:,} of {cleaning.came_in:,} are unusable -> mend them; {place} has the rest")


def of_split(request: Any, data: Any) -> Iterator[Any]:
    """The samples of a split of the run's own data, or of other data."""
    data.predict_split = request.options.split
    data.prepare_data()
    data.setup("predict")
    data.adopt(data.fitted)
    report_other_data(request, data.report)
    loader, limit = data.predict_dataloader(), data.trainer.limit_predict_batches
    for batch in islice(loader, limit if isinstance(limit, int) else int(limit * len(loader))):
        yield data.keys(data.predict_split, batch["index"][batch["index"] >= 0].numpy()), batch


def write(found: Any, schema: pyarrow.Schema, output: Path) -> int:
    """Write what is found as it comes, to a file whole or not at all; gives the number of rows."""
    rows, tmp, ending = 0, output.with_name(output.name + ".tmp"), output.suffix
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(tmp, "wb") if ending else os.fdopen(os.dup(1), "wb") as sink, ExitStack() as stack:
            kind = parquet.ParquetWriter if ending == ".parquet" else csv.CSVWriter
            writer = stack.enter_context(kind(sink, schema)) if ending != ".jsonl" else None
            for rows_found in found:
                writer.write_table(rows_found) if writer else pl.DataFrame(rows_found).write_ndjson(sink)
                rows += rows_found.num_rows
        tmp.rename(output) if ending else None
    finally:
        tmp.unlink(missing_ok=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
