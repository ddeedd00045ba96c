"""Leyden: training with PyTorch Lightning. `load_run(path)` gives the trained model of a run."""

from importlib.util import find_spec

if find_spec("lightning") is None:
    raise SystemExit("error: this Python lacks what requirements.lock lists -> make install; take .venv/bin/python")

from src.config.trained import load_run

__all__ = ["load_run"]
