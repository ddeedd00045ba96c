"""What a config may say: keys are compared with signatures that are read from source, classes with the allow-list of
pyproject.toml, all before anything is imported."""

import difflib
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any, NoReturn

from src.config.signatures import ROOT, TRAINER, Arguments, arguments, classes
from src.config.strict_yaml import SPEC, Lines, join
from src.run.errors import ConfigError, nearest

# The named sections of a config besides model and data, and the class whose arguments each holds.
SECTIONS = {
    "trainer": TRAINER,
    "checkpoints": "src.callbacks.checkpoints.Checkpoints",
    "ema": "src.callbacks.ema.EMA",
    "gradients": "src.callbacks.gradients.Gradients",
    "throughput": "src.callbacks.throughput.Throughput",
    "pictures": "src.callbacks.pictures.Pictures",
    "progress": "src.callbacks.progress.ThrottledProgress",
    "wandb": "src.loggers.wandb.WandbOptions",
}
TOP = ("seed_everything", "model", "data", *SECTIONS)
NOT_FOR_USERS = {
    "default_root_dir": "is the run folder -> set --run_dir",
    "accumulate_grad_batches": "follows from the batch sizes -> set data.micro_batch_size",
}


@cache
def facts() -> tuple[str, ...]:
    return tuple(arguments("src.models.base.NetworkFactory", method="__call__") or ())


@cache
def sections() -> dict[str, Arguments]:
    out = {name: arguments(class_path) or {} for name, class_path in SECTIONS.items()}
    lightnings = out["trainer"]["precision"]
    ours = "`auto`, which is bf16-mixed where the device computes in bfloat16, else 32-true; or one of Lightning's. "
    out["trainer"] = {**out["trainer"], "precision": replace(lightnings, doc=ours + lightnings.doc)}
    return out


def check(config: dict[str, Any], lines: Lines) -> None:
    """Refuse unknown keys and classes, naming the place and the nearest right name."""
    seed = config.get("seed_everything")
    if type(seed) is not int or not 0 <= seed < 2**32:
        fail(lines, "seed_everything", f"{shown(seed)} is not a whole number from 0 to {2**32 - 1}")
    for section, known in sections().items():
        check_keys(section, config.get(section), known, lines, config)
    for name in ("max_epochs", "max_steps"):
        if config["trainer"].get(name) == 0:
            fail(lines, f"trainer.{name}", "0 trains nothing -> take 1 or more, or -1 for no limit")
    for name, why in NOT_FOR_USERS.items():
        if config["trainer"].get(name) not in (None, 1):
            fail(lines, f"trainer.{name}", why)
    for path, spec in specs(config):
        check_spec(path, spec, lines, config)
    for name in ("model", "data"):
        if name not in config:
            raise ConfigError(f"no {name} is configured -> name an experiment: --config configs/experiment/NAME.yaml")
        if "class_path" not in config[name]:
            fail(lines, name, "class_path is missing")


def specs(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every place that names a class."""
    if isinstance(node, dict) and "class_path" in node:
        yield path, node
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from specs(value, join(path, key))


def check_spec(path: str, spec: dict[str, Any], lines: Lines, config: dict[str, Any]) -> None:
    class_path = spec["class_path"]
    for key in spec:
        if key not in SPEC:
            fail(lines, join(path, key), "stands beside class_path, but belongs under init_args")
    if not isinstance(class_path, str) or "." not in class_path:
        fail(lines, path, f"{shown(class_path)} is not the dotted path of a class{same_name(class_path)}")
    if not any(f"{class_path}.".startswith(f"{prefix}.") for prefix in allowed_prefixes()):
        hint = same_name(class_path)
        fail(lines, path, f"{class_path} is not among what pyproject.toml allows configs to name{hint}")
    known = arguments(class_path)
    if class_path.startswith("src.") and known is None:
        fail(lines, path, f"there is no {class_path}{same_name(class_path)}")
    check_keys(path, spec.get("init_args"), known, lines, config)


def check_keys(path: str, given: Any, known: Arguments | None, lines: Lines, config: dict[str, Any]) -> None:
    if given is None or known is None:
        return
    if not isinstance(given, dict):
        fail(lines, path, f"a group of keys is expected, not {shown(given)}")
    for key in given:
        if key not in known:
            fail(lines, join(path, key), f"unknown key{nearest(key, known) or deeper(key, config, join(path, key))}")


def settable(class_path: str) -> Arguments | None:
    """The arguments of one of our classes that a config states; facts, parameters and so on are filled in."""
    known = arguments(class_path)
    filled_in = {"networks": facts(), "optim": ("params", "optimizer", "num_steps"), "data": ("seed",)}.get(
        class_path.split(".")[1], ()
    )
    return known and {name: argument for name, argument in known.items() if name not in filled_in}


@cache
def allowed_prefixes() -> tuple[str, ...]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return tuple(prefix.rstrip(".") for prefix in project["tool"][project["project"]["name"]]["allow"])


def deeper(key: str, config: dict[str, Any], wrong: str = "") -> str:
    """A hint: where else in the config a key of this name, or of a similar one, can be set."""
    holders = {name: dict(known) for name, known in sections().items()}
    for path, spec in specs(config):
        holders[path] = {**(arguments(str(spec["class_path"])) or {}), **spec.get("init_args", {})}
    every = [(name, join(path, name)) for path, known in holders.items() for name in known]
    paths = {name: path for name, path in every if path != wrong}
    found = [key] if key in paths else difflib.get_close_matches(key, paths, n=2, cutoff=0.7)
    return f"; did you mean {' or '.join(sorted(paths[name] for name in found))}?" if found else ""


def same_name(class_path: Any) -> str:
    """A hint: a class of ours or of torch with this name, or one of ours with a similar path."""
    name = str(class_path).rpartition(".")[2].lower()
    torchs = re.findall(r'"(torch\.[\w.]+)"', (ROOT / "configs" / "schema.json").read_text())
    same = [known for known in (*classes(), *torchs) if known.rpartition(".")[2].lower() == name]
    return f"; did you mean {same[0]}?" if same else nearest(str(class_path), classes())


def shown(value: Any) -> str:
    return json.dumps(value, default=str)[:60]


def place(lines: Lines, key: str) -> str:
    """Where a key, something in it, or what holds it, was set last."""
    inside = [where for name, where in lines.items() if name.startswith(f"{key}.")]
    if key not in lines and inside:
        return f"{inside[-1]}: "
    while key and key not in lines:
        key = key.rpartition(".")[0]
    return f"{lines[key]}: " if key else ""


def fail(lines: Lines, key: str, message: str) -> NoReturn:
    at = place(lines, key)
    raise ConfigError(f"{at}{f'{key}: ' if key and at != f'--{key}: ' else ''}{message}")
