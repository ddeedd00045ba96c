"""Leyden: training with PyTorch Lightning. `load_run(path)` gives the trained model of a run."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from src.load import load_run

__all__ = ["load_run"]

if find_spec("jsonargparse") is None:
    raise SystemExit("error: this Python lacks what requirements.lock lists -> make install; take .venv/bin/python")


def __getattr__(name: str) -> Any:
    # Imported on first use: a config with a typo must be refused before torch is loaded, which takes seconds.
    if name == "load_run":
        from src.load import load_run

        return load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
