"""From a checked request to objects: the Trainer, the model, the data module, and what the sections name."""

import ctypes
import logging
import os
import warnings
from functools import partial
from importlib import import_module
from inspect import isclass, isfunction
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import (
    Checkpoint,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import TorchCheckpointIO, XLACheckpointIO

from src.callbacks.ema import EMA
from src.callbacks.progress import ThrottledProgress
from src.config.check import SECTIONS, TOP, fail, section, why_refused
from src.config.request import Request, with_defaults
from src.config.signatures import Argument, Signature, signature
from src.config.source import find
from src.config.strict_yaml import join
from src.loggers.other import at_home
from src.models.factory import origin
from src.run.checkpoint import checkpoint_io_for
from src.run.device import check_devices, check_precision, fastest_precision
from src.run.errors import ConfigError, KnownError, nearest
from src.run.folder import RunFolder
from src.run.launch import check_launch
from src.run.parts import Parts
from src.run.private import attach_data, skip_idle_hooks
from src.run.redact import redact
from src.strategies.fsdp import FSDP, holds_meta

# Lightning says much at the start of a run that is not about the run.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # of what torchao calls when it is imported
warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # docs/sharding.md says so
warnings.filterwarnings("ignore", message="Found .* module.s. in eval mode.*")  # batch norms that model.freeze names
warnings.filterwarnings("ignore", message=".*`self.log.*sync_dist=True.*")  # torchmetrics have gathered it already
# Broadcasting (N,) against (N, 1) trains on garbage.
warnings.filterwarnings("error", message="Using a target size")
warnings.filterwarnings("ignore", message="No (positive|negative) samples in targets.*")  # Classification says so
warnings.filterwarnings("ignore", message=".*AMP with fp16 is not supported.*")  # is refused below

# Callbacks that could not go on from a checkpoint, or that change the size of a batch.
INSTEAD: dict[Any, str] = {
    Checkpoint: "the section checkpoints",
    (StochasticWeightAveraging, WeightAveraging): "the section ema",
    GradientAccumulationScheduler: "data.micro_batch_size",
}
EXTRAS = {"timm": '-e ".[timm]"'}
FSDP_PRESET = "--config configs/trainer/fsdp.yaml"
FULL_NAMES = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}  # of Lightning's precisions


class Experiment:
    """The objects of a run: `build` makes `trainer`, `model` and `datamodule`.

    Args:
        request: what was asked for, checked.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        trainer = request.config["trainer"]
        if trainer.get("precision") == "auto":  # settled here, so that the run's config says what it was
            trainer["precision"] = settled_precision(request)
        self.plain_config = redact(with_defaults(request.config))
        if request.options.print_config:
            print(yaml.safe_dump(self.plain_config, sort_keys=False), end="")
            raise SystemExit(0)

    def build(self, **trainer_overrides: Any) -> None:
        """Make the objects; not before, because a run that need not start should cost nothing.

        Args:
            trainer_overrides: arguments of the Trainer that are not the config's, such as the run folder.

        Raises:
            ConfigError: a class refuses its arguments, or settings contradict each other.
        """
        config = self.request.config
        seed_everything(config["seed_everything"], workers=True)
        if config.get("threads"):
            torch.set_num_threads(config["threads"])
        data = config["data"]
        data = {**data, "init_args": {**(data.get("init_args") or {}), "seed": config["seed_everything"]}}
        self.datamodule = self.made("data", data, TOP.arguments["data"])
        self.model = self.made("model", config["model"], TOP.arguments["model"])
        specs = {name: {"class_path": path, "init_args": config[name]} for name, path in SECTIONS.items()}
        self.sections = {name: self.made(name, spec, Argument()) for name, spec in specs.items() if name != "trainer"}
        root = trainer_overrides.get("default_root_dir")
        logger = at_home(config["trainer"].get("logger"), RunFolder(Path(root))) if root else None
        trainer = self.arguments("trainer", config["trainer"] | {"logger": logger}, section("trainer"))
        self.trainer: Any = self.make_trainer(trainer, **trainer_overrides)
        self.trainer.strategy.checkpoint_io = checkpoint_io_for(self.trainer.strategy)
        if isinstance(self.trainer.strategy, FSDP):
            self.check_sharded(self.trainer.strategy)
        self.trainer.accumulate_grad_batches = self.datamodule.divide_batch(self.trainer.world_size)
        if self.trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
        if not torch.cuda.device_count():  # else each step of Adam looks for NVIDIA's library, which Lightning asks for
            os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"

    def on_meta(self, devices: int = 0, facts: dict[str, Any] | None = None) -> int:
        """Make all that training begins with, but the network without memory for its weights where
        it can be made so: it can have any size.

        Args:
            devices: divide batches for so many, on a Trainer of one; by default for those of the Trainer.
            facts: of data that is not here, in place of those of this data.

        Returns:
            The number of micro-batches of one optimizer step.
        """
        self.build(logger=False)
        trainer, data = self.trainer, self.datamodule
        accumulated = trainer.accumulate_grad_batches
        if devices:
            data.micro_batch_size = (self.request.config["data"].get("init_args") or {}).get("micro_batch_size")
            accumulated = data.divide_batch(devices)
            trainer.accumulate_grad_batches = accumulated * devices
        data.prepare_data()
        trainer.strategy.connect(self.model)  # this and the next line are what fit begins with
        attach_data(trainer, self.model, data)
        data.setup("fit")
        if unknown := sorted({*(facts or {})} - {*data.facts}):
            raise ConfigError(f"--facts: the data has no {unknown[0]}{nearest(unknown[0], data.facts)}")
        for name, value in (facts or {}).items():  # one number is all sides of a size
            before = data.facts[name]
            is_size = isinstance(before, (tuple, list)) and isinstance(value, int)
            data.facts[name] = (value,) * len(before) if is_size else value
        try:
            with torch.device("meta"):
                self.model.configure_model()
        except ConfigError:  # its constructor looks at numbers; or is wrong, which shows again
            self.model.network = None
        if self.model.network is not None and holds_meta(self.model.network):
            self.model.network = None
        self.model.configure_model()  # nothing, where there is a network
        self.model = trainer.precision_plugin.convert_module(self.model)
        if not facts:  # the data would not fit the network
            self.model.on_fit_start()  # counts operations
        return accumulated

    def made(self, path: str, value: Any, argument: Argument) -> Any:
        """A value of the config with the classes that it names made into objects, or into factories."""
        if isinstance(value, (list, tuple)):
            return type(value)(self.made(join(path, i), item, argument) for i, item in enumerate(value))
        if not isinstance(value, dict):
            return value
        if "class_path" not in value:
            return {name: self.made(join(path, name), item, argument) for name, item in value.items()}
        target = self.load(path, value["class_path"], argument)
        known = signature(value["class_path"]) or Signature()
        given = self.arguments(path, value.get("init_args") or {}, known)
        if argument.named and argument.named.factory:
            return partial(target, **given)
        return self.call(path, target, given)

    def arguments(self, path: str, given: dict[str, Any], known: Signature) -> dict[str, Any]:
        return {n: self.made(join(path, n), value, known.arguments.get(n, Argument())) for n, value in given.items()}

    def load(self, path: str, class_path: str, argument: Argument) -> Any:
        """The class or function that a path names. What the check could not read from source is asked here."""
        module, _, name = class_path.rpartition(".")
        if class_path not in SECTIONS.values() and (refusal := why_refused(class_path, argument)):
            fail(self.request.lines, path, refusal)
        try:
            loaded = import_module(module)
        except ImportError as e:
            missing = getattr(e, "name", None) or ""
            todo = f" -> pip install {EXTRAS.get(missing, missing)}" if missing == module.partition(".")[0] else ""
            where = "" if module.startswith(missing) else origin(e)
            fail(self.request.lines, path, first_line(e) + where + todo)
        if not hasattr(loaded, name):
            fail(self.request.lines, path, f"{module} has no {name}{nearest(name, vars(loaded))}")
        target, bases = getattr(loaded, name), tuple(map(resolve_name, argument.bases))
        if isclass(target):
            fits = issubclass(target, bases) if bases else target.__module__.split(".")[0] == module.split(".")[0]
        else:
            fits = isfunction(target) and find(class_path) is not None
        if not fits:
            wanted = " or ".join(argument.bases) or "a class"
            fail(self.request.lines, path, f"{class_path} is not derived from {wanted}")
        return target

    def call(self, path: str, target: Any, given: dict[str, Any]) -> Any:
        try:
            return target(**given)
        except (KnownError, KeyError, IndexError, NameError):  # all but the first are bugs
            raise
        except Exception as e:  # what the constructors of others raise has no common base
            place = "" if path == "trainer" else origin(e)
            fail({} if path == "trainer" else self.request.lines, path, first_line(e) + place)

    def make_trainer(self, given: dict[str, Any], **overrides: Any) -> Trainer:
        """The Trainer with our callbacks besides those of the config, without Lightning's logger and progress bar."""
        ours = [part for part in self.sections.values() if isinstance(part, Callback)]
        if given.get("enable_progress_bar") is False:
            ours = [callback for callback in ours if not isinstance(callback, ThrottledProgress)]
        callbacks = given.get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        for callback in callbacks:
            for kinds, instead in INSTEAD.items():
                if isinstance(callback, kinds):
                    raise ConfigError(f"trainer.callbacks: {type(callback).__name__} -> use {instead} instead")
        logger = given.get("logger")
        given |= {"callbacks": [*callbacks, *ours], "enable_progress_bar": False, **overrides}
        given |= {"logger": logger if isinstance(logger, (list, Logger)) else False}
        given["profiler"] = given.get("profiler") or Parts()
        check_devices(given.get("accelerator"), given.get("devices"))
        if (name := str(given.get("strategy"))).startswith(("fsdp", "deepspeed")):
            raise ConfigError(f"trainer.strategy: no {name} of Lightning's, see docs/sharding.md -> {FSDP_PRESET}")
        trainer = self.call("trainer", Trainer, given)
        check_trainer(trainer, given.get("precision"))
        skip_idle_hooks(trainer.callbacks)
        return trainer

    def check_sharded(self, strategy: FSDP) -> None:
        """Refuse what does not go with a divided model."""
        strategy.check(self.trainer.world_size)
        if any(isinstance(callback, EMA) and callback.decay is not None for callback in self.trainer.callbacks):
            raise ConfigError("ema.decay: FSDP keeps no average of the weights -> leave it out, or take ddp")
        if self.request.config["trainer"].get("sync_batchnorm"):
            todo = "leave it out, give the network SyncBatchNorm, or take ddp"
            raise ConfigError(f"trainer.sync_batchnorm: FSDP changes no batch norms -> {todo}")
        optimizer = self.request.config["model"]["init_args"]["optimizer"]["class_path"]
        if optimizer.startswith("torchao.") or optimizer.endswith(".Adafactor"):
            raise ConfigError(f"model.optimizer: {optimizer} has states that FSDP cannot divide -> torch.optim.AdamW")

    def callback(self, kind: type) -> Any:
        return next(c for c in self.trainer.callbacks if isinstance(c, kind))


def check_trainer(trainer: Trainer, precision: Any) -> None:
    """Refuse what the Trainer was told but does not do."""
    if precision is not None and FULL_NAMES.get(str(precision), precision) != trainer.precision:
        device, does = trainer.strategy.root_device.type, trainer.precision
        raise ConfigError(
            f"trainer.precision: {precision} becomes {does} on a {device} -> take {does}, auto or 32-true"
        )
    check_precision(str(trainer.precision), trainer.strategy.root_device)
    check_launch(trainer)
    if type(trainer.strategy.checkpoint_io) not in (TorchCheckpointIO, XLACheckpointIO):
        raise ConfigError("trainer.plugins: checkpoints are written in one way here -> leave the CheckpointIO out")


def first_line(e: Exception) -> str:
    """What an error says, without the pages that some libraries add."""
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    return (lines[0] if lines else type(e).__name__)[:300]


def settled_precision(request: Request) -> str:
    """What `auto` stands for: in a folder that holds a run what it was there, else the fastest."""
    folder = RunFolder(Path(request.options.run_dir or ""))
    begun = folder.config()["trainer"].get("precision") if (folder.path / "config.yaml").is_file() else None
    return begun or fastest_precision(str(request.config["trainer"].get("accelerator", "auto")))


def keep_freed_memory() -> None:
    """Let the C library hold on to what is freed, for the next step: else the kernel clears each large tensor's memory
    anew, a tenth of a step's time on a CPU. Other libraries than glibc stay as they are."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(-4, 0)  # M_MMAP_MAX: no tensor gets a mapping of its own, which would end with it
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink
