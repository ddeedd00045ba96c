"""Train a model, then test its best checkpoint.

    python -m src.train --config configs/experiment/digits_cnn.yaml
    python -m src.train --config configs/experiment/digits_cnn.yaml --config configs/trainer/smoke.yaml
    python -m src.train --config configs/experiment/digits_cnn.yaml --model.network.widths [32,64] --data.batch_size 32

The run is written to logs/<experiment>/<time>/, or to --run_dir. The same command again goes on with a run that was
cut short, to the very same weights; a finished run in --run_dir is left alone. --resume none always begins a new run,
--resume PATH one that goes on from where another run or checkpoint was. Any key of the config can be given as a flag;
--print_config shows them all, --wandb.mode disabled turns W&B off. Exit codes: 0 done, 1 a bug, 2 config, 3 data,
4 checkpoint, 5 numbers, 75 environment, 130 and 143 stopped by a signal with a checkpoint written.
"""

import gc
import inspect
import json
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Any

from src.config.request import command_parser, read_request
from src.config.trained import load_run
from src.run.command import command, command_line, end_with_parent, exit_code, loading, one_line
from src.run.errors import CheckpointError, ConfigError
from src.run.files import write_json
from src.run.folder import RunFolder
from src.run.ledger import LEDGER, process_age, shares
from src.run.redact import hide
from src.run.terminal import console, duration, rank, rank_zero_print, relative_path, rows

if TYPE_CHECKING:
    from src.config.build import Experiment
    from src.models.base import Model

WANDB = Path(sys.executable).with_name("wandb")


@command
def main(args: Sequence[str]) -> int:
    LEDGER.open(process_age())
    if "END_WITH_PARENT" in os.environ:  # in a sweep: ranks, too, before they have met
        end_with_parent(signal.SIGKILL)
    return begin(args)


def train(experiment: Any, overrides: Any = None, run_dir: Any = None, resume: Any = "auto") -> "Model":
    """What the command does, from Python: gives the trained model, as `load_run` does, or raises the error of the line
    that the command prints. An experiment is a file, a dict of what stands in one, or a list of such; overrides are the
    flags, such as `{"trainer.max_epochs": 2}`."""
    LEDGER.open()
    with LEDGER.within("imports"), loading():
        import torch
        from lightning.pytorch.utilities.seed import isolate_rng
    environment, threads = dict(os.environ), torch.get_num_threads()
    (rng := isolate_rng(torch.cuda.is_initialized())).__enter__()  # a `with` would restore nothing after an error
    try:
        with TemporaryDirectory() as folder:
            files = experiment if isinstance(experiment, (list, tuple)) else [experiment]
            for i, config in enumerate(files := [*files]):
                if isinstance(config, dict):
                    files[i] = Path(folder, f"python{i or ''}.yaml")
                    files[i].write_text(as_yaml(config))
            flags = {"resume": str(resume), **({"run_dir": str(run_dir)} if run_dir else {}), **(overrides or {})}
            flags = {n: value if isinstance(value, str) else as_yaml(value) for n, value in flags.items()}
            begin([*(f"--config={file}" for file in files), *(f"--{name}={value}" for name, value in flags.items())])
        return load_run(run_dir or os.environ["RUN_DIR_OF_ALL_PROCESSES"])
    finally:  # what is the caller's is as it was
        rng.__exit__(None, None, None)
        torch.set_num_threads(threads)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        gc.unfreeze()


as_yaml = partial(json.dumps, default=str)  # JSON is YAML; paths become text
called = {"__call__": staticmethod(train), "__signature__": inspect.signature(train)}
sys.modules[__name__].__class__ = type("Command", (ModuleType,), called)  # what `from src import train` gives


def begin(args: Sequence[str]) -> int:
    LEDGER.mark("config")
    parser = command_parser("train", __doc__)
    parser.add_argument("--resume", metavar="auto|none|PATH", default="auto", help="what to go on from")
    parser.add_argument("--dry_run", action="store_true", help="print what would be trained, and stop")
    request = read_request(parser, args)
    # These load torch, which takes seconds; what is wrong in a file was found before.
    with LEDGER.within("imports"), loading():
        from src.config.build import Experiment
        from src.run.resume import choose

    experiment, options = Experiment(request), request.options
    if options.dry_run:
        return dry_run(experiment)
    folder = choose(options.run_dir, options.resume, request.experiment, experiment.plain_config)
    if folder.summary.get("status") == "finished":
        folder.compare(experiment.plain_config)
        results = "Its results are in summary.json; --run_dir names another folder."
        rank_zero_print(f"This run is finished: {folder.path}\n{results}")
        return 0
    folder.open(experiment.plain_config, command_line("src.train", args))
    return record(experiment, folder)


def dry_run(experiment: "Experiment") -> int:
    """Print what would be trained. The network is made without memory for its weights, so that it can have any size."""
    from src.callbacks.expected import expected
    from src.callbacks.progress import plan
    from src.config.planned import layout_of, space
    from src.cost.devices import here

    experiment.on_meta()
    trainer, model = experiment.trainer, experiment.model
    usage, device = expected(trainer, model), here(trainer.strategy.root_device)
    chosen = Namespace(devices=trainer.world_size, strategy=None)
    layout = layout_of(experiment.request.config["trainer"], chosen, False)
    step = {"precision": str(trainer.precision), "micro_batches": trainer.accumulate_grad_batches}
    parts = space(step, model, usage, layout, device)["parts"]
    console().print(rows(plan(trainer, model, usage, parts)))
    return 0


def record(experiment: "Experiment", folder: RunFolder) -> int:
    """Train and test, and write how it ended, however it ends."""
    LEDGER.mark("wandb")
    from src.loggers import other, wandb

    summary: dict[str, Any] = {"status": "failed", "exit_code": 1}
    logger = None
    try:
        with LEDGER.within("build"):
            experiment.build(default_root_dir=str(folder.path))
        if rank() == 0:
            other.begin(experiment.trainer.loggers, folder, experiment.plain_config)
            state = folder.state
            facts = {name: state[name] for name in ("command", "code", "origin", "hardware")}
            recorded = {**experiment.plain_config, **facts}
            logger = wandb.start(experiment.sections["wandb"], folder.path, state["wandb_id"], recorded)
        LEDGER.mark("build")
        summary |= fit_and_test(experiment, folder, logger)
        summary |= {"status": "finished", "exit_code": 0}
    except BaseException as e:
        summary |= failure(e, experiment, folder)
        raise
    finally:
        LEDGER.mark("end")
        summary["ledger"] = LEDGER.so_far()
        summary["first_step"] = folder.first_step  # time and ledger are of what came after it
        summary["seconds"] = round(sum(summary["ledger"].values()), 1)
        folder.close(summary)
        if logger:
            sync = f"{relative_path(WANDB)} sync {relative_path(folder.path)}/wandb/offline-run-*"
            if not logger.close(summary, summary["exit_code"]) and summary.get("steps"):
                rank_zero_print(f"W&B: to send the run:  {sync}")
            write_json(folder.path / "summary.json", summary | {"ledger": LEDGER.so_far()})
        if summary["exit_code"] in (ConfigError.code, CheckpointError.code) and summary["steps"] <= folder.first_step:
            folder.discard()
    if rank() == 0:
        print_results(folder, summary, experiment.model.uses)
    return 0


def failure(e: BaseException, experiment: "Experiment", folder: RunFolder) -> dict[str, Any]:
    """What the summary says of an error."""
    if removed := getattr(e, "removed", None):
        report = folder.path / "data_report.json"
        write_json(report, {"removed": removed})
        rank_zero_print(f"All samples that were found to be unusable: {relative_path(report)}")
    code = exit_code(e)
    status = "stopped" if code in (130, 143) else "failed"
    steps = experiment.trainer.global_step if hasattr(experiment, "trainer") else 0
    return {"status": status, "exit_code": code, "error": hide(one_line(e)), "steps": steps}


def fit_and_test(experiment: "Experiment", folder: RunFolder, logger: Any) -> dict[str, Any]:
    from lightning.pytorch.callbacks import LambdaCallback

    from src.callbacks.checkpoints import Checkpoints
    from src.loggers.curves import whole_rows
    from src.loggers.metrics_csv import MetricsCSV
    from src.run import checkpoint, resume
    from src.run.faults import faults_of

    trainer, model, data = experiment.trainer, experiment.model, experiment.datamodule
    checkpoint.check_strategy(trainer.strategy)
    with faults_of(trainer, data, folder):
        start = resume.begin(trainer, folder)
        if start:
            model.init_from = None  # the run has weights of its own
        logged = checkpoint.read_manifest(start)["steps_logged"] if start and rank() == 0 else 0
        metrics = MetricsCSV(folder.path, logged)
        if rank() == 0:

            def begin_training(*_: Any) -> None:
                write_json(folder.path / "data_report.json", data.report)
                metrics.begin(data.batch_size, model.flops_per_sample)

            trainer.callbacks.insert(0, LambdaCallback(on_train_start=begin_training))
        trainer.loggers = [metrics, *([logger] if logger else []), *trainer.loggers]
        if logger:
            logger.repeat(whole_rows(folder.path / "metrics.csv"))
        trainer.fit(model, datamodule=data, ckpt_path=start)  # nothing is left to do where training was done
        LEDGER.mark("test")
        steps, epochs, best = trainer.global_step, trainer.current_epoch, folder.checkpoints / "best.ckpt"
        results = trainer.test(model, datamodule=data, ckpt_path=best, verbose=False)
    LEDGER.mark("end")
    checkpoints = experiment.callback(Checkpoints)
    early = [type(callback).__name__ for callback in trainer.callbacks if getattr(callback, "stopped_epoch", 0)]
    at_best = {"step": checkpoint.read_manifest(best)["global_step"], checkpoints.monitor: checkpoints.best_score}
    figures = {name: value for name, value in data.report.items() if name.startswith("data/")}
    ended = {"stopped_by": early[0]} if early else {}
    return {**results[0], **figures, "best": at_best, "epochs": epochs, "steps": steps, **ended}


def print_results(folder: RunFolder, summary: dict[str, Any], uses: Sequence[str]) -> None:
    """What happened, and what to type next."""
    from src.loggers.curves import read_curves

    best, speed = summary["best"], read_curves(folder.path, ("perf/samples_per_sec",))
    found = ", ".join(f"{name} {value:.4g}" for name, value in best.items() if name != "step" and value is not None)
    python, run_dir = relative_path(Path(sys.executable)), relative_path(folder.path)
    table = {
        "done": f"{summary['steps']:,} steps, {summary['epochs']} epochs in {duration(summary['seconds'])}"
        + (f", stopped by {summary['stopped_by']}" if "stopped_by" in summary else ""),
        "best": f"step {best['step']:,}{', ' + found if found else ''}",
        "test": ", ".join(f"{n.removeprefix('test/')} {v:.4f}" for n, v in summary.items() if n.startswith("test/")),
        "speed": f"{speed['perf/samples_per_sec'][1][-1]:,.0f} samples/s" if speed else "",
        "time": ", ".join(f"{part} {share:.0%}" for part, share in shares(summary["ledger"]) if share > 0.02),
        "run": run_dir,
        "pictures": ", ".join(path.name for path in sorted(folder.path.glob("*.png"))),
    }
    console().print(rows({name: text for name, text in table.items() if text}))
    commands = [f"{python} -m src.{name} --run_dir {run_dir}" for name in ("evaluate", *uses)]
    commands.append(f"{python} -m src.runs {run_dir}")
    if (folder.path / "wandb").is_dir():
        commands.append(f"{relative_path(WANDB)} leet {run_dir}/wandb")
    rank_zero_print("\nNext:\n  " + "\n  ".join(commands))


if __name__ == "__main__":
    sys.exit(main())
