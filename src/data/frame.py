"""What kinds of data share whose samples come from the columns of a file: reading, and figures of each column."""

import inspect
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from src.data import cells, delimited
from src.data.columns import Column, Kind, find_columns, read_columns
from src.data.delimited import Format, Source
from src.data.module import DataModule, PreparedDataModule
from src.data.report import SPLITS, Cleaning, total_variation
from src.run.errors import ConfigError, DataError, nearest
from src.run.figures import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS, SHOWN = 20, 16  # bars of a histogram, categories; columns that are drawn


class FrameDataModule(PreparedDataModule):
    """Base of the kinds whose samples come from columns.

    Args:
        file: a Parquet file (.parquet, .pq) or a CSV (any other ending) with the names of its columns in its first row.
        separator: between the fields of a CSV; by default found among comma, semicolon, tab and bar.
        decimal: the decimal mark of a CSV, by default a point; the other one, spaces and apostrophes may part
            thousands. Where `1,234` may be either, a run asks for it.
        encoding: of a CSV.
        skip_rows: rows of a CSV before the one with the names.
        date_format: of its dates, as in Python's strftime; by default one of some twenty that fits all of a column.
        missing: words, also numbers such as -999, that mean that there is no value, besides the usual such as `NA`.
        present: words that are values although they usually mean that there is none, such as a class called `None`.
        types: column -> what it is, where what is found is wrong: `number`, `category`, `date`, `text`, `id`.
        drop: columns to leave out.
    """

    sources: tuple[str, ...] = ("file",)

    def __init__(
        self,
        file: str | None = None,
        separator: str | None = None,
        decimal: Literal[".", ","] | None = None,
        encoding: str = "utf-8",
        skip_rows: int = 0,
        date_format: str | None = None,
        missing: list[str] | None = None,
        present: list[str] | None = None,
        types: dict[str, Kind] | None = None,
        drop: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if skip_rows < 0:
            raise ConfigError(f"data.skip_rows: {skip_rows} is less than 0 -> give the rows above the names")
        separator = "\t" if separator == r"\t" else separator
        if separator is not None and len(separator) != 1:
            raise ConfigError(f"data.separator: {separator!r} -> give one character")
        if date_format is not None and "%" not in date_format:
            raise ConfigError(f"data.date_format: {date_format} -> write it as Python does, such as %d.%m.%Y")
        try:
            "".encode(encoding)
        except LookupError as e:
            raise ConfigError(f"data.encoding: Python knows no encoding {encoding} -> such as utf-8 or cp1252") from e
        self.file = None if file is None else Path(file)
        words = tuple(missing or ()), tuple(present or ())
        self.format = Format(separator, decimal or ".", decimal is None, encoding, skip_rows, date_format, *words)
        self.types, self.drop = types or {}, drop or []

    def load(self) -> pl.DataFrame:
        """A data set of your own that is in no file; read as a Parquet file is."""
        raise ConfigError(f"{type(self).__name__}: no data is named -> give data.file")

    def read(self, cleaning: Cleaning, known: Iterable[Column] | None = None) -> tuple[pl.DataFrame, list[Column]]:
        """All usable rows, with their numbers in the column ROW, and what the columns are.

        Args:
            known: the columns that are wanted, of a trained model; by default all, as they are found to be.
        """
        source = self.load() if self.file is None else self.file
        if isinstance(source, Path) and not source.is_file():
            what = "is a folder" if source.is_dir() else "is not there"
            raise DataError(f"data.file: {source} {what} -> name a CSV or Parquet file")
        if known is None:
            columns = list(find_columns(source, self.format, self.types, self.drop).values())
            cleaning.notes += [f"{c['name']} ({c['kind']}): {c['note']}" for c in columns if "note" in c]
        else:
            columns = [c for c in known if c["name"] not in self.drop]
        return read_columns(source, self.format, columns, cleaning), columns

    def source_of(self, raw: Any) -> Source:
        """A file, standard input (`-`: a CSV) as one, or the frame that polars makes of one of another library."""
        try:
            if not isinstance(raw, (str, Path)):
                return pl.DataFrame(raw)
            if str(raw) != "-":
                return Path(raw).resolve(strict=True)
        except (TypeError, ValueError, OSError, pl.exceptions.PolarsError) as e:
            raise DataError(f"{type(raw).__name__} is no table: {e} -> give a CSV or Parquet file, or a frame") from e
        self.stdin = NamedTemporaryFile(suffix=".csv")  # lasts as long as this  # noqa: SIM115
        shutil.copyfileobj(sys.stdin.buffer, self.stdin)
        self.stdin.flush()
        return Path(self.stdin.name)

    def reading(self) -> dict[str, Any]:
        """For `depends_on`, besides files: all options, a subclass's own too, and the code that reads."""
        ours = vars(DataModule())
        options = {name: value for name, value in vars(self).items() if name not in ours}
        classes = [c for c in type(self).__mro__ if issubclass(c, FrameDataModule)]
        modules = {c.__module__ for c in classes} | {find_columns.__module__, cells.__name__, delimited.__name__}
        source = [inspect.getsource(sys.modules[name]) for name in sorted(modules)]
        return {**options, "source": source}

    def pictures(self) -> dict[str, "Figure"]:
        """How the values of each column are distributed in each split, and how many are missing."""
        return {"columns": draw_columns(self.report["columns"])} if self.report.get("columns") else {}


def require(name: str, given: str | None, columns: list[Column], kind: str | None = None) -> Column:
    """The column that an option names; raises DataError where there is none of that kind."""
    found = {c["name"]: c for c in columns}
    if given is None or given not in found:
        listed = ", ".join(list(found)[:12])
        what = "is not given" if given is None else f"there is no column {given}{nearest(given, found)}"
        raise DataError(f"data.{name}: {what} -> take one of {listed}")
    if kind and found[given]["kind"] != kind:
        what = f"data.{name}: column {given} is {found[given]['kind']}, not {kind}"
        raise DataError(f"{what} -> name another, or mend it with data.types: {{{given}: {kind}}}")
    return found[given]


def describe(parts: dict[str, pl.DataFrame], columns: Iterable[Column]) -> dict[str, Any]:
    """Figures of each column in each split, and the shift of val and test against train: of numbers the difference of
    means in train's standard deviations, of categories the total variation."""
    found = {c["name"]: describe_column({s: f[c["name"]] for s, f in parts.items()}, c) for c in columns}
    out: dict[str, Any] = {"columns": found}
    if "train" in parts:
        shifts = {
            split: {name: shift(one, split) for name, one in found.items()} for split in parts if split != "train"
        }
        out["shift"] = {split: {k: v for k, v in one.items() if v is not None} for split, one in shifts.items()}
    return out


def describe_column(values: dict[str, pl.Series], column: Column) -> dict[str, Any]:
    """Of one column: missing values, and a histogram over train's range (98 % of it) or its most frequent values."""
    first = values.get("train", next(iter(values.values())))
    out = {**column, "missing": {s: round(v.null_count() / max(1, len(v)), 4) for s, v in values.items()}}
    if column["kind"] == "number":
        edges = np.linspace(*(first.quantile(q) or 0 for q in (0.01, 0.99)), BINS + 1)  # type: ignore[call-overload]
        known = {s: v.drop_nulls().to_numpy() for s, v in values.items()}
        counts = {s: np.histogram(v.clip(edges[0], edges[-1]), edges)[0].tolist() for s, v in known.items()}
        means = {s: [float(v.mean()), float(v.std())] if len(v) else None for s, v in known.items()}
        out |= {"edges": edges.tolist(), "counts": counts, "mean_std": means}
    elif column["kind"] == "category":
        names = first.drop_nulls().value_counts(sort=True)[first.name][: BINS - 1].to_list()
        counts = {s: [int((v == name).sum()) for name in names] for s, v in values.items()}
        others = {s: len(v) - v.null_count() - sum(counts[s]) for s, v in values.items()}
        out |= {"values": [*names, "others"], "counts": {s: [*counts[s], others[s]] for s in counts}}
    elif column["kind"] == "date":
        out["from_to"] = {s: [str(v.min()), str(v.max())] for s, v in values.items()}
    return out


def shift(column: dict[str, Any], split: str) -> float | None:
    if column["kind"] == "category":
        counts = column["counts"]
        return round(total_variation(np.array(counts[split]), np.array(counts["train"])), 4)
    means = column.get("mean_std", {})
    if not (means.get(split) and means.get("train")):
        return None
    (mean, _), (train, std) = means[split], means["train"]
    return round((mean - train) / (std or 1), 4)


def draw_columns(columns: dict[str, dict[str, Any]]) -> "Figure":
    """A histogram for each column, a line for each split; in the title the share of missing values."""
    drawn = {name: one for name, one in columns.items() if "counts" in one}
    shown = dict(list(drawn.items())[:SHOWN])
    rows = max(1, -(-len(shown) // 4))
    fig = figure(12, 2.2 * rows)
    for axes, (name, one) in zip(fig.subplots(rows, 4, squeeze=False).flat, shown.items(), strict=False):
        at = np.arange(len(one["values"])) if "values" in one else np.array(one["edges"][:-1])
        for split in SPLITS:
            if counts := one["counts"].get(split):
                axes.step(at, np.array(counts) / max(1, sum(counts)), where="mid", label=split)
        missing = max(one["missing"].values())
        axes.set_title(name + (f" ({missing:.1%} missing)" if missing else ""), size=9, parse_math=False)
        if "values" in one:
            axes.set_xticks(at, [str(v)[:10] for v in one["values"]], rotation=60, size=6, parse_math=False)
        axes.tick_params(labelsize=6)
    for axes in fig.axes[len(shown) :]:
        axes.set_axis_off()
    if fig.axes:
        fig.axes[0].legend(fontsize=6)
    if len(drawn) > SHOWN:
        fig.supxlabel(f"{SHOWN} of {len(drawn)} columns", size=8)
    return fig
