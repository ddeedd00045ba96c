"""Runs in Weights & Biases: online where that works, else recorded in the run folder; never in the way of training."""

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

PROBE_SEC, INIT_SEC, FINISH_SEC = 3.0, 5.0, 15.0


class WandbOptions:
    """How a run is recorded in Weights & Biases.

    Args:
        project: the project that the run is filed under.
        entity: the user or team that it belongs to; by default the account's own.
        tags: words to find it by.
        notes: a longer description.
        mode: `auto` is online where there is a key and the server answers, else offline. The environment's WANDB_MODE
            goes before it.
    """

    def __init__(
        self,
        project: str = "leyden",
        entity: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
        mode: Literal["auto", "online", "offline", "disabled"] = "auto",
    ) -> None:
        self.project, self.entity, self.tags, self.notes = project, entity, tags, notes
        self.mode = os.environ.get("WANDB_MODE") or mode


class RunLogger(WandbLogger):
    """Lightning's logger on a run of ours: what goes wrong in it is said once and stops nothing."""

    def __init__(self, run: Any, say: Callable[[str], None]) -> None:
        super().__init__(experiment=run)
        self.say, self.broken = say, False

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The whole config is recorded at the start."""

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if self.broken:
            return
        try:
            super().log_metrics(metrics, step)
        except Exception as e:  # whatever it is, the run is worth more than its record
            self.broken = True
            self.say(f"W&B: {e}; nothing more is recorded there. metrics.csv goes on.")

    def close(self, summary: dict[str, Any], exit_code: int) -> bool:
        """Write the summary and the end of the run; False if that took too long, so that the process must not wait."""

        def finish() -> None:
            try:
                self.experiment.summary.update(summary)
                self.experiment.finish(exit_code=exit_code)
            except Exception as e:
                self.say(f"W&B: {e}")

        thread = threading.Thread(target=finish, daemon=True)
        thread.start()
        thread.join(FINISH_SEC)
        return not thread.is_alive()


def start(
    options: WandbOptions, run_dir: Path, run_id: str, config: dict[str, Any], say: Callable[[str], None]
) -> RunLogger | None:
    """Begin the record of a run, or go on with it; online only where that can be done without waiting."""
    if options.mode in ("disabled", "dryrun"):
        return None
    import wandb

    why_not = "as asked for" if options.mode == "offline" else why_offline(wandb)
    how = {
        "project": options.project, "entity": options.entity, "tags": options.tags, "notes": options.notes,
        "name": f"{run_dir.parent.name}/{run_dir.name}", "id": run_id, "dir": str(run_dir), "config": config,
    }  # fmt: skip
    settings = {"init_timeout": INIT_SEC, "finish_timeout": FINISH_SEC, "console": "off", "silent": True}
    if why_not is None:
        try:
            run = wandb.init(mode="online", resume="allow", settings=wandb.Settings(**settings), **how)
            say(f"W&B: {run.url}")
            return RunLogger(run, say)
        except Exception as e:  # its own errors have no common base
            why_not = str(e).splitlines()[0]
            wandb.teardown()
    try:
        run = wandb.init(mode="offline", settings=wandb.Settings(**settings), **how)
    except Exception as e:
        say(f"W&B: {e}; the run is not recorded there. metrics.csv is written.")
        return None
    say(f"W&B: recorded offline ({why_not}). To send it:  wandb sync {Path(run.dir).parent}")
    return RunLogger(run, say)


def why_offline(wandb: Any) -> str | None:
    """The reason why W&B cannot be reached, or None. Takes a few seconds at most."""
    try:
        if not wandb.login(prompt=False):
            return "no key; `wandb login` gives one"
    except Exception as e:
        return f"the key is not accepted: {str(e).splitlines()[0]}"
    found: list[str | None] = ["no answer"]
    thread = threading.Thread(target=lambda: found.append(probe(wandb.setup().settings.base_url)), daemon=True)
    thread.start()
    thread.join(PROBE_SEC + 1)  # looking a name up has no time-out of its own
    return found[-1]


def probe(url: str) -> str | None:
    try:
        urllib.request.urlopen(f"{url}/healthz", timeout=PROBE_SEC).close()
    except urllib.error.HTTPError as e:
        return f"the server answers {e.code}" if e.code >= 500 else None
    except (OSError, ValueError) as e:
        return f"{url} cannot be reached: {getattr(e, 'reason', e)}"
    return None
