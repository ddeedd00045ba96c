"""The objects of a trained run, made again from its folder: for the commands that measure and use it, and load_run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.config.request import CommandParser, Request, command_parser, read_request
from src.config.source import class_attribute
from src.run.errors import CheckpointError, ConfigError
from src.run.files import write_json
from src.run.folder import RunFolder, ending, src_sha256
from src.run.terminal import console, rank, rank_zero_print, rows

if TYPE_CHECKING:
    from src.config.build import Experiment
    from src.models.base import Model


def load_run(path: str | Path, checkpoint: str = "best") -> "Model":
    """The trained model of a run, on the CPU and in evaluation mode.

    `model.predict(raw)` takes samples as they are; `model.run_dir`, `summary`, `facts`, `classes` and `units` (of
    targets) are what it knows. `model(x)` gives logits for what the network was trained on; `model.data`
    is the data module, with what was fitted on the training data.

    Args:
        path: the run folder.
        checkpoint: `best` or `last`.

    Raises:
        CheckpointError: there is no such run, or its checkpoint is missing or damaged.
    """
    from lightning.pytorch.utilities.seed import isolate_rng

    request = run_request(run_parser("load", None), ["--run_dir", str(path), "--checkpoint", checkpoint])
    with isolate_rng():  # building a network draws random numbers, which are the caller's
        model = load_model(request)[1]
    model.run_dir, model.summary, state = str(path), RunFolder(Path(path)).summary, model.data.statistics
    columns = [*state.get("columns", ()), state.get("target", {}).get("column", {})]
    written = {column.get("name"): column.get("unit") for column in columns}  # beside numbers, such as km
    model.units = {name: written.get(name) for name in state.get("targets", {}).get("names", ())}
    model.classes = state.get("class_names")
    return model


def load_model(request: Request, **trainer: Any) -> tuple["Experiment", "Model"]:
    """The objects of a run, its network with the weights of --checkpoint. No data is read."""
    from src.run import checkpoint as files

    experiment, path = trained(request, **trainer)
    model, data, saved = experiment.model, experiment.datamodule, files.load(path)
    data.fitted = state = saved[trained_with(request)]
    data.facts, data.statistics = state["facts"], state["statistics"]
    model.data, model.facts = data, {**data.facts, **model.own_facts()}
    model.network, model.precision = model.make_network(), experiment.trainer.precision_plugin
    files.fit_weights(model, saved["state_dict"])
    return experiment, model.eval()


def checkpoint_path(request: Request) -> Path:
    return RunFolder(Path(request.options.run_dir)).checkpoints / f"{request.options.checkpoint}.ckpt"


def trained(request: Request, **trainer: Any) -> tuple["Experiment", Path]:
    """The objects of a run, whose data module will take on what was fitted in training, and its checkpoint."""
    from src.config.build import Experiment
    from src.run import checkpoint as files

    experiment, path = Experiment(request), checkpoint_path(request)
    experiment.build(logger=False, **trainer, **alone(request))
    experiment.datamodule.fitted = files.load(path, filled=False).get(trained_with(request))
    experiment.datamodule.same_source = not other_data(request)
    return experiment, path


def unlimited(request: Request) -> dict[str, float]:
    """Limits with which all of a split is measured, unless a flag sets them, also where the run took a few batches."""
    names = ("limit_val_batches", "limit_test_batches", "limit_predict_batches")
    return {name: 1.0 for name in names if not request.lines.get(f"trainer.{name}", "").startswith("--")}


def alone(request: Request) -> dict[str, Any]:
    """One process, unless flags ask for more, also where many have trained."""
    one = {"strategy": "auto", "devices": 1, "num_nodes": 1}
    flags = [line for name, line in request.lines.items() if name.startswith(tuple(f"trainer.{name}" for name in one))]
    return {} if any(line.startswith("--") for line in flags) else one


def report_other_data(request: Request, report: dict[str, Any]) -> None:
    """Print what is notable of other data than the run's own, and write down all of it."""
    from src.data.report import lines

    if rank() == 0 and (name := other_data(request)):
        file = f"data_report{name}.json"
        write_json(Path(request.options.run_dir) / file, report)
        found = lines(report | {"shift": None}, file)
        console().print(rows(found)) if found else None


def trained_with(request: Request) -> str:
    """The name of the run's own data module, under which a checkpoint has what was fitted."""
    return saved_data(request)["class_path"].rpartition(".")[2]


def saved_data(request: Request) -> dict[str, Any]:
    return RunFolder(Path(request.options.run_dir)).config()["data"]


def other_data(request: Request) -> str:
    """`_NAME` where flags name other data than the run's own, for the names of files that hold what is found there."""
    data = request.config["data"]
    before = saved_data(request)
    if data["class_path"] != before["class_path"]:
        return f"_{data['class_path'].rpartition('.')[2]}"
    for name in class_attribute(data["class_path"], "sources") or ():
        value = (data.get("init_args") or {}).get(name)
        if value is not None and value != before["init_args"].get(name):
            return f"_{Path(value if isinstance(value, str) else value[0]).stem}"
    return ""


def run_parser(name: str, manual: str | None) -> CommandParser:
    """The options of commands that look at a run."""
    parser = command_parser(name, manual)
    parser.add_argument("--split", choices=["val", "test"], default="test", help="the samples to take")
    parser.add_argument("--checkpoint", choices=["best", "last"], default="best", help="the checkpoint to take")
    return parser


def run_request(parser: CommandParser, args: Sequence[str]) -> Request:
    """A request whose first config is that of the run in --run_dir.

    Raises:
        ConfigError: --run_dir is missing.
        CheckpointError: no run is there, or no such checkpoint.
    """
    options = parser.parse_known_args(list(args))[0]
    if options.run_dir is None:
        raise ConfigError("which run? -> give --run_dir logs/EXPERIMENT/RUN")
    folder = RunFolder(Path(options.run_dir))
    folder.config()
    if not (folder.checkpoints / f"{options.checkpoint}.ckpt").exists():
        raise CheckpointError(f"{folder.path}: {why_missing(folder, options.checkpoint)}")
    if folder.state.get("code", {}).get("src_sha256") not in (None, src_sha256()) and not options.print_config:
        rank_zero_print("The code has changed since this run was trained: the results may differ.")
    return read_request(parser, ["--config", str(folder.path / "config.yaml"), *args])


def why_missing(folder: RunFolder, name: str) -> str:
    """Why a run lacks a checkpoint, and what to do."""
    end = ending(folder)
    how = {"cut short": "was cut short", "training": "still trains,"}.get(end["status"], end["status"])
    how += f" after {end['steps']} steps" if "steps" in end else ""
    why = f" ({end['error'].partition(' -> ')[0]})" if "error" in end else ""
    return f"no {name} checkpoint is there: the run {how}{why} -> give its command again, or take another"
