"""scikit-learn's tables, which need no download."""

from typing import Literal

import polars as pl
import sklearn.datasets

Dataset = Literal["diabetes", "breast_cancer", "wine"]


def dataset(name: Dataset) -> pl.DataFrame:
    """Diabetes (Efron et al., Least Angle Regression, 2004), breast cancer (Street et al., 1993) or wines (Forina et
    al., 1988), in units as they were measured; the column `target` is a number, or the name of a class."""
    raw = {"scaled": False} if name == "diabetes" else {}
    bunch = getattr(sklearn.datasets, f"load_{name}")(**raw)
    frame = pl.DataFrame(bunch.data, schema=[str(n).replace(" ", "_") for n in bunch.feature_names])
    if "target_names" not in bunch:
        return frame.with_columns(target=pl.Series(bunch.target, dtype=pl.Float64))
    names = [str(n) for n in bunch.target_names]
    return frame.with_columns(target=pl.Series([names[k] for k in bunch.target], dtype=pl.Enum(names)))
