"""Write a trained model's predictions to a file.

    python -m src.predict --run_dir logs/digits_cnn/2026-01-31_12-00-00
    python -m src.predict --run_dir logs/digits_cnn/2026-01-31_12-00-00 --output predictions.parquet --split val

Each row has a sample's id (its place in the split), its target, the predicted class and each class's probability;
where samples have several labels, a target and a prediction for each. The file is CSV or Parquet, by its ending; by
default predictions.csv in the run folder.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import csv, parquet

from src.errors import ConfigError, EnvironmentFault
from src.load import checkpoint_path, run_parser, run_request
from src.run import run_command, say


def predict(args: Sequence[str]) -> int:
    parser = run_parser("predict", __doc__)
    parser.add_argument("--output", metavar="FILE", help="a .csv or .parquet file")
    request = run_request(parser, args)
    options = request.options
    output = Path(options.output or Path(options.run_dir) / "predictions.csv")
    if output.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"--output {output}: the name must end in .csv or .parquet")
    from src.cli import CLI

    cli = CLI(request)
    cli.build(logger=False)
    if "predict" not in cli.model.uses:
        other = " or ".join(f"python -m src.{command}" for command in cli.model.uses)
        raise ConfigError(f"{options.run_dir}: {type(cli.model).__name__} predicts no rows -> {other}")
    cli.datamodule.predict_split = options.split
    path = checkpoint_path(request, options.checkpoint)
    table = to_table(cli.trainer.predict(cli.model, datamodule=cli.datamodule, ckpt_path=path))
    write(table, output)
    say(f"{table.num_rows} predictions: {output}")
    return 0


def to_table(batches: Any) -> pyarrow.Table:
    """Rows of all batches, without padding."""
    import torch

    joined = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    real = joined["index"] >= 0
    index, targets, probabilities = (joined[name][real] for name in ("index", "targets", "probabilities"))
    if targets.ndim == 1:
        columns = {"id": index, "target": targets, "prediction": probabilities.argmax(1)}
    else:
        found = {"target": targets, "prediction": (probabilities > 0.5).long()}
        columns = {"id": index, **{f"{n}_{k}": of[:, k] for n, of in found.items() for k in range(of.shape[1])}}
    columns |= {f"probability_{k}": probabilities[:, k] for k in range(probabilities.shape[1])}
    return pyarrow.table({name: column.numpy() for name, column in columns.items()})


def write(table: pyarrow.Table, output: Path) -> None:
    """Whole or not at all."""
    tmp = output.with_name(output.name + ".tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        (csv.write_csv if output.suffix == ".csv" else parquet.write_table)(table, str(tmp))
        tmp.rename(output)
    except OSError as e:
        tmp.unlink(missing_ok=True)
        raise EnvironmentFault(f"--output {output}: {e.strerror or e} -> name another file") from e


def main(args: Sequence[str] | None = None) -> int:
    return run_command(predict, args)


if __name__ == "__main__":
    sys.exit(main())
