"""Write what a trained model predicts to a file.

    python -m src.predict --run_dir logs/digits_cnn/2026-01-31_12-00-00                       # of the run's test split
    python -m src.predict --run_dir logs/digits_cnn/2026-01-31_12-00-00 new.png               # of one file
    python -m src.predict --run_dir logs/digits_cnn/2026-01-31_12-00-00 photos --top_k 3 --output photos.parquet

What to predict stands before the keys of the config, if any: images as a file or a folder; rows as a CSV or Parquet
file; series likewise, for the forecasts that follow their last rows; a text as a file, a folder of them, or --text.
`-` is standard input: a CSV, or a file name, or text, in each line. It is read in parts, with what was fitted in
training. Without it a split is predicted, of the run's own data or of what keys name (--data.data_dir, --data.file).

Each row has what tells a sample, its target if it is of a split, and the prediction: a class with the probability of
each, or --top_k of them; a number in the target's own unit, with its quantiles if the model has some; of a text its
perplexity, and the tokens that may come next. The file is CSV, Parquet or JSON lines, by its ending, and CSV on standard
output (--output -); by default predictions.csv in the run folder, or predictions_NAME.csv of other data. What cannot
be read is left out and named at the end, with exit code 3.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, redirect_stdout
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
from pyarrow import csv, parquet
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from src.config.trained import (
    checkpoint_path,
    load_model,
    other_data,
    report_other_data,
    run_parser,
    run_request,
    trained_with,
    unlimited,
)
from src.run.command import command
from src.run.errors import ConfigError, DataError
from src.run.terminal import rank_zero_print

if TYPE_CHECKING:
    from src.models.answers import Samples

ENDINGS = (".csv", ".parquet", ".jsonl")


@command
def main(args: Sequence[str]) -> int:
    parser = run_parser("predict", __doc__)
    parser.set_defaults(input=None)
    parser.usage = "%(prog)s --run_dir DIR [INPUT] [--KEY VALUE ...]"
    parser.add_argument("--text", help="a text to predict, in place of a file")
    parser.add_argument("--top_k", type=int, metavar="K", help="the K likeliest classes, in place of all")
    parser.add_argument("--output", metavar="FILE", help="a .csv, .parquet or .jsonl file, or - for standard output")
    request = run_request(parser, args)
    options = request.options
    stem = (
        f"_{Path(options.input).stem or 'stdin'}" if options.input else "_text" if options.text else other_data(request)
    )
    output = Path(options.output or Path(options.run_dir) / f"predictions{stem}.csv")
    if str(output) != "-" and output.suffix not in ENDINGS:
        raise ConfigError(f"--output {output}: the name must end in {', '.join(ENDINGS)}")
    stdout = sys.stdout
    with redirect_stdout(sys.stderr if str(output) == "-" else stdout):  # where only predictions go
        return predict(request, output, stdout.buffer)


def predict(request: Any, output: Path, stdout: Any) -> int:
    from src.data.report import Cleaning
    from src.models.answers import answers, left_out

    options, cleaning = request.options, Cleaning("skip")
    experiment, model = load_model(request, **unlimited(request))
    if "predict" not in model.uses:
        other = " or ".join(f"python -m src.{name}" for name in model.uses or ("evaluate",))
        raise ConfigError(f"{options.run_dir}: {type(model).__name__} predicts no rows -> {other}")
    if experiment.trainer.world_size > 1:
        raise ConfigError("trainer.devices: predictions are made by one process -> leave it out")
    model.data.trainer = experiment.trainer
    model = experiment.trainer.precision_plugin.convert_module(model).to(experiment.trainer.strategy.root_device)
    raw = [options.text] if options.text is not None else options.input and Path(options.input)
    samples = of_split(request, experiment) if raw is None else model.data.samples_of(raw, cleaning)
    count = write(counted(answers(model, samples, cleaning, options.top_k, with_targets=raw is None)), output, stdout)
    rank_zero_print(f"{count} predictions: {output}")
    if cleaning.skipped:
        raise DataError(f"{left_out(cleaning)} -> mend or leave out; the others are in {output}")
    return 0


def of_split(request: Any, experiment: Any) -> "Samples":
    """The samples of a split, of the run's own data or of other data."""
    from src.run import checkpoint as files

    data, trainer = experiment.datamodule, experiment.trainer
    state = files.load(checkpoint_path(request), filled=False)[trained_with(request)]
    data.fitted, data.same_source, data.predict_split = state, not other_data(request), request.options.split
    data.prepare_data()
    data.setup("predict")
    data.adopt(state)
    report_other_data(request, data.report)
    loader, limit = data.predict_dataloader(), trainer.limit_predict_batches
    for batch in islice(loader, limit if isinstance(limit, int) else int(limit * len(loader))):
        yield data.keys(data.predict_split, batch["index"][batch["index"] >= 0].numpy()), batch


def counted(tables: Iterable[pyarrow.Table]) -> Iterator[pyarrow.Table]:
    """The same, with a line on a terminal that says how far they have come."""
    shown = Console(stderr=True, force_jupyter=False)
    columns = TextColumn("{task.completed:,.0f} predictions"), TextColumn("{task.speed:,.0f}/s"), TimeElapsedColumn()
    with Progress(*columns, console=shown, disable=not shown.is_terminal, transient=True) as bar:
        task = bar.add_task("")
        for table in tables:
            bar.advance(task, table.num_rows)
            yield table


def write(tables: Iterable[pyarrow.Table], output: Path, stdout: Any) -> int:
    """Write tables one after the other, to a file whole or not at all; gives the number of rows."""
    rows, add, tmp = 0, None, output.with_name(output.name + ".tmp")
    try:
        with ExitStack() as opened:
            for table in tables:
                if add is None:
                    output.parent.mkdir(parents=True, exist_ok=True)
                    sink = stdout if str(output) == "-" else opened.enter_context(open(tmp, "wb"))
                    add = writer(output.suffix, sink, table.schema, opened)
                add(table)
                rows += table.num_rows
        if str(output) != "-":
            tmp.rename(output)
    finally:
        tmp.unlink(missing_ok=True)
    return rows


def writer(ending: str, sink: Any, schema: pyarrow.Schema, opened: ExitStack) -> Callable[[pyarrow.Table], Any]:
    if ending == ".jsonl":
        import polars as pl

        return lambda table: pl.DataFrame(table).write_ndjson(sink)
    kind = parquet.ParquetWriter if ending == ".parquet" else csv.CSVWriter
    return opened.enter_context(kind(sink, schema)).write_table


if __name__ == "__main__":
    sys.exit(main())
