"""What a diagnosis tells: lines in the terminal, overlays, diagnose.json, a page with pictures, W&B. All of it is made
from what diagnose.json holds."""

import json
import math
import shlex
import time
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from src.config.check import SECTIONS
from src.config.strict_yaml import SPEC
from src.diagnosis.examine import Diagnosis
from src.diagnosis.pictures import pictures
from src.run.files import write_json, write_text
from src.run.folder import RunFolder, hardware
from src.run.page import filled_in

GROUPS = ("", "model", "data", *SECTIONS)
COLUMNS = ("check", "question", "text", "gain", "confidence", "tried", "command", "todo")
Told = dict[str, Any]
dump = partial(yaml.safe_dump, sort_keys=False)


def told(found: Diagnosis, command: str, trains: Sequence[str], seconds: float) -> Told:
    """What diagnose.json holds; what is no number is null.

    Args:
        trains: arguments with which src.train trains what was examined; none of a module without a config.
    """
    plain = found.plain()
    for one in plain["findings"]:
        flags = ["python", "-m", "src.train", *trains, *flags_of(one["change"])]
        one["command"] = shlex.join(flags) if trains and one["change"] else ""
    plain["unknown"] = [{"check": check, "why": why} for check, why in found.unknown]
    made = {"date": time.strftime("%Y-%m-%d %H:%M"), **hardware(), **{n: version(n) for n in ("torch", "lightning")}}
    text = json.dumps(plain | {"seconds": seconds, "command": command, "made": made}, default=listed)
    return json.loads(text, parse_constant=lambda _: None)


def listed(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)  # of numpy or torch


def flags_of(change: Any, name: str = "") -> list[str]:
    """A change as the flags that say the same; what is no class and no group of keys is one value."""
    if isinstance(change, dict) and (name in GROUPS or (change and {*change} <= {*SPEC})):
        inner = {key: value for key, value in change.items() if key != "init_args"} | change.get("init_args", {})
        named = {key: name if key == "class_path" else f"{name}.{key}".lstrip(".") for key in inner}
        return [flag for key, value in inner.items() for flag in flags_of(value, named[key])]
    return [f"--{name}", yaml.safe_dump(change, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()]


def write(found: Told, folder: Path, title: str, more: Told) -> Told:
    """The overlays, diagnose.json and diagnose.html; gives all figures, those of `more` among them."""
    for old in folder.glob("fix-*.yaml"):
        old.unlink()  # of a diagnosis before
    for number, one in enumerate(found["findings"], 1):
        if one["command"]:
            head = f"# {found['command']}\n# {one['text']}\n"
            write_text(folder / f"fix-{number}.yaml", head + dump(one["change"]))
    write_json(folder / "diagnose.json", found)
    parts = [part for part in found["measured"].values() if isinstance(part, dict)]
    known = {name: value for part in (*parts, found["measured"]) for name, value in part.items()}
    figures = pictures(known) | more
    page = filled_in("diagnose.html", told=found, known=known, title=title, pictures=figures, dump=dump)
    write_text(folder / "diagnose.html", page)
    return figures


def record(found: Told, figures: Told, run_dir: Path, config: Told) -> None:
    """In W&B: findings as a table, pictures, the verdict in the summary. A run goes on with its own record."""
    from lightning.pytorch.loggers import WandbLogger

    from src.loggers.wandb import WandbOptions, start

    ended, name = RunFolder(run_dir).summary, RunFolder(run_dir).state.get("wandb_id")
    logger = start(WandbOptions(**config["wandb"]), run_dir, name or f"diagnose-{time.time_ns():x}", config)
    if logger:
        cells = [[one[name] for name in COLUMNS] for one in found["findings"]]
        log_table = partial(WandbLogger.log_table, logger, "diagnosis/findings", [*COLUMNS], cells)
        logger.attempt(partial(log_table, step=ended.get("steps")))
        for name, fig in figures.items():
            logger.log_image(f"diagnosis/{name}", [fig], step=ended.get("steps"))
        logger.close({"diagnosis": found["verdict"]}, ended.get("exit_code", 0))
