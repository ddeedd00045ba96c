"""Perceptrons on tables against gradient boosting and linear models of scikit-learn, on the same rows.

    python -m benchmarks.tables logs/diabetes_mlp logs/breast_cancer_mlp logs/wine_mlp

Takes folders of finished runs, one for each experiment with a run for each seed, as `make seeds` makes them. The peers
are fitted on train's rows and measured on test's: RidgeCV or LogisticRegression on scaled numbers and one-hot
categories, and HistGradientBoosting at its defaults on the columns as they are, with gaps and codes of categories.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import numpy as np
from sklearn.base import BaseEstimator, is_classifier
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import accuracy_score, root_mean_squared_error

from src.config.build import Experiment
from src.config.trained import run_parser, run_request
from src.data.delimited import ROW
from src.data.report import Cleaning
from src.data.tables.module import TableDataModule

Split = tuple[np.ndarray, np.ndarray]  # x, and targets in their own units


def data_of(run: Path, **options: object) -> TableDataModule:
    request = run_request(run_parser("tables", None), ["--run_dir", str(run)])
    request.config["data"]["init_args"] |= options
    experiment = Experiment(request)
    experiment.build(logger=False)
    experiment.datamodule.setup("fit")
    return experiment.datamodule


def encoded(data: TableDataModule) -> dict[str, Split]:
    """The numbers that a network would get."""
    mean, std = (data.statistics.get("targets", {"mean": [0], "std": [1]})[name][0] for name in ("mean", "std"))
    splits = {split: data.splits[split] for split in ("train", "test")}
    return {split: (one.x.numpy(), one.targets.numpy() * std + mean) for split, one in splits.items()}


def raw(data: TableDataModule) -> tuple[dict[str, Split], list[bool]]:
    """The columns as they are in the file, NaN where a value is missing, and which of them are categories."""
    features = {feature["column"]: feature for feature in data.statistics["features"]}
    table = data.read_all(Cleaning("skip"))
    columns = []
    for name, feature in features.items():
        values = table.frame[name]
        codes = (
            values.replace_strict(feature["categories"], range(len(feature["categories"])), default=None)
            if feature["kind"] == "category"
            else values.to_physical()
        )
        columns.append(codes.cast(float).to_numpy())
    place = {row: i for i, row in enumerate(table.frame[ROW])}
    rows = {split: [place[row] for row in data.stored(split, "rows")] for split in ("train", "test")}
    x, targets = np.stack(columns, 1), {split: y for split, (_, y) in encoded(data).items()}
    return {s: (x[i], targets[s]) for s, i in rows.items()}, [f["kind"] == "category" for f in features.values()]


def peers(run: Path) -> Iterator[tuple[str, float]]:
    """Their names and scores."""
    data = data_of(run)
    classes = "class_names" in data.statistics
    splits, categories = raw(data)
    boosting = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
    yield "HistGradientBoosting", score(boosting(categorical_features=categories, random_state=0), splits)
    linear = LogisticRegression(max_iter=10_000) if classes else RidgeCV(np.logspace(-3, 3, 13))
    yield type(linear).__name__, score(linear, encoded(data_of(run, scale="standard", one_hot=True)))


def score(model: BaseEstimator, splits: dict[str, Split]) -> float:
    model.fit(*splits["train"])
    x, targets = splits["test"]
    measure = accuracy_score if is_classifier(model) else root_mean_squared_error
    return float(measure(targets, model.predict(x)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    print("| experiment | metric | mean | spread | peer | its score | ratio |\n|---|---|---|---|---|---|---|")
    for folder in parser.parse_args().folders:
        runs = sorted(path.parent for path in folder.glob("*/summary.json"))
        summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
        metric = "test/rmse" if "test/rmse" in summaries[0] else "test/acc"
        found = [summary[metric] for summary in summaries]
        for name, peer in peers(runs[0]):
            spread = f"{min(found):.5g} to {max(found):.5g}, {len(found)} seeds"
            print(
                f"| `{folder.name}` | {metric} | {mean(found):.5g} | {spread} | {name} | {peer:.5g} "
                f"| {mean(found) / peer:.4f} |"
            )


if __name__ == "__main__":
    main()
