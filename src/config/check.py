"""What a config may hold: keys and values are compared with signatures, classes with the allow-list of pyproject.toml,
all before anything is imported."""

import difflib
import json
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Annotated, Any, Literal, NoReturn

from pydantic import TypeAdapter, ValidationError

from src.config.signatures import (
    MISSING,
    ROOT,
    Argument,
    Named,
    Signature,
    class_attribute,
    classes,
    derives,
    exported,
    is_defined,
    parts,
    signature,
)
from src.config.strict_yaml import SPEC, Lines, join
from src.run.errors import ConfigError, nearest

# The named sections of a config besides model and data, and the class whose arguments each holds.
SECTIONS = {
    "trainer": "lightning.pytorch.trainer.trainer.Trainer",
    "checkpoints": "src.callbacks.checkpoints.Checkpoints",
    "ema": "src.callbacks.ema.EMA",
    "gradients": "src.callbacks.gradients.Gradients",
    "throughput": "src.callbacks.throughput.Throughput",
    "pictures": "src.callbacks.pictures.Pictures",
    "progress": "src.callbacks.progress.ThrottledProgress",
    "wandb": "src.loggers.wandb.WandbOptions",
}
TOP = ("seed_everything", "model", "data", *SECTIONS)
CLASSES = {
    "model": Argument(Annotated[Any, Named("src.models.base.Model")]),
    "data": Argument(Annotated[Any, Named("src.data.module.DataModule")]),
}
NOT_FOR_USERS = {
    "default_root_dir": "is the run folder -> set --run_dir",
    "accumulate_grad_batches": "follows from the batch sizes -> set data.micro_batch_size",
}
FILLED_IN = ("params", "optimizer", "num_steps", "total_steps", "seed")  # arguments that a run fills in
# How pydantic's kinds of errors begin, and what is expected there.
EXPECTED = {"int": "int", "float": "float", "string": "str", "bool": "bool", "list": "list", "tuple": "tuple"}
EXPECTED |= {"dict": "dict"}


@cache
def sections() -> dict[str, Signature]:
    out = {name: signature(path) or Signature() for name, path in SECTIONS.items()}
    known = out["trainer"].arguments
    ours = "`auto`, which is bf16-mixed where the device computes in bfloat16, else 32-true; or one of Lightning's. "
    auto = replace(known["precision"], annotation=Literal["auto"] | known["precision"].annotation)
    known = {**known, "precision": replace(auto, doc=ours + auto.doc)}
    return {**out, "trainer": replace(out["trainer"], arguments=known)}


def check(config: dict[str, Any], lines: Lines) -> None:
    """Refuse unknown keys and classes and wrong values, naming the place and what is right there; what is written in
    another form (a number as text) is put right.

    Raises:
        ConfigError: anything that can be seen to be wrong without importing a class.
    """
    seed = config.get("seed_everything")
    if type(seed) is not int or not 0 <= seed < 2**32:
        fail(lines, "seed_everything", f"{shown(seed)} is not a whole number from 0 to {2**32 - 1}")
    checker = Checker(config, lines)
    for section, known in sections().items():
        checker.check_arguments(section, config.get(section) or {}, known)
    for name in ("max_epochs", "max_steps"):
        if config["trainer"].get(name) == 0:
            fail(lines, f"trainer.{name}", "0 trains nothing -> take 1 or more, or -1 for no limit")
    for name, why in NOT_FOR_USERS.items():
        if config["trainer"].get(name) not in (None, 1):
            fail(lines, f"trainer.{name}", why)
    for name, argument in CLASSES.items():
        if name not in config:
            raise ConfigError(f"no {name} is configured -> name an experiment: --config configs/experiment/NAME.yaml")
        config[name] = checker.check_value(name, config[name], argument)


class Checker:
    """Goes through a config, one signature after the other."""

    def __init__(self, config: dict[str, Any], lines: Lines) -> None:
        self.config, self.lines = config, lines

    def check_arguments(self, path: str, given: Any, known: Signature) -> None:
        if not isinstance(given, dict):
            fail(self.lines, path, f"a group of keys is expected, not {shown(given)}")
        for name in given:
            argument, key = known.arguments.get(name), join(path, name)
            if argument is None and not known.open:
                hint = nearest(name, known.arguments) or deeper(name, self.config, key)
                fail(self.lines, key, f"unknown key{hint}")
            given[name] = self.check_value(key, given[name], argument or Argument())

    def check_value(self, key: str, value: Any, argument: Argument) -> Any:
        """The value in the argument's type; classes in it stay as they are written, and are checked in their turn."""
        if argument in CLASSES.values() and not (isinstance(value, dict) and "class_path" in value):
            fail(self.lines, key, "class_path is missing")
        try:
            value = adapter(argument.annotation).validate_python(without_bool(value, argument.annotation))
        except ValidationError as e:
            place, message = explained(e, value)
            fail(self.lines, join(key, place) if place else key, message)
        for path, spec in specs(value, key):
            self.check_spec(path, spec, argument.named)
        return value

    def check_spec(self, path: str, spec: dict[str, Any], named: Named | None) -> None:
        class_path = spec["class_path"]
        for key in spec:
            if key not in SPEC:
                fail(self.lines, join(path, key), "stands beside class_path, but belongs under init_args")
        if refusal := why_refused(class_path, named):
            fail(self.lines, path, refusal)
        known, init_args = signature(class_path), spec.get("init_args") or {}
        self.check_arguments(path, init_args, known or Signature(open=True))
        for name, argument in known.arguments.items() if known and not (named and named.factory) else ():
            if argument.default is MISSING and name not in init_args:
                in_list = any(part.isdigit() for part in path.split("."))
                how = "add it to its init_args" if in_list else f"give --{path}.{name}"
                fail(self.lines, path, f"{class_path} needs {name} -> {how}")


def why_refused(class_path: Any, named: Named | None) -> str:
    """What is wrong with a class that a config names, or nothing."""
    if not isinstance(class_path, str) or "." not in class_path:
        return f"{shown(class_path)} is not the dotted path of a class{same_name(class_path)}"
    if not any(f"{class_path}.".startswith(f"{prefix}.") for prefix in allowed_prefixes()):
        hint = same_name(class_path)
        return f"{class_path} is not among what pyproject.toml allows configs to name{hint}"
    if class_path.startswith("src.") and not is_defined(class_path):
        return f"there is no {class_path}{same_name(class_path)}"
    if named and named.base and derives(class_path, named.base) is False:
        return f"{class_path} is not derived from {named.base}"
    return ""


def without_bool(value: Any, annotation: Any) -> Any:
    """`true` as text where a number is expected, or pydantic would take it for 1."""
    takes = any(part in (bool, Any) for part in parts(annotation))
    return str(value).lower() if isinstance(value, bool) and not takes else value


@cache
def adapter(annotation: Any) -> TypeAdapter:
    return TypeAdapter(annotation)


def explained(e: ValidationError, value: Any) -> tuple[str, str]:
    """Of the alternatives that a value could have been, those that it came nearest to: the place in it, if it is a
    list, and what is expected there."""
    places = [[part for part in error["loc"] if isinstance(part, int)] for error in e.errors()]
    deepest = max(places, key=len)
    found = [error for error, place in zip(e.errors(), places, strict=True) if place == deepest]
    wanted, wrong = dict.fromkeys(kind for error in found if (kind := expected(error))), found[0]["input"]
    if found[0]["type"] == "missing":  # of a tuple
        deepest = deepest[:-1]
    hint = " -> write [A, B, ...]" if {"list", "tuple"} & {*wanted} and not isinstance(value, (list, dict)) else ""
    words = [word for error in found for word in str(error.get("ctx", {}).get("expected", "")).split("'")[1::2]]
    near = nearest(wrong, words) if isinstance(wrong, str) else ""
    return ".".join(map(str, deepest)), f"expected {' or '.join(wanted)}, not {shown(wrong)}{near}{hint}"


def expected(error: Any) -> str:
    """What one alternative expects, in the words of an annotation."""
    match error["type"].partition("_")[0], error.get("ctx", {}):
        case "none", _:
            return ""
        case "literal", context:
            return context["expected"]
        case "missing", _:
            return f"a list of {error['loc'][-1] + 1} values"
        case "too", context:
            return f"a list of {context['max_length']} values"
        case kind, _:
            return EXPECTED.get(kind, error["msg"].removeprefix("Input should be "))


def specs(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every place that names a class, but for those within the arguments of another."""
    if isinstance(node, dict) and "class_path" in node:
        yield path, node
    else:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
            yield from specs(value, join(path, key))


def all_specs(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every place that names a class."""
    for place, spec in specs(node, path):
        yield place, spec
        yield from all_specs(spec.get("init_args"), place)


def filled_in(config: dict[str, Any], section: str) -> tuple[str, ...]:
    """Arguments in a section that no config states: what the run knows, and for a network the facts of the data."""
    facts = class_attribute(config["data"]["class_path"], "provides") if section == "model" else ()
    return FILLED_IN + (facts or ())


@cache
def allowed_prefixes() -> tuple[str, ...]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return tuple(prefix.rstrip(".") for prefix in project["tool"][project["project"]["name"]]["allow"])


# Hints


def deeper(key: str, config: dict[str, Any], wrong: str = "") -> str:
    """Where else in the config a key of this name, or of a similar one, can be set."""
    holders = {name: dict(known.arguments) for name, known in sections().items()}
    for path, spec in all_specs(config):
        known = signature(str(spec["class_path"])) or Signature()
        holders[path] = {**known.arguments, **(spec.get("init_args") or {})}
    every = [(name, join(path, name)) for path, known in holders.items() for name in known]
    paths = {name: path for name, path in every if path != wrong}
    found = [key] if key in paths else difflib.get_close_matches(key, paths, n=2, cutoff=0.7)
    return f"; did you mean {' or '.join(sorted(paths[name] for name in found))}?" if found else ""


def same_name(class_path: Any) -> str:
    """A class that may be named and is called so, or one of ours with a similar path."""
    name = str(class_path).rpartition(".")[2].lower()
    foreign = (f"{prefix}.{name}" for prefix in allowed_prefixes() for name in exported(prefix))
    same = next((known for known in (*classes(), *foreign) if known.rpartition(".")[2].lower() == name), None)
    return f"; did you mean {same}?" if same else nearest(str(class_path), classes())


def shown(value: Any) -> str:
    return json.dumps(value, default=str)[:60]


# Refusing


def position(lines: Lines, key: str) -> str:
    """Where a key, something in it, or what holds it, was set last."""
    inside = [line for name, line in lines.items() if name.startswith(f"{key}.")]
    if key not in lines and inside:
        return f"{inside[-1]}: "
    while key and key not in lines:
        key = key.rpartition(".")[0]
    return f"{lines[key]}: " if key else ""


def fail(lines: Lines, key: str, message: str) -> NoReturn:
    at = position(lines, key)
    raise ConfigError(f"{at}{f'{key}: ' if key and at != f'--{key}: ' else ''}{message}")
