"""Try settings of an experiment, chosen by Optuna, each in a run of its own.

    python -m src.sweep --config configs/experiment/digits_cnn.yaml --sweep configs/sweep/rate_and_decay.yaml

docs/sweep.md says what can stand in the sweep file. Trials are runs like any other, in logs/<experiment>/<sweep>/ or
--run_dir; one that fails or is killed is on record with the reason. The same command goes on where it was stopped, and
in a second terminal it joins in. At the end there are a table, pictures, and best.yaml, a config for train.
"""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock

from src.config.request import Request, command_parser, read_request, with_defaults
from src.config.swept import read_plan, text_of
from src.loggers.curves import whole_rows
from src.run.command import command, command_line, end_with_parent
from src.run.errors import ConfigError, EnvironmentFault, nearest, need
from src.run.figures import save
from src.run.files import write_text
from src.run.folder import flat, is_free, lock
from src.run.terminal import print_table, rank_zero_print, relative_path

POLL_SEC, STOP_SEC = 0.5, 60.0
SHOWN, HOPELESS = 10, 10  # trials of the table, of the best and of the others; that fail before any other ends
optuna: Any = None  # an optional package


@command
def main(args: Sequence[str]) -> int:
    global optuna
    parser = command_parser("sweep", __doc__)
    parser.add_argument("--sweep", metavar="FILE", help="what to try, such as configs/sweep/rate_and_decay.yaml")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="trials at a time; GPUs are shared out")
    parser.add_argument("--num_trials", type=int, metavar="N", help="in place of what the file says")
    flags = parser.parse_known_args(list(args))[1]
    request = read_request(parser, args)
    need("optuna", "sweep")
    optuna = import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")  # much of Optuna says that it is experimental
    plan = read_plan(request, request.options)
    plan.train = [part for path in request.options.config or [] for part in ("--config", path)] + flags
    study = begun(plan, request)
    with helpers(plan, args):
        work(study, plan)
    if plan.workers:  # else a helper
        tell_results(study, plan)
    return 0


# The study


def begun(plan: Namespace, request: Request) -> Any:
    """Optuna's study in the sweep's folder, made or found again."""
    holds = {"metric": plan.metric, "mode": plan.mode, **{f"space.{key}": str(one) for key, one in plan.space.items()}}
    holds |= {key: str(v) for key, v in flat(with_defaults(request.config)).items() if not is_free(key)}
    pruner, _ = plan.pruner(), plan.sampler()
    if (plan.folder / "config.yaml").is_file():
        raise ConfigError(f"{plan.folder}: a run is there -> name another --run_dir")
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(plan.folder / ".lock"):
            named = {"storage": f"sqlite:///{plan.folder.absolute()}/study.db", "study_name": plan.folder.name}
            how = {"direction": f"{plan.mode}imize", "pruner": pruner, "load_if_exists": True}
            study: Any = optuna.create_study(**named, **how)
            before = study.user_attrs.get("holds", holds)
            study.set_user_attr("holds", before)
    except (OSError, import_module("sqlalchemy").exc.SQLAlchemyError) as e:
        raise EnvironmentFault(f"{plan.folder}: {str(e).splitlines()[0]} -> name another --run_dir") from e
    if keys := [key for key in before | holds if before.get(key) != holds.get(key)]:
        differ = "; ".join(f"{key} was {before.get(key)}, now {holds.get(key)}" for key in keys[:3])
        raise ConfigError(f"{plan.folder}: holds another sweep ({differ}) -> name another --run_dir, or remove it")
    return study


def counted(study: Any) -> list[Any]:
    """All trials but those that were cut short, which go on as others."""
    return [one for one in study.get_trials(deepcopy=False) if one.state.name != "FAIL" or "why" in one.user_attrs]


def path_of(trial: Any, plan: Namespace) -> Path:
    return plan.folder / trial.user_attrs.get("folder", f"trial-{trial.number:04d}")


def next_trial(study: Any, plan: Namespace) -> Any:
    """A trial that was cut short, or a new one, and a lock that says that it is at work; None where all are done."""
    with FileLock(plan.folder / ".lock"):
        for one in [one for one in study.get_trials(deepcopy=False) if one.state.name == "RUNNING"]:
            if held := lock(path_of(one, plan).with_suffix(".lock")):  # its sweep has ended
                held.close()
                study.tell(one.number, state=optuna.trial.TrialState.FAIL)
                study.enqueue_trial(one.params, {"folder": path_of(one, plan).name})
        states = [one.state.name for one in counted(study)]
        is_over = len(states) >= plan.num_trials or "exhausted" in study.user_attrs
        if (is_over or len(states) == states.count("FAIL") >= HOPELESS) and "WAITING" not in states:
            return None
        study.sampler = plan.sampler(len(states))  # else a sweep that goes on would draw the same again
        trial = study.ask(plan.space)
        return trial, lock(path_of(trial, plan).with_suffix(".lock"))


# Trials, each in a process of its own


def work(study: Any, plan: Namespace) -> None:
    t0 = time.monotonic()
    while time.monotonic() - t0 < 60 * plan.minutes and (found := next_trial(study, plan)):
        trial, held = found
        with held:
            attempt(study, plan, trial)
        number = sum(one.state.is_finished() for one in counted(study))
        shown = filter(None, cells(study.trials[trial.number], plan))
        rank_zero_print(f"{number} of {plan.num_trials}  {'  '.join(shown)}")


def attempt(study: Any, plan: Namespace, trial: Any) -> None:
    """Train, and record how that ended: with a value, pruned, or failed, and why."""
    path, code, is_pruned = path_of(trial, plan), None, False
    flags = [f"--{key}={text_of(value)}" for key, value in trial.params.items()]
    log = path.with_suffix(".log")
    with child("src.train", [*plan.train, *flags, "--run_dir", str(path)], log) as process:
        while code is None:
            time.sleep(POLL_SEC)
            code, values = process.poll(), validations(path / "metrics.csv", plan.metric)
            for step, value in enumerate(values):
                trial.report(value, step)  # what it has already is left alone
            if code is None and not is_pruned and trial.should_prune():
                is_pruned = True
                process.terminate()
    finite = [value for value in values if math.isfinite(value)]
    state = "COMPLETE" if code == 0 and finite else "PRUNED" if is_pruned else "FAIL"
    if state == "FAIL":
        trial.set_user_attr("why", reason(code, log))
    best = (min if plan.mode == "min" else max)(finite) if state == "COMPLETE" else None
    try:
        study.tell(trial, best, optuna.trial.TrialState[state])
    except RuntimeError:  # by Study.stop, with which a sampler says that it has been through all there is
        study.set_user_attr("exhausted", True)


def validations(file: Path, metric: str) -> list[float]:
    """The values of the metric so far; raises ConfigError where a validation has others, but not this one."""
    rows = whole_rows(file)
    logged = {name for row in rows for name, value in row.items() if value}
    if metric not in logged and any(name.startswith("val/") for name in logged):
        folder = relative_path(file.parents[1])
        raise ConfigError(f"metric: no {metric} is logged{nearest(metric, logged)} -> mend it, and remove {folder}")
    return [float(row[metric]) for row in rows if row.get(metric)]


def reason(code: int, log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["nothing was printed"]
    text = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1])
    killed = f"killed by {signal.Signals(-code).name}" if code < 0 else ""
    return killed or f"exit code {code}: {text.removeprefix('error: ')}"


@contextmanager
def child(module: str, args: Sequence[str], log: Path) -> Iterator[subprocess.Popen]:
    """A command in a process that ends with this one, however that ends; where there is time it is asked to first."""
    command, before = [sys.executable, "-m", module, *args], partial(end_with_parent, signal.SIGKILL)
    how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "start_new_session": True}
    with open(log, "wb") as out:
        process = subprocess.Popen(command, stdout=out, env=dict(os.environ), preexec_fn=before, **how)
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SEC)
        process.kill()


@contextmanager
def helpers(plan: Namespace, args: Sequence[str]) -> Iterator[None]:
    """The same command in further processes; each has its share of the GPUs, or of the cores."""
    with ExitStack() as stack:
        others = []
        if plan.workers > 1:
            query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
            found = shutil.which(query[0]) and subprocess.run(query, capture_output=True, text=True).stdout.split()
            gpus = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(found or [])).split(",")
            os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // plan.workers, 1)))
            for n in reversed(range(plan.workers)):  # 0 is this one
                os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[n % len(gpus) :: plan.workers])
                if n:
                    log = plan.folder / f"worker-{n}.log"
                    others.append(stack.enter_context(child("src.sweep", [*args, "--workers", "0"], log)))
        yield
        for process in others:
            process.wait()


# What was found


def cells(trial: Any, plan: Namespace) -> list[str]:
    shown = {plan.metric: trial.value, **trial.params}
    texts = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items()]
    texts[0] = "" if trial.value is None else texts[0]
    return [path_of(trial, plan).name, trial.state.name.lower(), *texts, trial.user_attrs.get("why", "")]


def tell_results(study: Any, plan: Namespace) -> None:
    """A table, the best first; pictures; the best config."""
    trials, sign = counted(study), 1 if plan.mode == "min" else -1
    whole = sorted((one for one in trials if one.state.name == "COMPLETE"), key=lambda one: sign * one.value)
    print_table([], [cells(one, plan) for one in whole[:SHOWN] + [one for one in trials if one not in whole][-SHOWN:]])
    states = Counter(one.state.name.lower() for one in trials)
    rank_zero_print(f"{', '.join(f'{n} {state}' for state, n in states.items())}, in {relative_path(plan.folder)}")
    if not whole:
        raise EnvironmentFault("no trial has come to its end -> see the reasons above")
    import_module("matplotlib").use("Agg")
    for name in ("optimization_history", "parallel_coordinate", "param_importances"):
        with suppress(ValueError, RuntimeError):  # importances of one trial, or of values that are all the same
            axes = getattr(optuna.visualization.matplotlib, f"plot_{name}")(study, target_name=plan.metric)
            save(axes.figure, plan.folder / f"{name}.png")
    file, config = plan.folder / "best.yaml", (path_of(whole[0], plan) / "config.yaml").read_text()
    write_text(file, f"# {'  '.join(cells(whole[0], plan))}\n{config}")
    rank_zero_print(f"\nNext:\n  {command_line('src.train', ['--config', relative_path(file)])}")


if __name__ == "__main__":
    sys.exit(main())
