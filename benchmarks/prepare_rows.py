"""How long a large CSV takes to be prepared as a table, and how much memory.

    python -m benchmarks.prepare_rows --rows 10000000

Eight columns of numbers, one of categories and one of stamps are written to a file in a temporary folder. Another
process prepares them: reads, cleans, splits, scales and packs; its peak memory is told, with that of Python and the
libraries.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEP = 10**6  # rows that are generated at once


def generate(path: Path, rows: int) -> None:
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(0)
    with open(path, "wb") as f:
        for start in range(0, rows, STEP):
            count = min(STEP, rows - start)
            columns = {f"x{i}": np.round(rng.normal(size=count) * 10**i, 4) for i in range(8)}
            shops = rng.choice([f"shop {i}" for i in range(200)], count)
            stamps = pl.Series(np.arange(start, start + count) * 10**6).cast(pl.Datetime("us"))
            frame = pl.DataFrame({**columns, "shop": shops, "stamp": stamps})
            frame.write_csv(f, include_header=start == 0, datetime_format="%Y-%m-%d %H:%M:%S")


def prepare(path: Path) -> int:
    from src.data.tables.module import TableDataModule

    data = TableDataModule(file=str(path), target="x7", cache_dir=str(path.parent / "cache"))
    data.setup("fit")
    print({name: column["kind"] for name, column in data.report["columns"].items()})
    return sum(data.num_samples.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10**7)
    parser.add_argument("--file", type=Path, help="prepare this one, in this process")
    args = parser.parse_args()
    if args.file:
        t0 = time.perf_counter()
        rows = prepare(args.file)
        seconds, peak_gib = time.perf_counter() - t0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{rows:,} rows in {seconds:.1f} s, at most {peak_gib:.2f} GiB")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        generate(path, args.rows)
        print(f"a file of {path.stat().st_size / 2**30:.2f} GiB")
        subprocess.run([sys.executable, "-m", "benchmarks.prepare_rows", "--file", path], check=True)


if __name__ == "__main__":
    main()
