"""What a config may say: keys are compared with signatures that are read from source, classes with the allow-list of
pyproject.toml, all before anything is imported."""

import json
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from src import signatures
from src.errors import ConfigError, nearest
from src.signatures import Arguments
from src.strict_yaml import Key, Lines

ROOT = Path(__file__).parent.parent
# The named sections of a config besides trainer, model and data, and the class whose arguments each holds.
SECTIONS = {
    "checkpoints": "src.callbacks.checkpoints.Checkpoints",
    "gradients": "src.callbacks.gradients.Gradients",
    "throughput": "src.callbacks.throughput.Throughput",
    "pictures": "src.callbacks.pictures.Pictures",
    "progress": "src.callbacks.progress.ThrottledProgress",
    "wandb": "src.loggers.wandb.WandbOptions",
}
TOP = ("seed_everything", "trainer", "model", "data", *SECTIONS)
SPEC = ("class_path", "init_args", "dict_kwargs")
NOT_FOR_USERS = {
    "default_root_dir": "is the run folder -> set --run_dir",
    "accumulate_grad_batches": "follows from the batch sizes -> set data.micro_batch_size",
}


@cache
def facts() -> tuple[str, ...]:
    return tuple(signatures.arguments("src.models.base.NetworkFactory", method="__call__") or ())


def check(config: dict[str, Any], lines: Lines) -> None:
    """Refuse unknown keys and classes, naming the place and the nearest right name."""
    seed = config.get("seed_everything")
    if type(seed) is not int or not 0 <= seed < 2**32:
        fail(lines, ("seed_everything",), f"{shown(seed)} is not a whole number from 0 to {2**32 - 1}")
    for section, known in sections().items():
        check_keys((section,), config.get(section, {}), known, lines)
    for name, why in NOT_FOR_USERS.items():
        if config["trainer"].get(name) not in (None, 1):
            fail(lines, ("trainer", name), why)
    for path, spec in specs(config, ()):
        check_spec(path, spec, lines)
    for name in ("model", "data"):
        if name not in config:
            raise ConfigError(f"no {name} is configured -> name an experiment: --config configs/experiment/NAME.yaml")
        if "class_path" not in config[name]:
            fail(lines, (name,), "class_path is missing")


def specs(node: Any, path: Key) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Every place that names a class."""
    if isinstance(node, dict) and "class_path" in node:
        yield path, node
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in children:
        yield from specs(value, (*path, key))


def check_spec(path: Key, spec: dict[str, Any], lines: Lines) -> None:
    class_path, at = spec["class_path"], (*path, "class_path")
    for key in spec:
        if key not in SPEC:
            fail(lines, (*path, key), "stands beside class_path, but belongs under init_args")
    if not isinstance(class_path, str) or "." not in class_path:
        fail(lines, at, f"{shown(class_path)} is not the dotted path of a class{same_name(class_path)}")
    if not allowed(class_path):
        fail(lines, at, f"{class_path} is not among what pyproject.toml allows configs to name{same_name(class_path)}")
    known = arguments_of(class_path)
    if class_path.startswith("src.") and known is None:
        fail(lines, at, f"there is no {class_path}{same_name(class_path)}")
    check_keys((*path, "init_args"), spec.get("init_args"), known, lines)


def check_keys(path: Key, given: Any, known: Arguments | None, lines: Lines) -> None:
    if given is None or known is None:
        return
    if not isinstance(given, dict):
        fail(lines, path, f"a group of keys is expected, not {shown(given)}")
    for key in given:
        if key not in known:
            fail(lines, (*path, key), f"unknown key{nearest(key, known)}")


@cache
def allowed_prefixes() -> tuple[str, ...]:
    with open(ROOT / "pyproject.toml", "rb") as f:
        project = tomllib.load(f)
    return tuple(prefix.rstrip(".") for prefix in project["tool"][project["project"]["name"]]["allow"])


def allowed(class_path: str) -> bool:
    return any(class_path == prefix or class_path.startswith(f"{prefix}.") for prefix in allowed_prefixes())


@cache
def sections() -> dict[str, Arguments]:
    return {"trainer": signatures.trainer(), **{name: arguments_of(of) or {} for name, of in SECTIONS.items()}}


def known_at(path: Key, config: dict[str, Any]) -> Arguments:
    """The arguments that belong at a path, as far as they can be known."""
    if len(path) == 1:
        return sections().get(str(path[0]), {})
    node: Any = config
    for part in path[:-1]:
        node = node.get(part) if isinstance(node, dict) else None
    return arguments_of(node.get("class_path")) or {} if isinstance(node, dict) else {}


def arguments_of(class_path: Any) -> Arguments | None:
    return signatures.arguments(class_path) if isinstance(class_path, str) else None


def same_name(class_path: Any) -> str:
    """A hint: one of our classes with this name, or one with a similar path."""
    name = str(class_path).rpartition(".")[2]
    same = [ours for ours in signatures.classes() if ours.rpartition(".")[2].lower() == name.lower()]
    return f"; did you mean {same[0]}?" if same else nearest(str(class_path), signatures.classes())


def plain(path: Iterable[str | int]) -> tuple[str, ...]:
    """A key's path as users write it."""
    return tuple(str(p).removesuffix("+") for p in path if p not in SPEC)


def dotted(path: Iterable[str | int]) -> str:
    return ".".join(plain(path))


def shown(value: Any) -> str:
    return json.dumps(value, default=str)[:60]


def place(lines: Lines, path: Iterable[str | int]) -> str:
    """Where a key, or what holds it, was set last."""
    parts = plain(path)
    for n in range(len(parts), 0, -1):
        found = [line for at, line in lines.items() if plain(at) == parts[:n]]
        if found:
            return f"{found[-1]}: "
    return ""


def fail(lines: Lines, path: Key, message: str) -> NoReturn:
    at, key = place(lines, path), dotted(path)
    raise ConfigError(f"{at}{'' if at == f'--{key}: ' else f'{key}: '}{message}")
