"""Tables: read, cleaned, split, made numbers and packed once; a batch of rows is one gather."""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from torch import Tensor

from src.data import cache
from src.data.columns import Column, check_names, read_columns
from src.data.delimited import ROW, blocks
from src.data.frame import FrameDataModule, require
from src.data.loader import Arrays, Batch
from src.data.module import State
from src.data.report import SPLITS, Cleaning
from src.data.tables import features, report, target
from src.data.tables import raw as outside
from src.data.tables.cleaning import FILE, Table, as_known, key_array
from src.data.tables.datasets import Dataset, dataset
from src.data.tables.features import Encoding, Feature, Scale
from src.data.tables.leaks import find_leaks
from src.data.tables.splitting import TEST, TRAIN, Split, divide
from src.run.errors import ConfigError, DataError

KINDS = ("number", "category", "date")  # of columns that features are made of


class TableDataModule(FrameDataModule):
    """Rows of a table; one column, a number or a class, is predicted from the others.

    Numbers are scaled, missing ones are 0 and have an indicator beside them if train lacks some, too. Dates become
    numbers: trend, season, weekday, hour. Categories come after the numbers, as codes for embeddings.

    Args:
        dataset: in place of a file, one of scikit-learn's that need no download; their target is called `target`.
        target: the column to predict. Text, and numbers of which there are two, are classes; `types` may say otherwise.
        split: how val and test are held out: at `random`; the same share of each class (`stratified`, the default for
            classes); whole groups, such as all rows of a patient (`group`); the last in `time`; or as a `column` says,
            with the words train, val, test. It is the same for each seed.
        split_by: the column that `group`, `time` or `column` goes by.
        val_frac: share of the rows held out for validation.
        test_frac: share of the rows held out for testing.
        val_file: a file with the same columns that is val.
        test_file: a file with the same columns that is test.
        row_key: one or more columns that name a row; they are written beside predictions and never learned from.
        scale: of numbers: `quantile`, by their rank in train to a normal distribution, or `standard`, by train's mean
            and standard deviation, outliers cut off.
        one_hot: give categories as numbers 0 and 1, to networks that take numbers only.
        min_count: categories that train has less often are put together, and with those it does not have.
        keep: columns to keep although they all but tell the target.
    """

    provides = ("in_features", "cardinalities", "num_classes")  # facts, which no config states
    sources = ("file", "dataset")

    def __init__(
        self,
        dataset: Dataset | None = None,
        target: str = "target",
        split: Split | None = None,
        split_by: str | None = None,
        val_frac: float = 0.1,
        test_frac: float = 0.2,
        val_file: str | None = None,
        test_file: str | None = None,
        row_key: str | list[str] | None = None,
        scale: Scale = "quantile",
        one_hot: bool = False,
        min_count: int = 5,
        keep: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not (val_frac > 0 and test_frac > 0 and val_frac + test_frac < 1):
            raise ConfigError(f"data.val_frac, data.test_frac: {val_frac}, {test_frac} leave a split empty")
        if (split in ("group", "time", "column")) != (split_by is not None):
            raise ConfigError(f"data.split: {split}, data.split_by: {split_by} -> group, time and column need a column")
        if dataset and (self.file or val_file or test_file):
            raise ConfigError(f"data.dataset: {dataset}, but a file is given, too -> name one of them")
        self.dataset, self.target, self.split, self.split_by = dataset, target, split, split_by
        self.shares = {"test": test_frac, "val": val_frac}
        self.files = {s: Path(f) for s, f in (("val", val_file), ("test", test_file)) if f}
        self.row_key = [row_key] if isinstance(row_key, str) else row_key or []
        if target in (split_by, *self.row_key):
            raise ConfigError(f"data.target: {target} is named as split_by or row_key, too -> name another column")
        self.scale, self.one_hot, self.min_count, self.keep = scale, one_hot, min_count, keep or []
        self.types = {**self.types, **dict.fromkeys(self.row_key, "id")}

    def depends_on(self) -> tuple[dict[str, Any], list[Path]]:
        code = [inspect.getsource(sys.modules[name]) for name in sorted(sys.modules) if name.startswith(__package__)]
        return {**self.reading(), "code": code}, [f for f in (self.file, *self.files.values()) if f]

    def load(self) -> pl.DataFrame:
        if self.dataset is None:
            raise ConfigError("no data is named -> give data.file or data.dataset")
        return dataset(self.dataset)

    def build(self, cleaning: Cleaning, fitted: State | None) -> cache.Prepared:
        if fitted:
            return self.build_other(cleaning, fitted["statistics"])
        table = self.read_all(cleaning)
        column = require("target", self.target, table.columns)
        is_class = target.is_class(table.frame[self.target], column, self.target in self.types)
        table, split = self.divided(table, is_class)
        goal = target.fit(table.frame[self.target].gather(table.rows_of(split)["train"]), column, is_class)
        targets = target.known(table, split, goal)
        rows = table.rows_of(split)
        made, left_out = self.fit_features(table, rows["train"], targets)
        cleaning.notes[:0] = report.decisions(table, made, left_out, goal.get("classes", []))
        columns = [c for c in table.columns if c["name"] in {*self.row_key, *(f["column"] for f in made)}]
        statistics = {"columns": columns, "target": goal, "features": made, "left_out": left_out}
        figures = {"left_out": left_out, "statistics": statistics} | report.figures(table, rows, made)
        return self.arrays(table, rows, targets, made), figures

    def build_other(self, cleaning: Cleaning, statistics: dict[str, Any]) -> cache.Prepared:
        """All rows of other data as `test`, its columns found by their names; it need not have the target."""
        goal, made, present = statistics["target"], statistics["features"], self.column_names()
        if self.target != (trained := goal["column"]["name"]):
            raise ConfigError(f"data.target: {self.target}, but the model predicts {trained} -> leave the option out")
        used = {goal["column"]["name"], *(feature["column"] for feature in made)}
        keys: list[Column] = [{"name": name, "kind": "id"} for name in self.row_key if name not in used]
        columns = [c for c in statistics["columns"] if c["name"] in used]
        columns += [c for c in (goal["column"], *keys) if c["name"] in present]
        if lacking := [c["name"] for c in keys if c not in columns]:
            cleaning.notes.append(f"no column {', '.join(lacking)}: rows have their number in the file")
        known = {*statistics["left_out"], *(c["name"] for c in columns)}
        if more := [name for name in present if name not in known]:
            cleaning.notes.append(f"columns that train has not: {report.listed(more)}")
        frame, _ = self.read(cleaning, columns)
        frame = self.as_trained(frame, made, self.invalid)
        if goal["column"] not in columns:
            frame = frame.with_columns(pl.lit(None, pl.Float64).alias(goal["column"]["name"]))
        table = self.as_table([frame], columns, cleaning)
        split = np.full(len(table), TEST, np.int8)
        targets = target.known(table, split, goal)
        rows = {"test": np.flatnonzero(split == TEST)}
        cleaning.notes += report.news(table, made)
        return self.arrays(table, rows, targets, made), report.figures(table, rows, made)

    def as_trained(self, frame: pl.DataFrame, made: list[Feature], invalid: str) -> pl.DataFrame:
        """With categories spelled as in train."""
        categories = {f["column"]: f["categories"] + f["rare"] for f in made if f["kind"] == "category"}
        what = str(self.file or self.dataset)
        return frame.with_columns(as_known(frame[name], words, what, invalid) for name, words in categories.items())

    def read_all(self, cleaning: Cleaning) -> Table:
        present = self.column_names()
        for option in ("row_key", "keep"):
            check_names(f"data.{option}", getattr(self, option), present)
        frame, columns = self.read(cleaning)
        frames = [frame]
        for split, file in self.files.items():
            if not file.is_file():
                raise DataError(f"data.{split}_file: {file} is not there -> name a CSV or Parquet file")
            there = self.column_names(file)
            if spare := [c for c in columns if c["name"] not in there and self.is_unused(c)]:
                cleaning.notes.append(f"{file.name} has no {report.listed(c['name'] for c in spare)}")
            columns = [c for c in columns if c not in spare]
            frames.append(read_columns(file, self.format, columns, cleaning))
        return self.as_table([f.select(*(c["name"] for c in columns), ROW) for f in frames], columns, cleaning)

    def is_unused(self, column: Column) -> bool:
        return column["kind"] not in KINDS and column["name"] not in (self.target, self.split_by, *self.row_key)

    def as_table(self, frames: list[pl.DataFrame], columns: list[Column], cleaning: Cleaning) -> Table:
        frame = pl.concat(f.with_columns(pl.lit(i, pl.Int8).alias(FILE)) for i, f in enumerate(frames))
        frame = frame.with_columns(pl.col([c["name"] for c in columns if c["kind"] == "category"]).cast(pl.String))
        first = self.file or Path(self.dataset or type(self).__name__)
        return Table(frame, columns, [first, *self.files.values()], cleaning, self.format)

    def column_names(self, file: Path | None = None) -> list[str]:
        source = file or self.file or self.load()
        if isinstance(source, pl.DataFrame) or not source.is_file():
            return source.columns if isinstance(source, pl.DataFrame) else []
        first = next(blocks(source, self.format, Cleaning("skip")), None)
        return [] if first is None else first.columns[:-1]

    def divided(self, table: Table, is_class: bool) -> tuple[Table, np.ndarray]:
        """The rows that can be used, and the split of each, int8 [N]; -1 where another row is equal to it."""
        how, by = self.split or ("stratified" if is_class else "random"), self.split_by
        if how == "stratified" and not is_class:
            hint = f"data.split random, or data.types: {{{self.target}: category}}"
            raise ConfigError(f"data.split: stratified, but {self.target} is a number -> {hint}")
        if by:
            kind = require("split_by", by, table.columns)["kind"]
            if wanted := {"time": "date", "column": "category"}.get(how):
                require("split_by", by, table.columns, "number" if (how, kind) == ("time", "number") else wanted)
        shares = {split: share for split, share in self.shares.items() if split not in self.files}
        table = table.usable(self.target, by, 1 + len(shares) if how == "stratified" else 1)
        split = np.array([TRAIN, *map(SPLITS.index, self.files)], np.int8)[table.frame[FILE].to_numpy()]
        whole = table.frame[FILE] == 0  # the file that is to be divided
        classes = table.frame[self.target].filter(whole).rank("dense").to_numpy() if is_class else None
        values = table.frame[by].filter(whole) if by else None
        split[whole.to_numpy()] = divide(how, values, classes, int(whole.sum()), shares)
        return table, table.without_copies(split)

    def fit_features(
        self, table: Table, train: np.ndarray, targets: np.ndarray
    ) -> tuple[list[Feature], dict[str, str]]:
        """The features, numbers first, and why other columns have none."""
        how = Encoding(self.scale, self.one_hot, self.min_count, trend=self.split != "time")
        left_out = {c["name"]: c["kind"] for c in table.columns if c["kind"] not in KINDS}
        left_out |= dict.fromkeys(self.row_key, "key") | {self.target: "target"}
        if self.split in ("group", "column"):
            left_out[str(self.split_by)] = str(self.split)
        columns = [c for c in table.columns if c["name"] not in left_out]
        made = [features.fit(table.frame[c["name"]].gather(train), c, how) for c in columns]
        none = [c for c, found in zip(columns, made, strict=True) if not found]
        left_out |= {c["name"]: "constant, or rare" if c["kind"] == "category" else "constant" for c in none}
        told = [c for c in columns if c["name"] not in (*left_out, *self.keep, self.split_by)]
        leaks = find_leaks(table.frame, told, train, targets)
        if leaks and self.invalid == "error":
            names, (name, how_well) = ", ".join(leaks), next(iter(leaks.items()))
            what = f"column {name} all but tells the target {self.target} ({how_well})"
            raise DataError(f"{what} -> data.drop: [{names}], or data.keep: [{names}] if it is known beforehand")
        left_out |= {name: f"tells the target, {how_well}" for name, how_well in leaks.items()}
        kept = [feature for found in made for feature in found if feature["column"] not in left_out]
        if not kept:
            raise DataError(f"no column is left to learn from: {left_out} -> give others, or data.types")
        return sorted(kept, key=features.is_coded), left_out

    def arrays(
        self, table: Table, rows: dict[str, np.ndarray], targets: np.ndarray, made: list[Feature]
    ) -> cache.Splits:
        arrays = {
            "x": features.encode(table.frame, made).numpy(),
            "targets": targets,
            "rows": table.frame[ROW].to_numpy(),
        }
        if targets.dtype == np.float32:
            arrays["numbers"] = table.frame[self.target].to_numpy()  # as they were
        arrays |= {f"key{i}": key_array(table.frame[n]) for i, n in enumerate(self.row_key) if n in table.frame}
        return {split: {name: cache.Rows(a, index) for name, a in arrays.items()} for split, index in rows.items()}

    def open(self, split: str, read: Callable[[str], Tensor]) -> Arrays:
        return Arrays(read("x"), read("targets"))

    def measure(self) -> tuple[dict[str, Any], dict[str, Any]]:
        statistics = self.report.pop("statistics", {})  # in checkpoints, not in data_report.json
        if self.fitted:
            return self.fitted["facts"], self.fitted["statistics"]
        goal, facts = statistics["target"], features.facts(statistics["features"])
        if "classes" in goal:
            return facts | {"num_classes": len(goal["classes"])}, statistics | {"class_names": goal["classes"]}
        targets = {"names": [goal["column"]["name"]], "mean": [goal["mean"]], "std": [goal["std"]]}
        return facts, statistics | {"targets": targets}

    def setup(self, stage: str) -> None:
        super().setup(stage)
        targets = self.splits["test"].targets
        lacking = int((targets.isnan() if targets.is_floating_point() else targets < 0).sum())
        if lacking and stage != "predict":
            what = f"{lacking:,} of {len(targets):,} rows have no {self.target}"
            raise DataError(f"{self.file}: {what} -> fill it in, or take python -m src.predict")

    def must_take(self) -> dict[str, str]:
        hint = "data.one_hot true gives the categories as numbers, or take src.networks.table_mlp.TableMLP"
        return {"cardinalities": hint} if self.facts["cardinalities"] else {}

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Codes stay float32: bfloat16 has no numbers between 256 and 258."""
        return batch if self.facts["cardinalities"] else super().on_after_batch_transfer(batch, dataloader_idx)

    def hint(self, message: str) -> str:
        if "torch.float" in message:
            return f"data.types: {{{self.target}: category}} for classes, or src.models.regression.Regression"
        number = f"data.types: {{{self.target}: number}} for a number"
        return f"{number}, or src.models.classification.Classification" if "torch.int" in message else ""

    def encode(self, frame: pl.DataFrame) -> Tensor:
        """Rows as a network gets them, from columns of numbers, dates and text as `read` gives them."""
        return features.encode(frame, self.statistics["features"])

    def without_number(self, number: int) -> tuple[str, dict[str, Any]]:
        """The column that a number of x is made of, and the options that leave it out."""
        name = [f["column"] for f in self.statistics["features"] for _ in features.names(f)][number]
        return name, {"drop": [*self.drop, name]}

    inputs, raw, from_raw, samples_of = outside.inputs, outside.raw, outside.from_raw, outside.samples_of

    def keys(self, split: str, index: np.ndarray) -> dict[str, Any]:
        """The key of each row, where that is not there its number in its file as spreadsheets show it."""
        files = {name: f"key{i}" for i, name in enumerate(self.row_key) if self.stored_file(split, f"key{i}").exists()}
        files |= {} if files and len(files) == len(self.row_key) else {"row": "rows"}
        found = {name: self.stored(split, file)[index] for name, file in files.items()}
        found = {n: [v.decode() or None for v in a] if a.dtype.kind == "S" else a for n, a in found.items()}
        return found | ({"target": self.stored(split, "numbers")[index]} if "targets" in self.statistics else {})

    def stored(self, split: str, name: str) -> np.ndarray:
        return np.load(self.stored_file(split, name), mmap_mode="r")

    def stored_file(self, split: str, name: str) -> Path:
        return Path(f"{self.folder}/{self.stored_as(split)}_{name}.npy")
