"""Write a trained model's predictions to a file.

    python -m src.predict --run_dir logs/digits_cnn/2026-01-31_12-00-00
    python -m src.predict --run_dir logs/digits_cnn/2026-01-31_12-00-00 --output predictions.parquet --split val
    python -m src.predict --run_dir logs/pets/2026-01-31_12-00-00 --data.data_dir new   # samples without classes, too

Each row has what tells a sample (its file, a column of the table, its stamp, or else its place in the split), its
target if it has one, and the prediction: a class with the probability of each, or a number in the target's own unit,
with its quantiles if the model has some. The file is CSV or Parquet, by its ending; by default predictions.csv in the
run folder, or predictions_NAME.csv of other data.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import csv, parquet

from src.config.trained import other_data, report_other_data, run_parser, run_request, trained
from src.run.command import command
from src.run.errors import ConfigError
from src.run.terminal import rank_zero_print


@command
def main(args: Sequence[str]) -> int:
    parser = run_parser("predict", __doc__)
    parser.add_argument("--output", metavar="FILE", help="a .csv or .parquet file")
    request = run_request(parser, args)
    options = request.options
    output = Path(options.output or Path(options.run_dir) / f"predictions{other_data(request)}.csv")
    if output.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"--output {output}: the name must end in .csv or .parquet")
    experiment, path = trained(request)
    if "predict" not in experiment.model.uses:
        other = " or ".join(f"python -m src.{name}" for name in experiment.model.uses or ("evaluate",))
        raise ConfigError(f"{options.run_dir}: {type(experiment.model).__name__} predicts no rows -> {other}")
    if experiment.trainer.world_size > 1:
        raise ConfigError("trainer.devices: predictions are made by one process -> leave it out")
    experiment.datamodule.predict_split = options.split
    batches = experiment.trainer.predict(experiment.model, datamodule=experiment.datamodule, ckpt_path=path)
    report_other_data(request, experiment.datamodule.report)
    table = to_table(batches, experiment.model, experiment.datamodule)
    output.parent.mkdir(parents=True, exist_ok=True)
    tmp = output.with_name(output.name + ".tmp")
    (csv.write_csv if output.suffix == ".csv" else parquet.write_table)(table, str(tmp))
    tmp.rename(output)
    rank_zero_print(f"{table.num_rows} predictions: {output}")
    return 0


def to_table(batches: Any, model: Any, data: Any) -> pyarrow.Table:
    """Rows of all batches, without padding: which samples they are, and what the model says of them."""
    import torch

    joined = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    real = joined["index"] >= 0
    outputs = {name: values[real] for name, values in joined.items()}
    known = data.keys(data.predict_split, outputs.pop("index").numpy())
    found = known | model.columns(outputs, data) | known  # what the data know themselves is exact
    return pyarrow.table({name: pyarrow.array(values, from_pandas=True) for name, values in found.items()})


if __name__ == "__main__":
    sys.exit(main())
