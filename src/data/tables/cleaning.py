"""Rows that cannot be used, or are there twice."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from src.data.columns import Column
from src.data.delimited import ROW, Format, blocks, place
from src.data.report import SPLITS, Cleaning
from src.data.tables.splitting import TEST
from src.run.errors import DataError

WHOLE = r"^([-+]?)0*(\d+)(?:\.0+)?$"
FILE = "\0file"  # the column that says which of the files a row is from
MANY = 0.9  # share of the rows in which a column's values differ, so that two equal rows are no coincidence


@dataclass
class Table:
    """Rows of files, their columns, and what is left out of them."""

    frame: pl.DataFrame  # numbers float64, dates, else text; ROW and FILE say where a row is from
    columns: list[Column]
    files: list[Path]
    cleaning: Cleaning
    how: Format

    def __len__(self) -> int:
        return len(self.frame)

    def place(self, row: int) -> str:
        return place(self.files[self.frame[FILE][row]], self.frame[ROW][row])

    def leave_out(self, bad: np.ndarray, what: str, hint: str, name: str = "") -> None:
        """Take down rows that cannot be used, with their value in the column `name`."""
        for row in np.flatnonzero(bad).tolist():
            self.cleaning.root = self.files[self.frame[FILE][row]].parent
            self.cleaning.skip("", self.place(row), what + (f" {self.frame[name][row]!r}" if name else ""), hint)

    def usable(self, target: str, split_by: str | None, least: int) -> "Table":
        """The rows that have a target, can be put into a split, and are of a class with at least so many rows."""
        bad = self.frame[target].is_null().to_numpy().copy()
        for word, rows in self.words(target, bad).items():
            hint = f"fill it in, or data.present: [{word}] if it is a value" if word else "fill it in"
            self.leave_out(rows, f"no target: column {target} is {repr(word) if word else 'empty'}", hint)
        if split_by:
            lacks = (self.frame[split_by].is_null() & (self.frame[FILE] == 0)).to_numpy() & ~bad
            self.leave_out(lacks, f"no split: column {split_by} is empty", "fill it in, or split otherwise")
            bad |= lacks
        if least > 1:
            few = self.frame.select(pl.len().over(target) < least).to_series().to_numpy() & ~bad
            hint = "give that class more rows, or leave it out"
            self.leave_out(few, f"in fewer than {least} rows: column {target} is", hint, target)
            bad |= few
        self.cleaning.check()
        return replace(self, frame=self.frame.filter(~bad)) if bad.any() else self

    def words(self, name: str, rows: np.ndarray) -> dict[str, np.ndarray]:
        """What stands in a column where it has no value, each word with its rows."""
        found = np.full(len(self), "", object)
        for i, file in enumerate(self.files):
            here = rows & (self.frame[FILE] == i).to_numpy()
            if here.any() and file.is_file():
                raw = (b.select(ROW, pl.col(name).cast(pl.String)) for b in blocks(file, self.how, Cleaning("skip")))
                wanted = self.frame.filter(here).select(ROW).join(pl.concat(raw), ROW, "left", maintain_order="left")
                found[here] = wanted[name].str.strip_chars().fill_null("").to_list()
        return {word: rows & (found == word) for word in dict.fromkeys(found[rows])}

    def rows_of(self, split: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of each split; raises DataError where there are none."""
        rows = {name: np.flatnonzero(split == i) for i, name in enumerate(SPLITS)}
        if empty := [name for name in rows if not len(rows[name])]:
            gone = "".join(f", {n:,} {reason}" for reason, n in self.cleaning.counts.items())
            raise DataError(f"{len(self):,} rows{gone}: {empty[0]} is empty -> give more rows, or split otherwise")
        return rows

    def without_copies(self, split: np.ndarray) -> np.ndarray:
        """The splits [N] with -1 for rows of train and val that are there again: test keeps all, val what test has
        not. Where no column is nearly unique, equal rows can be a coincidence and stay."""
        compared = [c["name"] for c in self.columns if c["kind"] not in ("id", "empty")]
        hashes = self.frame.select(compared).hash_rows().to_numpy()
        order = np.lexsort((-split, hashes))  # of equal rows those of test come first, train's last; else as they stand
        is_first = np.r_[True, np.diff(hashes[order]) != 0]
        first = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]  # of the equal rows
        again = ~is_first & (split[order] != TEST)
        rows, others = order[again], first[again]
        if not len(rows):
            return split
        if max(self.frame[name].n_unique() for name in compared) < MANY * is_first.sum():
            self.cleaning.notes.append(f"{len(rows):,} rows are equal to others, which can be coincidence: they stay")
            return split
        for row, other in zip(rows.tolist(), others.tolist(), strict=True):
            reason = "duplicate" if split[other] == split[row] else f"also in {SPLITS[split[other]]}"
            self.cleaning.remove(SPLITS[split[row]], self.place(row), reason, self.place(other))
        out = split.copy()
        out[rows] = -1
        return out


def as_known(values: pl.Series, known: list[str], what: str, invalid: str) -> pl.Series:
    """Categories of another file as those that are known: the same whole number may be written in another way, as 1.0
    or 01; raises DataError where none is known, and these may not be `skip`ped."""
    plain = pl.Series(known, dtype=pl.String).str.replace(WHOLE, "$1$2")
    spelled = dict(zip(plain, known, strict=True)) if plain.n_unique() == len(known) else {}
    found = values.zip_with(values.is_in(known), values.str.replace(WHOLE, "$1$2").replace(spelled))
    if invalid == "error" and values.count() and not found.is_in(known).any():
        what = f"{what}: column {values.name} has no value that train has: {values.drop_nulls()[0]!r}"
        raise DataError(
            f"{what}, not {', '.join(map(repr, known[:5]))} -> write them as in train, or --data.invalid skip"
        )
    return found


def key_array(values: pl.Series) -> np.ndarray:
    """Whole numbers as such, all else as text."""
    numbers = values.cast(pl.Int64, strict=False)
    if numbers.cast(pl.String).equals(values.cast(pl.String)) and not numbers.null_count():
        return numbers.to_numpy()
    return np.array([v.encode() for v in values.cast(pl.String).fill_null("")])
