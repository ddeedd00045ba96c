"""Processes that torchrun or SLURM has started: that they are as many as the config says, and that all of them come."""

import atexit
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from threading import Thread
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from torch import distributed

from src.run.errors import ConfigError, EnvironmentFault
from src.run.private import cluster_environment, forks_within_fit

JOIN = "JOIN_TIMEOUT_SEC"
COLLECTIVE = timedelta(minutes=30)  # torch's; data is prepared outside of it
POLL_SEC, AFTER_SEC = 0.2, 2.0  # until the other processes have read what the first one found


def check_launch(trainer: Trainer) -> None:
    """Raise ConfigError where processes were started otherwise than `devices`, `num_nodes` and `strategy` say."""
    env, strategy = cluster_environment(trainer), trainer.strategy
    if forks_within_fit(trainer):
        text = f"{type(strategy).__name__} would fork in the midst of the run, and know of no ranks before"
        raise ConfigError(f"trainer.strategy: {text} -> take ddp (on a TPU: trainer.devices 1)")
    asked, number = f"{trainer.num_devices} x {trainer.num_nodes}", trainer.num_devices * trainer.num_nodes
    if isinstance(env, (SLURMEnvironment, TorchElasticEnvironment)) and number != env.world_size():
        text = f"trainer.devices x trainer.num_nodes: {asked}, but {env.world_size()} processes were started"
        raise ConfigError(f"{text} -> set these to what torchrun or SLURM was told, and trainer.strategy to ddp")
    if type(env) is LightningEnvironment and "RANK" in os.environ:
        text = "RANK is set, but it is not torchrun nor SLURM that has started this process"
        raise ConfigError(f"{text} -> start by torchrun or srun (docs/scale.md), or unset RANK")
    if trainer.num_nodes > 1 and (env is None or not env.creates_processes_externally):
        text = f"trainer.num_nodes: {trainer.num_nodes}, but this process was started alone"
        raise ConfigError(f"{text} -> start by torchrun or srun (docs/scale.md)")


def meet(trainer: Trainer) -> None:
    """Connect the processes; the first one is where their address says.

    torchrun has seen to it that all are there. For others: raises EnvironmentFault, which names the ranks that did
    not come within `JOIN_TIMEOUT_SEC` seconds.
    """
    env = cluster_environment(trainer)
    if not isinstance(env, TorchElasticEnvironment):
        store = store_of_all(env.main_address, env.main_port, env.global_rank(), env.world_size())
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = getattr(trainer.strategy, "process_group_backend", None)
        backend = backend or distributed.get_default_backend_for_device(device)
        if backend == "nccl":
            atexit.register(distributed.destroy_process_group)
        distributed.init_process_group(
            backend, store=store, rank=env.global_rank(), world_size=env.world_size(), timeout=COLLECTIVE
        )
    trainer.strategy.setup_environment()  # what fit begins with


def store_of_all(host: str, port: int, rank: int, world_size: int) -> Any:
    """A store that all ranks have come to."""
    seconds = join_sec()
    end, what = time.monotonic() + seconds, f"set another time by {JOIN} ({seconds:g} s)"
    try:
        if rank > 0:
            wait_for_address(host, port, end, f"rank 0 is not at {host}:{port} -> check MASTER_ADDR and MASTER_PORT")
        own = "127.0.0.1" if rank == 0 else host  # the first one listens on all its addresses
        how: Any = {"is_master": rank == 0, "timeout": timedelta(seconds=seconds), "wait_for_workers": False}
        silent = f"what listens at {host}:{port} gives no answer -> set MASTER_PORT to another, or {what}"
        store = made_within(seconds, lambda: distributed.TCPStore(own, port, **how), silent)
        store.set(f"host/{rank}", socket.gethostname())
        store.add("came", 1)
        while rank == 0 and not store.check(["verdict"]):
            came = store.add("came", 0) == world_size
            if came or time.monotonic() > end:
                missing = [] if came else [n for n in range(world_size) if not store.check([f"host/{n}"])]
                store.set("verdict", shown(missing))
            time.sleep(0 if came else POLL_SEC)
        while not store.check(["verdict"]):
            if time.monotonic() > end + AFTER_SEC:
                raise EnvironmentFault(f"rank 0 at {host}:{port} gives no answer -> see its own line, or {what}")
            time.sleep(POLL_SEC)
        verdict = store.get("verdict").decode()
    except distributed.DistError as e:
        raise EnvironmentFault(unreachable(e, host, port)) from e
    if verdict:
        time.sleep(AFTER_SEC if rank == 0 else 0)
        raise EnvironmentFault(f"of {world_size} processes {verdict} did not come -> see what became of it, or {what}")
    store.set_timeout(COLLECTIVE)
    return store


def made_within(seconds: float, make: Callable[[], Any], late: str) -> Any:
    """What a function gives; to a peer that accepts and says nothing torch would listen for ever."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(make())
        except Exception as e:
            found.append(e)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        raise EnvironmentFault(late)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def wait_for_address(host: str, port: int, end: float, text: str) -> None:
    """Until something listens there; torch itself would print a page for each try."""
    while True:
        with suppress(OSError), socket.create_connection((host, port), timeout=2):
            return
        if time.monotonic() > end:
            raise EnvironmentFault(f"{text}, or set another time by {JOIN}")
        time.sleep(POLL_SEC)


def shown(missing: list[int]) -> str:
    """`rank 3`, `rank 3, 5, ...`; empty where none is missing."""
    text = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
    return f"rank {text}" if missing else ""


def unreachable(e: Exception, host: str, port: int) -> str:
    text = " ".join(str(e).split())[:300]
    if "EADDRINUSE" in text:
        return f"port {port} of this host is in use -> set MASTER_PORT to another, the same for all processes"
    return f"the processes cannot reach each other at {host}:{port}: {text} -> check MASTER_ADDR and MASTER_PORT"


def join_sec() -> float:
    text = os.environ.get(JOIN, "300")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise ConfigError(f"{JOIN}: {text} -> give seconds, such as 300")
    return seconds
