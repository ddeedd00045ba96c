"""Trained models from their run folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from src.config import CommandParser, Request, command_parser, read_request
from src.errors import ConfigError
from src.run import RunFolder

if TYPE_CHECKING:
    from src.cli import CLI
    from src.models.base import Model


def load_run(path: str | Path, checkpoint: str = "best") -> "Model":
    """The trained model of a run, on the CPU and in evaluation mode.

    `model(x)` gives logits for what the network was trained on; `model.data.standardize` makes that from images
    [N, C, H, W] in [0, 1].

    Args:
        path: the run folder.
        checkpoint: `best` or `last`.

    Raises:
        CheckpointError: there is no such run, or its checkpoint is missing or damaged.
    """
    from lightning.pytorch.utilities.seed import isolate_rng

    request = run_request(command_parser("load", None), ["--run_dir", str(path)])
    with isolate_rng():  # building a network draws random numbers, which are the caller's
        return load_model(request, checkpoint)[1]


def load_model(request: Request, checkpoint: str) -> tuple["CLI", "Model"]:
    """The objects of a run, its network with the weights of a checkpoint. No data is read."""
    from src import checkpoint as files
    from src.cli import CLI
    from src.models.base import build_network

    saved = files.load(checkpoint_path(request, checkpoint))
    cli = CLI(request)
    cli.build(logger=False)
    model, data = cli.model, cli.datamodule
    state = saved[type(data).__qualname__]
    data.facts, data.statistics = state["facts"], state["statistics"]
    model.network, model.data = build_network(model.factory, data.facts), data
    files.fit_weights(model, saved["state_dict"])
    return cli, model.eval()


def checkpoint_path(request: Request, name: str) -> Path:
    return RunFolder(Path(request.options.run_dir)).checkpoints / f"{name}.ckpt"


def trained(cli: "CLI", request: Request) -> Path:
    """The checkpoint that is asked for; the data module will take on what was fitted on its training data."""
    from src import checkpoint as files

    path = checkpoint_path(request, request.options.checkpoint)
    cli.datamodule.fitted = files.load(path).get(type(cli.datamodule).__qualname__)
    return path


def other_data(request: Request) -> str:
    """`_NAME` where flags name other data than the run's own, for the names of files that hold what is found there."""
    own = RunFolder(Path(request.options.run_dir)).config()["data"]["init_args"]
    for name in ("data_dir", "files", "dataset"):
        value = request.config["data"]["init_args"].get(name)
        if value != own.get(name):
            return f"_{Path(str(value[0] if isinstance(value, list) else value)).stem}"
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
        CheckpointError: no run is there.
    """
    run_dir = parser.parse_known_args(list(args))[0].run_dir
    if run_dir is None:
        raise ConfigError("which run? -> give --run_dir logs/EXPERIMENT/RUN")
    RunFolder(Path(run_dir)).config()
    return read_request(parser, ["--config", str(Path(run_dir) / "config.yaml"), *args])
