"""Train a model, then test its best checkpoint.

    python -m src.train --config configs/experiment/digits_cnn.yaml
    python -m src.train --config configs/experiment/digits_cnn.yaml --config configs/trainer/smoke.yaml --seeds 3
    python -m src.train --config configs/experiment/digits_cnn.yaml --model.network.widths [32,64] --data.batch_size 32

The run is written to logs/<experiment>/<time>/, or to --run_dir. The same command again goes on with a run that was
cut short, to the very same weights; a finished run is left alone. Any key of the config can be given as a flag;
--print_config shows them all. Exit codes: 0 done, 1 a bug, 2 config, 3 data, 4 checkpoint, 75 environment, 130 and 143
stopped by a signal with a checkpoint written.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.config import command_parser, read_request
from src.run import RunFolder, choose, command_line, exit_code, hardware, rank, run_command, say
from src.terminal import console, duration, here, rows

if TYPE_CHECKING:
    from src.cli import CLI


def train(args: Sequence[str]) -> int:
    t0 = time.time()
    parser = command_parser("train", __doc__)
    parser.add_argument("--seeds", type=int, metavar="N", help="train with N seeds, and tell mean and spread")
    request = read_request(parser, args)
    if request.options.seeds is not None and not request.options.print_config:
        from src.seeds import train_seeds

        return train_seeds(request, parser, args)
    from src.cli import CLI  # loads torch, which takes seconds; what is wrong in a file was found before

    cli = CLI(request)
    config = cli.plain_config
    folder = choose(request.options.run_dir, request.experiment, config)
    if folder.finished:
        folder.compare(config)
        say(f"This run is finished: {folder.path}\nIts results are in summary.json; --run_dir names another folder.")
        return 0
    folder.open(config, command_line("src.train", args))
    return record(cli, folder, config, t0)


def record(cli: "CLI", folder: RunFolder, config: dict[str, Any], t0: float) -> int:
    """Train and test, and write how it ended, however it ends."""
    from src.loggers import wandb

    summary: dict[str, Any] = {"status": "failed", "exit_code": 1}
    logger = None
    try:
        cli.build(default_root_dir=str(folder.path))
        if rank() == 0:
            state = {name: folder.state[name] for name in ("command", "code")}
            facts = {**config, **state, "hardware": hardware()}
            logger = wandb.start(cli.config_init.wandb, folder.path, folder.state["wandb_id"], facts, say)
        summary |= fit_and_test(cli, folder, [logger] if logger else [])
        summary |= {"status": "finished", "exit_code": 0}
    except BaseException as e:
        code = exit_code(e)
        summary |= {"status": "stopped" if code in (130, 143) else "failed", "exit_code": code, "error": str(e)}
        raise
    finally:
        summary["seconds"] = round(time.time() - t0, 1)
        folder.close(summary)
        if logger and not logger.close(summary, summary["exit_code"]):
            wandb_program = here(Path(sys.executable).parent / "wandb")
            say(f"W&B: to send the run:  {wandb_program} sync {here(folder.path)}/wandb/offline-run-*")
    if rank() == 0:
        tell(folder, summary, cli.model.uses)
    return 0


def fit_and_test(cli: "CLI", folder: RunFolder, loggers: list[Any]) -> dict[str, Any]:
    from src import checkpoint
    from src.callbacks.checkpoints import Checkpoints
    from src.loggers.metrics_csv import MetricsCSV

    trainer = cli.trainer
    start, refused = checkpoint.newest(folder.checkpoints, tidy=rank() == 0)
    for line in refused:
        say(f"Not used: {line}")
    manifest = checkpoint.read_manifest(start) if start else {"global_step": 0, "steps_logged": 0}
    say(f"Run: {here(folder.path)}" + (f", going on after {manifest['global_step']} steps" if start else ""))
    trainer.loggers = [MetricsCSV(folder.path, manifest["steps_logged"]), *loggers, *trainer.loggers]
    trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=start)  # nothing is left to do where training was done
    steps, epochs, best = trainer.global_step, trainer.current_epoch, folder.checkpoints / "best.ckpt"
    results = trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=best, verbose=False)
    checkpoints = cli.callback(Checkpoints)
    at_best = {"step": checkpoint.read_manifest(best)["global_step"], checkpoints.monitor: checkpoints.best_score}
    data = {name: value for name, value in cli.datamodule.report.items() if name.startswith("data/")}
    return {**results[0], **data, "best": at_best, "epochs": epochs, "steps": steps}


def tell(folder: RunFolder, summary: dict[str, Any], uses: Sequence[str]) -> None:
    """What happened, and what to type next."""
    from src.loggers.metrics_csv import read_curves

    best, curves = summary["best"], read_curves(folder.path, ("perf/samples_per_sec",))
    found = ", ".join(f"{name} {value:.4g}" for name, value in best.items() if name != "step" and value is not None)
    results = {"test": ", ".join(f"{n.removeprefix('test/')} {v:.4f}" for n, v in summary.items() if "test/" in n)}
    pictures = ", ".join(path.name for path in sorted(folder.path.glob("*.png")))
    table = {
        "done": f"{summary['steps']:,} steps, {summary['epochs']} epochs in {duration(summary['seconds'])}",
        "best": f"step {best['step']:,}{', ' + found if found else ''}",
        **results,
        "speed": f"{curves['perf/samples_per_sec'][1][-1]:,.0f} samples/s" if curves else "",
        "run": here(folder.path),
        "pictures": pictures,
    }
    console().print(rows({name: text for name, text in table.items() if text}))
    if (folder.path.parent / "seeds.json").exists():
        return
    run_dir = here(folder.path)
    commands = [f"{here(Path(sys.executable))} -m src.{name} --run_dir {run_dir}" for name in ("evaluate", *uses)]
    commands.append(f"{here(Path(sys.executable))} -m src.runs {run_dir}")
    if (folder.path / "wandb").is_dir():
        commands.append(f"{here(Path(sys.executable).parent / 'wandb')} leet {run_dir}/wandb")
    say("\nNext:\n  " + "\n  ".join(commands))


def main(args: Sequence[str] | None = None) -> int:
    return run_command(train, args)


if __name__ == "__main__":
    sys.exit(main())
