"""Runs in Weights & Biases.

wandb in the training process only records, in the run folder; a second process sends the record to the server as it
grows. So a server that hangs, fails or goes away, and whatever it answers, can neither hold up training nor spoil the
record, and what was not sent can be sent later.
"""

import atexit
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import WandbLogger

from src.run.files import ROOT
from src.run.redact import redact, secrets_in
from src.run.terminal import rank_zero_print

PROBE_SEC, FINISH_SEC, SEND_SEC = 3, 10.0, 10.0
FLUSH_SEC = 1.0  # a run that is killed loses the record of this last time; wandb's own default is 15
WAITING = 2000  # calls that wandb's recorder may lag behind; a run that goes on makes `REPEATED` at once
REPEATED = 500  # rows that a run which goes on records again, because they may have been in that last time
EMPTY_BYTES = 7  # the header of a record that was killed before its first flush, at which `wandb sync` fails


class WandbOptions:
    """How a run is recorded in Weights & Biases.

    Args:
        project: the project that the run is filed under.
        entity: the user or team that it belongs to; by default the account's own.
        tags: words to find it by.
        group: runs with the same group stand together.
        notes: a longer description.
        mode: `online` sends the run to the server as it goes, where there is a key and the server answers, and else
            leaves it in the run folder; `offline` always leaves it there. Of this and WANDB_MODE the lesser holds.
    """

    def __init__(
        self,
        project: str | None = None,
        entity: str | None = None,
        tags: list[str] | None = None,
        group: str | None = None,
        notes: str | None = None,
        mode: Literal["online", "offline", "disabled"] = "online",
    ) -> None:
        self.init_args = redact({"project": project, "entity": entity, "tags": tags, "group": group, "notes": notes})
        modes = {mode, os.environ.get("WANDB_MODE", mode).lower().replace("dryrun", "offline")}
        self.mode = next((less for less in ("disabled", "offline") if less in modes), "online")


class RunLogger(WandbLogger):
    """Lightning's logger, but what goes wrong in it is a line in the terminal, once, and stops nothing: a thread hands
    everything to wandb's recorder, because one that does not answer would hold up training.
    """

    def __init__(self, run: Any, sender: subprocess.Popen | None, warn: Callable[[str], None]) -> None:
        super().__init__(experiment=run)
        self.folder, self.sender, self.warn = Path(run.settings.sync_dir), sender, warn
        self.broken = False
        self.queue: queue.Queue[Callable[[], Any]] = queue.Queue(WAITING)
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The whole config is recorded at the start."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.attempt(partial(super().log_metrics, metrics, step))

    def log_image(self, key: str, images: list[Any], **kwargs: Any) -> None:  # type: ignore[override]
        self.attempt(partial(super().log_image, key, images, **kwargs))

    def repeat(self, rows: list[dict[str, str]]) -> None:
        """Record the newest rows of metrics.csv, of this run's earlier lives or of the run that it is forked from."""
        for row in rows[-REPEATED:]:
            values = {name: float(value) for name, value in row.items() if value and name != "step"}
            self.log_metrics(values, int(row["step"]))

    def attempt(self, act: Callable[[], Any]) -> None:
        if threading.current_thread() is self.thread:  # Lightning's log_image ends in log_metrics, which is now due
            return act()
        try:
            if not self.broken:
                self.queue.put_nowait(act)
        except queue.Full:
            self.give_up("its recorder does not answer")

    def work(self) -> None:
        while True:
            act = self.queue.get()
            try:
                act()
            except Exception as e:  # whatever it is, the run is worth more than its record
                self.give_up(f"{type(e).__name__} {e}")

    def give_up(self, why: str) -> None:
        if not self.broken:
            self.broken = True
            self.warn(f"W&B: {why}; nothing more is recorded there. metrics.csv has all metrics.")

    def close(self, summary: dict[str, Any], exit_code: int) -> bool:
        """Record how the run ended, as long as the recorder gets on, and wait a little for that to be sent; whether
        everything was."""
        ended, before = threading.Event(), -1
        with suppress(queue.Full):
            self.queue.put(lambda: self.experiment.summary.update(summary), timeout=FINISH_SEC)
            self.queue.put(lambda: self.experiment.finish(exit_code=exit_code), timeout=FINISH_SEC)
            self.queue.put(ended.set, timeout=FINISH_SEC)
        while not ended.is_set() and before != self.queue.qsize():
            before = self.queue.qsize()
            ended.wait(FINISH_SEC)
        if not ended.is_set():
            atexit.register(os._exit, exit_code)  # goes before wandb's own hook, which would wait for ever
        if self.sender is None:
            return False
        try:
            self.sender.wait(SEND_SEC)
        except subprocess.TimeoutExpired:
            self.sender.kill()
        return any(self.folder.glob("*.synced"))


def start(options: WandbOptions, run_dir: Path, run_id: str, config: dict[str, Any]) -> RunLogger | None:
    """Begin the record of a run, or go on with it, and have it sent where that is possible."""
    if options.mode == "disabled":
        return None
    # wandb reports on itself to the server even offline; where none answers, that holds up the end for 12 s.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    try:
        earlier = earlier_records(run_dir)
        why_not = "as asked for" if options.mode == "offline" else why_offline(wandb.setup().settings)
        run = wandb.init(
            **options.init_args, config=config, id=run_id, name=f"{run_dir.parent.name}/{run_dir.name}",
            resume="allow", dir=str(run_dir), mode="offline",
            settings=wandb.Settings(
                console="off", silent=True, x_transaction_log_flush_interval=FLUSH_SEC,
                x_disable_meta=bool(secrets_in(sys.argv)) or redact(sys.argv) != sys.argv,  # it holds the command
            ),
        )  # fmt: skip
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        sender = None if why_not else send([*earlier, Path(run.settings.sync_dir)], run_dir / "wandb" / "sender.log")
    except Exception as e:  # its own errors have no common base
        rank_zero_print(f"W&B: {type(e).__name__} {e}; the run is not recorded there. metrics.csv has all metrics.")
        return None
    project = options.init_args["project"]
    rank_zero_print(f"W&B: recorded offline ({why_not})" if why_not else f"W&B: run {run_id} in project {project}")
    return RunLogger(run, sender, rank_zero_print)


def earlier_records(run_dir: Path) -> list[Path]:
    for file in run_dir.glob("wandb/offline-run-*/*.wandb"):
        if file.stat().st_size <= EMPTY_BYTES:
            shutil.rmtree(file.parent)
    return sorted(run_dir.resolve().glob("wandb/offline-run-*"))


def send(folders: list[Path], log: Path) -> subprocess.Popen:
    """Start the process that sends these records to the server."""
    command = [sys.executable, "-m", "src.loggers.wandb_sender", *map(str, folders)]
    # Without the address of this process's recorder: it has one of its own, so that no server can crash ours.
    env = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    env["WANDB_DIR"] = str(log.parent.parent.resolve())  # for its own logs, which would lie beside src
    with open(log, "a") as f:
        # In a session of its own, because Ctrl-C is meant for the training.
        return subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=f, stderr=f, start_new_session=True
        )


def why_offline(settings: Any) -> str | None:
    """The reason why nothing can be sent to W&B, or None. Takes a few seconds at most."""
    import wandb
    from requests.utils import get_netrc_auth

    key = settings.api_key or (get_netrc_auth(settings.base_url) or (None, None))[1]
    if not key:
        return "no key; `wandb login` gives one"
    try:
        wandb.Api(overrides={"base_url": settings.base_url}, api_key=key, timeout=PROBE_SEC)  # asks who we are
    except Exception as e:  # its own errors have no common base
        return " ".join(str(e).split())
    return None
