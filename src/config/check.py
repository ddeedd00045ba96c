"""What a config may hold: keys and values are compared with signatures, classes with the allow-list of pyproject.toml,
all before anything is imported."""

import ast
import difflib
import json
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Annotated, Any, Literal, NoReturn

from pydantic import TypeAdapter, ValidationError

from src.config.signatures import MISSING, Argument, Named, Signature, classes, parts, signature
from src.config.source import class_attribute, derives, exported, find, is_ours, returned
from src.config.strict_yaml import SPEC, Lines, join
from src.run.errors import ConfigError, nearest
from src.run.files import ROOT

# The named sections of a config besides model and data, and the class whose arguments each holds.
SECTIONS = {
    "trainer": "lightning.pytorch.trainer.trainer.Trainer",
    "checkpoints": "src.callbacks.checkpoints.Checkpoints",
    "ema": "src.callbacks.ema.EMA",
    "gradients": "src.callbacks.gradients.Gradients",
    "pictures": "src.callbacks.pictures.Pictures",
    "throughput": "src.callbacks.throughput.Throughput",  # its time begins after the first pictures
    "progress": "src.callbacks.progress.ThrottledProgress",
    "wandb": "src.loggers.wandb.WandbOptions",
}
TOP = Signature(
    {
        "seed_everything": Argument(int, doc="seed of all random numbers"),
        "threads": Argument(int | None, None, doc="of torch, on a CPU; by default as many as it takes by itself"),
        "model": Argument(Annotated[Any, Named("src.models.base.Model")]),
        "data": Argument(Annotated[Any, Named("src.data.module.DataModule")]),
        **dict.fromkeys(SECTIONS, Argument(dict)),
    }
)
FILLED_IN = ("params", "optimizer", "num_steps", "total_steps", "seed", "in_chans", "img_size")  # which a run fills in
RECORDS = ("save_dir", "name", "version", "experiment_name", "run_name", "run_id")  # of a logger, which the run names
NOT_FOR_USERS = {
    "default_root_dir": "is the run folder -> set --run_dir",
    "accumulate_grad_batches": "follows from the batch sizes -> set data.micro_batch_size",
}
# How pydantic's kinds of errors begin, and what is expected there.
EXPECTED = {"int": "int", "float": "float", "string": "str", "bool": "bool", "list": "list", "tuple": "tuple"}
Group = tuple[str, str, dict[str, Any], Signature]  # path, class, what the config gives it, and what it takes


@cache
def section(name: str) -> Signature:
    known = signature(SECTIONS[name]) or Signature()
    if name != "trainer":
        return known
    ours = "`auto`, which is bf16-mixed where the device computes in bfloat16, else 32-true; or one of Lightning's. "
    lightnings = known.arguments["precision"]
    auto = replace(lightnings, annotation=Literal["auto"] | lightnings.annotation, doc=ours + lightnings.doc)
    return replace(known, arguments=known.arguments | {"precision": auto})


def groups(config: dict[str, Any]) -> Iterator[Group]:
    """All that takes arguments: the config itself, its sections, and every class that it names. What holds another
    comes first, so that it can be put right before the other is looked at."""
    yield "", "", config, TOP
    for name, path in SECTIONS.items():
        yield name, path, config.setdefault(name, {}), section(name)
    for path, spec in specs(config):
        spec["init_args"] = spec.get("init_args") or {}
        yield path, spec["class_path"], spec["init_args"], signature(str(spec["class_path"])) or Signature(open=True)


def specs(node: Any, path: str = "", within: bool = True) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every place that names a class, also `within` the arguments of another."""
    if isinstance(node, dict) and "class_path" in node:
        yield path, node
        node = node if within else None
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from specs(value, join(path, key), within)


def filled_in(config: dict[str, Any], path: str) -> tuple[str, ...]:
    """Arguments of a group that no config states: what the run knows, and for a network the facts of data and model."""
    known = [config[name]["class_path"] for name in ("data", "model")] if path.startswith("model.") else []
    of_logger = RECORDS if path.startswith("trainer.logger") else ()
    return FILLED_IN + of_logger + tuple(fact for one in known for fact in class_attribute(one, "provides") or ())


def check(config: dict[str, Any], lines: Lines) -> None:
    """Refuse unknown keys and classes and wrong values, naming the place and what is right there; what is written in
    another form (a number as text) is put right.

    Raises:
        ConfigError: anything that can be seen to be wrong without importing a class.
    """
    for name in ("model", "data"):
        if name not in config:
            raise ConfigError(f"no {name} is configured -> name an experiment: --config configs/experiment/NAME.yaml")
    for path, _, given, known in groups(config):
        if not isinstance(given, dict):
            fail(lines, path, f"a group of keys is expected, not {shown(given)}")
        for name in given:
            given[name] = checked(join(path, name), name, given[name], known, config, lines)
    if not 0 <= config["seed_everything"] < 2**32:
        fail(lines, "seed_everything", f"{config['seed_everything']} is not from 0 to {2**32 - 1}")
    if (threads := config.get("threads")) is not None and threads < 1:
        fail(lines, "threads", f"{threads} is less than 1")
    for name in ("max_epochs", "max_steps"):
        if config["trainer"].get(name) == 0:
            fail(lines, f"trainer.{name}", "0 trains nothing -> take 1 or more, or -1 for no limit")
    if lines.get("data.seed", "").startswith("--"):
        fail(lines, "data.seed", "follows seed_everything -> set that")
    for name, why in NOT_FOR_USERS.items():
        if config["trainer"].get(name) not in (None, 1):
            fail(lines, f"trainer.{name}", why)


def checked(key: str, name: str, value: Any, known: Signature, config: dict[str, Any], lines: Lines) -> Any:
    """One argument's value in its type; classes in it stay as they are written."""
    argument = known.arguments.get(name)
    if argument is None and not known.open:
        fail(lines, key, f"unknown key{nearest(name, known.arguments) or deeper(name, config, key)}")
    argument = argument or Argument()
    is_class = isinstance(value, dict) and "class_path" in value
    if argument in TOP.arguments.values() and argument.named and not is_class:
        fail(lines, key, "class_path is missing")
    try:
        value = adapter(argument.annotation).validate_python(without_bool(value, argument.annotation))
    except ValidationError as e:
        place, message = explained(e, value)
        fail(lines, join(key, place) if place else key, message)
    for path, spec in specs(value, key, within=False):
        check_spec(path, spec, argument, lines)
    return value


def check_spec(path: str, spec: dict[str, Any], argument: Argument, lines: Lines) -> None:
    class_path, init_args = spec["class_path"], spec.get("init_args") or {}
    if extra := [key for key in spec if key not in SPEC]:
        fail(lines, join(path, extra[0]), "stands beside class_path, but belongs under init_args")
    if refusal := why_refused(class_path, argument):
        fail(lines, path, refusal)
    known = signature(class_path) if not (argument.named and argument.named.factory) else None
    for name, wanted in known.arguments.items() if known else ():
        left_out = name not in init_args and not (path.startswith("trainer.logger") and name in RECORDS)
        if wanted.default is MISSING and not wanted.inherited and left_out:
            todo = "add it to its init_args" if any(map(str.isdigit, path.split("."))) else f"give --{path}.{name}"
            fail(lines, path, f"{class_path} needs {name} -> {todo}")


def why_refused(class_path: Any, argument: Argument) -> str:
    """What is wrong with a class or function that a config names, or nothing. Foreign functions are called with what a
    config says only where they are annotated to return what is wanted."""
    if not isinstance(class_path, str) or "." not in class_path:
        return f"{shown(class_path)} is not the dotted path of a class{same_name(class_path)}"
    if not any(f"{class_path}.".startswith(f"{prefix}.") for prefix in allowed_prefixes()) or "._" in class_path:
        hint = same_name(class_path)
        return f"{class_path} is not among what pyproject.toml allows configs to name{hint}"
    found, module = find(class_path), class_path.rpartition(".")[0]
    if is_ours(module) and (not found or found.module != module):
        return f"there is no {class_path}{same_name(class_path)}"
    is_function = found is not None and isinstance(found.node, ast.FunctionDef) and not is_ours(module)
    made = returned(found) if found and is_function else found
    answers = [derives(made.path if made else class_path, base) for base in argument.bases]
    wanted = " or ".join(argument.bases)
    if is_function and not (argument.named and argument.named.factory and True in answers):
        return f"{class_path} is a function, which is not known to give a {wanted or 'class that is wanted here'}"
    return f"{class_path} is not derived from {wanted}" if {*answers} == {False} else ""


@cache
def allowed_prefixes() -> tuple[str, ...]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return tuple(prefix.rstrip(".") for prefix in project["tool"][project["project"]["name"]]["allow"])


# Values


@cache
def adapter(annotation: Any) -> TypeAdapter:
    return TypeAdapter(annotation)


def without_bool(value: Any, annotation: Any) -> Any:
    """`true` as text where a number is expected, or pydantic would take it for 1."""
    takes = any(part in (bool, Any) for part in parts(annotation))
    return str(value).lower() if isinstance(value, bool) and not takes else value


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


# Refusing, with hints


def fail(lines: Lines, key: str, message: str) -> NoReturn:
    at = position(lines, key)
    raise ConfigError(f"{at}{f'{key}: ' if key and at != f'--{key}: ' else ''}{message}")


def position(lines: Lines, key: str) -> str:
    """Where a key, something in it, or what holds it, was set last."""
    inside = [line for name, line in lines.items() if name.startswith(f"{key}.")]
    if key not in lines and inside:
        return f"{inside[-1]}: "
    while key and key not in lines:
        key = key.rpartition(".")[0]
    return f"{lines[key]}: " if key else ""


def deeper(key: str, config: dict[str, Any], wrong: str = "") -> str:
    """Where else in the config a key of this name, or of a similar one, can be set."""
    every = [
        (name, join(path, name)) for path, _, given, known in groups(config) for name in {**known.arguments, **given}
    ]
    paths = {name: path for name, path in every if path != wrong}
    found = [key] if key in paths else difflib.get_close_matches(key, paths, n=2, cutoff=0.7)
    return f"; did you mean {' or '.join(sorted(paths[name] for name in found))}?" if found else ""


def same_name(class_path: Any) -> str:
    """A class that may be named and is called so, or one of ours with a similar path."""
    name = str(class_path).rpartition(".")[2].lower()
    foreign = (f"{prefix}.{public}" for prefix in allowed_prefixes() for public in exported(prefix))
    same = next((known for known in (*classes(), *foreign) if known.rpartition(".")[2].lower() == name), None)
    return f"; did you mean {same}?" if same else nearest(str(class_path), classes())


def shown(value: Any) -> str:
    return json.dumps(value, default=str)[:60]
