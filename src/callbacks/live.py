"""Curves that grow in a notebook while a model trains."""

import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback

from src.loggers.curves import curves
from src.loggers.metrics_csv import read_curves
from src.run.ledger import LEDGER

SHARE = 0.05  # of the time that drawing may take


def live_curves(run_dir: Path) -> list[Callback]:
    """A callback that draws the metrics at validations, in place of what it drew before, where a kernel of IPython runs
    this; else none."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if not hasattr(shell, "kernel"):
        return []
    shown: Any = None
    t_next = 0.0

    def draw(trainer: Trainer, *_: Any) -> None:
        nonlocal shown, t_next
        metrics = read_curves(run_dir, ("train/", "val/"))
        if trainer.sanity_checking or not metrics or (time.monotonic() < t_next and trainer.state.fn == "fit"):
            return
        from IPython.display import Image, display

        began, png = time.monotonic(), BytesIO()
        with LEDGER.within("pictures"):
            curves({"": [metrics]}).savefig(png, format="png")
            image = Image(png.getvalue())
            shown = display(image, display_id=True) if shown is None else shown.update(image) or shown
        t_next = time.monotonic() + (time.monotonic() - began) / SHARE

    return [LambdaCallback(on_validation_end=draw, on_test_end=draw)]
