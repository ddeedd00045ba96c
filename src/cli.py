"""From a checked request to typed objects: LightningCLI with our sections, our errors and the allow-list."""

import inspect
import logging
import re
import warnings
from functools import partial
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import TorchCheckpointIO

from src.callbacks.checkpoints import Checkpoints
from src.callbacks.data_report import DataReport
from src.callbacks.pictures import Pictures
from src.callbacks.progress import ThrottledProgress
from src.callbacks.throughput import Throughput
from src.checkpoint import VerifiedCheckpointIO
from src.checks import allowed_prefixes, facts
from src.config import Request
from src.data.module import DataModule
from src.errors import ConfigError
from src.loggers.wandb import WandbOptions
from src.models.base import Model

# Lightning says much at the start of a run that is not about the run.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter is intended.*")


class Parser(LightningArgumentParser):
    """Says what is wrong in one line, without a page of usage before it."""

    request: Request

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigError(one_line(message, self.request)) from ex


def one_line(message: str, request: Request) -> str:
    """jsonargparse's nested message as `file:line: key: reason`."""
    keys = re.findall(r'[Pp]arser key "([^"]+)"', message)
    key = ".".join(k for k in keys if k not in ("config", "init_args"))
    leaves = [line.strip(" -") for line in message.splitlines() if re.search(r"xpected|nvalid|not |require|must", line)]
    wanted = [line for line in leaves if not line.startswith(("Given value", "Does not validate", "Problem with"))]
    reason = next((line for line in wanted if "NoneType" not in line), message.splitlines()[-1])
    reason = re.sub(r"\. Got value: .*", "", reason.removeprefix(f'Parser key "{key}": '))
    return f"{request.where(key)}{key}{': ' if key else ''}{reason[:300]}"


class CLI(LightningCLI):
    """Parses a request and builds `trainer`, `model` and `datamodule`.

    Args:
        request: the checked layers.
        trainer_overrides: arguments of the Trainer that are not the config's, such as the run folder.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        Parser.request = request
        set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=list(allowed_prefixes()))
        super().__init__(
            LightningModule, LightningDataModule, run=False, subclass_mode_model=True, subclass_mode_data=True,
            auto_configure_optimizers=False, save_config_callback=None, load_from_checkpoint_support=False,
            parser_class=Parser, parser_kwargs={"allow_abbrev": False}, args=request.config,
        )  # fmt: skip
        if request.options.print_config:
            print(yaml.safe_dump(self.plain_config, sort_keys=False), end="")
            raise SystemExit(0)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        parser.add_lightning_class_args(Pictures, "pictures")
        parser.add_lightning_class_args(Throughput, "throughput")
        parser.add_lightning_class_args(ThrottledProgress, "progress")
        parser.add_class_arguments(WandbOptions, "wandb")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def instantiate_classes(self) -> None:
        """Nothing yet: the run folder comes first, so that a run which need not start costs nothing."""

    @property
    def plain_config(self) -> dict[str, Any]:
        """The whole resolved config as plain data."""
        return yaml.safe_load(self.parser.dump(self.config, skip_none=False))

    def build(self, **trainer_overrides: Any) -> None:
        """Make the objects.

        Raises:
            ConfigError: a class refuses its arguments, or settings contradict each other.
        """
        network = self.config.model.init_args.get("network")
        if isinstance(network, Namespace):
            self.config.model.init_args.network = as_factory(network)
        self.trainer_overrides = trainer_overrides
        try:
            super().instantiate_classes()
        except (TypeError, ValueError, AttributeError) as e:  # Lightning's own complaints are ValueErrors, too
            raise ConfigError(" ".join(str(e).split())[:300]) from e
        if not isinstance(self.model, Model) or not isinstance(self.datamodule, DataModule):
            raise ConfigError(
                "model and data must be classes derived from src.models.base.Model and src.data.module.DataModule"
            )
        if self.request.stated:
            self.model.factory = partial(self.model.factory, **self.request.stated)
        if type(self.trainer.strategy.checkpoint_io) is not TorchCheckpointIO:
            raise ConfigError("trainer.plugins: checkpoints are written in one way here -> leave the CheckpointIO out")
        self.trainer.strategy.checkpoint_io = VerifiedCheckpointIO()
        self.trainer.accumulate_grad_batches = self.datamodule.divide_batch(self.trainer.world_size)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        if config.get("enable_progress_bar") is False:
            callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)]
        callbacks = [*callbacks, DataReport()]
        loggers = config["logger"] if isinstance(config["logger"], (list, Logger)) else False  # besides our own
        return super()._instantiate_trainer({**config, "logger": loggers, **self.trainer_overrides}, callbacks)

    def callback(self, kind: type) -> Any:
        return next(c for c in self.trainer.callbacks if isinstance(c, kind))  # type: ignore[attr-defined]


def as_factory(spec: Namespace) -> Any:
    """A function with arguments as a factory: jsonargparse would call it at once, without the facts of the data."""
    from jsonargparse._util import import_object

    target = import_object(spec.class_path)
    if inspect.isclass(target):
        return spec
    kept = {k: v for k, v in vars(spec.get("init_args", Namespace())).items() if k not in facts()}
    return partial(target, **kept)
