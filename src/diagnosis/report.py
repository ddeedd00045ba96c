"""What a diagnosis tells: lines in the terminal, overlays, diagnose.json, a page with pictures, W&B. All of it is made
from what diagnose.json holds."""

import json
import math
import time
from collections.abc import Sequence
from functools import partial
from html import unescape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.text import Text

from src.config.check import SECTIONS
from src.config.request import group
from src.config.strict_yaml import SPEC
from src.diagnosis.examine import Diagnosis, Examination
from src.diagnosis.pictures import pictures
from src.loggers.wandb import WandbOptions, start
from src.run.command import command_line
from src.run.files import write_json, write_text
from src.run.folder import RunFolder, hardware
from src.run.page import filled_in
from src.run.terminal import console, relative_path

COLUMNS = ("check", "question", "text", "gain", "confidence", "tried", "command", "todo")
DRAW_SEC, MOST_DRAWN = 60.0, 32
Told = dict[str, Any]
dump: Any = partial(yaml.safe_dump, sort_keys=False)


def told(found: Diagnosis, command: str, trains: Sequence[str], seconds: float) -> Told:
    """What diagnose.json holds; what is no number is null. `trains` are the arguments of src.train."""
    plain = found.plain()
    for one in plain["findings"]:
        new = flags_of(one["change"])
        kept = [part for name, value in group([*trains]) if f"--{name}" not in new for part in (f"--{name}", value)]
        flags = [*kept, *new]
        one["command"] = command_line("src.train", flags) if one["change"] else ""
    plain["unknown"] = [{"check": check, "why": why} for check, why in found.unknown]
    made = {"date": time.strftime("%Y-%m-%d %H:%M"), **hardware(), **{n: version(n) for n in ("torch", "lightning")}}
    plain |= {"seconds": seconds, "command": command, "made": made}
    text = json.dumps(plain, default=lambda x: x.tolist() if hasattr(x, "tolist") else str(x))  # of numpy or torch
    return json.loads(text, parse_constant=lambda _: None)


def flags_of(change: Any, name: str = "") -> list[str]:
    """A change as the flags that say the same; what is no class and no group of keys is one value."""
    if isinstance(change, dict) and (name in ("", "model", "data", *SECTIONS) or (change and {*change} <= {*SPEC})):
        inner = {key: value for key, value in change.items() if key != "init_args"} | change.get("init_args", {})
        return [flag for key in inner for flag in flags_of(inner[key], f"{name}.{key}".lstrip("."))]
    return [f"--{name}", yaml.safe_dump(change, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()]


def tell(found: Told, folder: Path, title: str, examination: Examination) -> Told:
    """In the terminal, diagnose.json, overlays and diagnose.html; gives all figures."""
    for old in (*folder.glob("fix-*.yaml"), folder / "fixed.yaml", folder / "receipt.json"):
        old.unlink(missing_ok=True)  # of a diagnosis before
    for number, one in enumerate(found["findings"], 1):
        if one["command"]:
            head = f"# {found['command']}\n# {one['text']}\n"
            write_text(folder / f"fix-{number}.yaml", head + dump(one["change"]))
    write_json(folder / "diagnose.json", found)
    text = Text(unescape(filled_in("diagnose.txt", told=found, folder=relative_path(folder)).rstrip()))
    text.highlight_regex(r"(?m)^[\w ]{9} (?=\S)", "bold")
    console().print(text)
    figures = pictures(found["measured"])
    if index := [row for one in found["findings"] for row in one["evidence"].get("suspicious", ())][:MOST_DRAWN]:
        examination.runner.until = math.inf  # what is found is told, however long it took
        drawn = examination.runner.all([(samples, (examination.subject, index))], DRAW_SEC)[0]
        figures |= {} if drawn is None or isinstance(drawn, dict) else {"samples whose label looks wrong": drawn}
    page = filled_in("diagnose.html", told=found, title=title, figures=figures, dump=dump)
    write_text(folder / "diagnose.html", page)
    return figures


def samples(subject: Any, index: list[int]) -> Any:
    """A figure of samples of train, as the network gets them in evaluation; in a child, because it reads data."""
    data = subject.data()
    return data.picture(data.on_after_batch_transfer(data.splits["train"][torch.tensor(index)], 0))


def record(found: Told, figures: Told, folder: Path, config: Told) -> None:
    """In W&B: findings as a table, pictures, the verdict in the summary. A run goes on with its own, if it has one."""
    run = RunFolder(folder.parent if (folder.parent / "run.json").is_file() else folder)
    if run.state and not (run.path / "wandb").is_dir():
        return
    ended, name = run.summary, run.state.get("wandb_id") or f"diagnose-{time.time_ns():x}"
    if logger := start(WandbOptions(**config["wandb"]), run.path, name, config):
        cells = [[one[column] for column in COLUMNS] for one in found["findings"]]
        logger.log_table("diagnosis/findings", [*COLUMNS], cells, step=ended.get("steps"))
        for title, fig in figures.items():
            logger.log_image(f"diagnosis/{title}", [fig], step=ended.get("steps"))
        logger.close({"diagnosis": found["verdict"]}, ended.get("exit_code", 0))
