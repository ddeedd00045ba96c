"""What a sweep's file says: read, and checked as a run would, before anything begins."""

import copy
import inspect
import json
import math
from argparse import Namespace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from src.config.check import check, fail
from src.config.request import Request, add, from_flag
from src.config.strict_yaml import Lines, read_file
from src.run.errors import ConfigError, nearest
from src.run.folder import LOGS

VALUES = "{low: A, high: B}, also with log: true or step: S; or {choices: [A, B]}"


def read_plan(request: Request, options: Namespace) -> Namespace:
    """The options, and what the file adds to them, checked against the config."""
    monitor = request.config["checkpoints"]
    plan = {"metric": monitor.get("monitor"), "mode": monitor.get("mode", "min"), "minutes": math.inf, "space": {}}
    plan |= {"num_trials": 20, "sampler": {"name": "TPESampler"}, "pruner": {"name": "NopPruner"}}
    if not options.sweep:
        raise ConfigError("--sweep is missing -> configs/sweep/NAME.yaml")
    given, lines = read_file(Path(options.sweep))
    for name, value in given.items():
        if name not in plan:
            fail(lines, name, f"unknown key {name}{nearest(name, plan)}")
        kinds = (int, float) if name == "minutes" else type(plan[name])
        if not isinstance(value, kinds) or value in (0, "") or (name == "mode" and value not in ("min", "max")):
            fail(lines, name, f"{value!r} cannot stand here")
    plan = vars(options) | plan | given | ({"num_trials": options.num_trials} if options.num_trials else {})
    if not plan["space"]:
        fail(lines, "", f"{options.sweep}: space is missing -> {{model.optimizer.lr: {{low: 0.01, high: 1}}}}")
    plan["space"] = {key: distribution(key, values, request, lines) for key, values in plan["space"].items()}
    check_space(plan["space"], request, lines)
    plan["folder"] = Path(options.run_dir or LOGS / request.experiment / Path(options.sweep).stem)
    plan |= {name: partial(made, name, plan[name], lines) for name in ("sampler", "pruner")}
    return Namespace(**plan)


def distribution(key: str, values: Any, request: Request, lines: Lines) -> Any:
    """Lists and classes among the choices are text, because Optuna's databases hold plain values."""
    import optuna.distributions as kinds

    if request.lines.get(key, "").startswith("--"):
        fail(lines, f"space.{key}", "a flag sets it, too -> leave it out of one of them")
    try:
        if "choices" in values:
            plain = [json.dumps(one) if isinstance(one, (list, dict)) else one for one in values["choices"]]
            return kinds.CategoricalDistribution(**values | {"choices": plain})
        is_int = all(isinstance(values.get(name, 1), int) for name in ("low", "high", "step"))
        return (kinds.IntDistribution if is_int else kinds.FloatDistribution)(**values)
    except (TypeError, ValueError, AttributeError) as e:
        fail(lines, f"space.{key}", f"{str(e).rpartition('__init__() ')[2]} -> {VALUES}")


def check_space(space: dict[str, Any], request: Request, lines: Lines) -> None:
    """The ends or choices of each key, with the first of the others, as a run would check them."""
    ends = {key: getattr(one, "choices", None) or (one.low, one.high) for key, one in space.items()}
    first = {key: values[0] for key, values in ends.items()}
    for params in [first | {key: value} for key, values in ends.items() for value in values]:
        config, places = copy.deepcopy(request.config), dict(request.lines)
        for key, value in params.items():
            config = add(config, from_flag(key, text_of(value), config), {key: lines[f"space.{key}"]}, places)
        check(config, places)


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def made(kind: str, spec: dict[str, Any], lines: Lines, shift: int = 0) -> Any:
    """A sampler or pruner of Optuna's; `shift` is added to its seed."""
    module, name = import_module(f"optuna.{kind}s"), str(spec.get("name"))
    given = {key: value for key, value in spec.items() if key != "name"}
    names = [public for public in module.__all__ if public.lower().endswith(kind)]
    if name not in names:
        fail(lines, kind, f"{name} is none of {', '.join(names)}{nearest(name, names)}")
    if "seed" in inspect.signature(getattr(module, name)).parameters and name != "QMCSampler":  # which counts by itself
        given["seed"] = (given.get("seed") or 0) + shift
    try:
        return getattr(module, name)(**given)
    except (TypeError, ValueError, ImportError) as e:
        fail(lines, kind, f"{name}: {str(e).splitlines()[0]}")
