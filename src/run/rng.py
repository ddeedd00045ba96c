"""The state of all random generators, as a checkpoint keeps it."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer


def rng_state() -> dict[str, Any]:
    """The state of every generator that training may draw from, as tensors and plain data."""
    name, keys, *rest = np.random.get_state(legacy=True)
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    numpy = [name, np.asarray(keys).tolist(), *rest]
    return {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def gathered(state: dict[str, Any], trainer: Trainer) -> list[dict[str, Any]]:
    """The states of all processes, in the order of their ranks."""
    if trainer.world_size == 1:
        return [state]
    states: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(states, state)
    return states
