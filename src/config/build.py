"""From a checked request to typed objects: jsonargparse with our sections, our errors and the allow-list."""

import ctypes
import gc
import inspect
import logging
import re
import warnings
from functools import partial, reduce
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from src.callbacks.data_report import DataReport
from src.callbacks.progress import ThrottledProgress
from src.config.check import SECTIONS, TOP, allowed_prefixes, facts, fail, settable, shown, specs
from src.config.request import Request
from src.config.signatures import classes
from src.config.strict_yaml import join
from src.data.module import DataModule
from src.models.base import Model
from src.run.checkpoint import VerifiedCheckpointIO
from src.run.device import fastest_precision
from src.run.errors import ConfigError, nearest
from src.run.folder import RunFolder
from src.run.redact import redact

# Lightning says much at the start of a run that is not about the run.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
warnings.filterwarnings("ignore", message=".*Unable to serialize instance.*")  # of torchvision's defaults
warnings.filterwarnings("ignore", message="Found .* module.s. in eval mode.*")  # batch norms that model.freeze names
warnings.filterwarnings("ignore", message=".*`self.log.*sync_dist=True.*")  # torchmetrics have gathered it already
# Broadcasting (N,) against (N, 1) trains on garbage.
warnings.filterwarnings("error", message="Using a target size")
warnings.filterwarnings("ignore", message="No (positive|negative) samples in targets.*")  # said by Classification


class Parser(ArgumentParser):
    """Says what is wrong in one line, without a page of usage before it."""

    request: Request

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """jsonargparse's nested message as `file:line: key: reason`; it is called for the inner keys first."""
        keys = re.findall(r'[Pp]arser key "([^"]+)"', message)
        key = ".".join(k for k in keys if k not in ("config", "init_args"))
        reason = re.sub(r"Type .* expects a function or a callable class: ", "", reason_in(message))
        reason = re.sub(r"\.*( Got value: .*)?$", "", reason.removeprefix(f'Parser key "{key}": '))
        if key.split(".")[0] in TOP:
            names = re.match(r"(?:[a-z_]\w*: )*", reason)[0]  # type: ignore[index]
            reason, (key, value) = reason.removeprefix(names), named(self.request.config, key, names.split(": ")[:-1])
            reason = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>|typing\.", r"\1", reason)
            reason = re.sub(r"^Expected an? ", "expected ", reason)
            reason += f", not {shown(value)}" if reason.startswith("expected") and not isinstance(value, dict) else ""
            no_list = re.match(r"expected (tuple|list|Sequence),", reason) and not isinstance(value, list)
            reason += " -> write [A, B, ...]" if no_list else ""
            reason, key = helped(reason, key, self.request.config)
        fail(self.request.lines, key, reason[:300])


def reason_in(message: str) -> str:
    """The line that tells most, or what all alternatives expect."""
    lines = [line.strip(" -") for line in message.splitlines()]
    telling = r"xpected|nvalid|not |require|must|No module|has no|cannot|callable class:"
    less = ("Given value", "Does not validate", "Problem with", "Expected a path", "Expected a dot import")
    wanted = [
        line for line in lines if re.search(telling, line) and not line.startswith(less) and "NoneType" not in line
    ]
    kinds = [line.removeprefix("Expected a ") for line in wanted if line.startswith("Expected a ")]
    return f"Expected a {' or '.join(kinds)}" if kinds else [*wanted, lines[-1]][0]


def helped(reason: str, key: str, config: dict[str, Any]) -> tuple[str, str]:
    """What jsonargparse says of classes, with what to do; and the key, where the reason is in what is below it."""
    if m := re.match(r"the following arguments are required: (\w+)", reason):
        lacks = [p for p, spec in specs(config) if m[1] in (settable(spec["class_path"]) or ()) and p.startswith(key)]
        key = lacks[-1] if lacks else key
        return f"{m[1]} is missing -> give --{key}.{m[1]}" if lacks else reason, key
    if m := re.match(r"Option '(\w+)' is not accepted", reason):
        holders = [(p, spec["class_path"]) for p, spec in specs(config) if m[1] in (spec.get("init_args") or ())]
        key, kind = next((pair for pair in reversed(holders) if pair[0].startswith(key)), (key, "it"))
        return f"{kind} takes no {m[1]} -> leave it out", key
    if m := re.match(r"Import path (\S+) does not correspond to a subclass of (\w+)", reason):
        base = next((path for path in classes() if path.endswith(f".{m[2]}")), m[2])
        return f"{m[1]} is not derived from {base}", key
    if m := re.match(r"module '([\w.]+)' has no attribute '(\w+)'", reason):
        return reason + nearest(m[2], vars(import_module(m[1]))), key
    return reason, key


def named(config: dict[str, Any], key: str, names: list[str]) -> tuple[str, Any]:
    """The one argument below `key` on whose way these names stand, and its value; else `key` with them."""
    if not names:
        return key, reduce(lambda node, part: node.get(part, {}), key.split("."), config)
    given = {
        join(path, name): value for path, spec in specs(config) for name, value in (spec.get("init_args") or {}).items()
    }
    ways = {path: path.split(".") for path in given if path.startswith(f"{key}.")}
    found = [path for path, way in ways.items() if way[-1] == names[-1] and [p for p in way if p in names] == names]
    return (found[0], given[found[0]]) if len(found) == 1 else (".".join([key, *names]), {})


class CLI:
    """Parses a request; `build` then makes `trainer`, `model` and `datamodule`.

    Args:
        request: the checked layers.

    Raises:
        ConfigError: a value has the wrong type, or a class is of the wrong kind.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=list(allowed_prefixes()))
        Parser.request = request  # of the class, because the parsers of nested classes speak, too
        self.parser = Parser()
        self.parser.add_argument("--seed_everything", type=int)
        self.parser.add_subclass_arguments(DataModule, "data", fail_untyped=False, required=True)
        self.parser.add_subclass_arguments(Model, "model", fail_untyped=False, required=True)
        for name, class_path in SECTIONS.items():
            cls = resolve_name(class_path)
            self.parser.add_class_arguments(cls, name, fail_untyped=False, instantiate=cls is not Trainer)
        self.parser.link_arguments("seed_everything", "data.init_args.seed")
        trainer = request.config["trainer"]
        if trainer.get("precision") == "auto":  # settled here, so that the run's config says what it was
            trainer["precision"] = settled_precision(request)
        self.config = self.parser.parse_object(request.config)
        # 1 is one batch and 1.0 is all, but jsonargparse takes them for the same where a float is tried first
        self.whole = {name: value for name, value in trainer.items() if type(value) is int}
        if request.options.print_config:
            print(yaml.safe_dump(self.plain_config, sort_keys=False), end="")
            raise SystemExit(0)

    @property
    def plain_config(self) -> dict[str, Any]:
        """The whole resolved config as plain data, without secrets."""
        plain = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        return redact({**plain, "trainer": plain["trainer"] | self.whole})

    def build(self, **trainer_overrides: Any) -> None:
        """Make the objects; not before, because a run that need not start should cost nothing.

        Args:
            trainer_overrides: arguments of the Trainer that are not the config's, such as the run folder.

        Raises:
            ConfigError: a class refuses its arguments, or settings contradict each other.
        """
        self.trainer_overrides = trainer_overrides
        seed_everything(self.config.seed_everything, workers=True)
        network = self.config.model.init_args.get("network")
        if isinstance(network, Namespace):
            self.config.model.init_args.network = as_factory(network)
        try:
            self.config_init = self.parser.instantiate(self.config)
            self.model, self.datamodule = self.config_init.model, self.config_init.data
            self.trainer: Any = self.make_trainer(vars(self.config_init.trainer) | self.whole | trainer_overrides)
        except (TypeError, ValueError, AttributeError, MisconfigurationException) as e:
            text = " ".join(str(e).split())
            own = re.search(r"Errors: - (.*?) - Expected a <class 'NoneType'>", text)  # ours, within jsonargparse's
            raise ConfigError((own[1] if own else text)[:300]) from e
        if self.request.stated:
            self.model.factory = partial(self.model.factory, **self.request.stated)
        if type(self.trainer.strategy.checkpoint_io) is not TorchCheckpointIO:
            raise ConfigError("trainer.plugins: checkpoints are written in one way here -> leave the CheckpointIO out")
        self.trainer.strategy.checkpoint_io = VerifiedCheckpointIO()
        self.trainer.accumulate_grad_batches = self.datamodule.divide_batch(self.trainer.world_size)
        if self.trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()

    def build_again(self, before: int, micro_batch_size: int) -> None:
        """Make the objects as at first, but for a smaller micro-batch; the trainer counts those."""
        self.config.data.init_args.micro_batch_size = micro_batch_size
        for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches", "val_check_interval"):
            if name in self.whole:
                self.whole[name] *= before // micro_batch_size
        del self.trainer, self.model, self.datamodule, self.config_init
        gc.collect()
        torch.cuda.empty_cache()
        self.build(**self.trainer_overrides)

    def make_trainer(self, config: dict[str, Any]) -> Trainer:
        """The Trainer with our callbacks besides those of the config, without Lightning's logger and progress bar."""
        ours = [part for part in vars(self.config_init).values() if isinstance(part, Callback)]
        if config["enable_progress_bar"] is False:
            ours = [callback for callback in ours if not isinstance(callback, ThrottledProgress)]
        given = config["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        for callback in given:
            if isinstance(callback, (Checkpoint, StochasticWeightAveraging)):  # neither could go on from a checkpoint
                other = "checkpoints" if isinstance(callback, Checkpoint) else "ema"
                raise ConfigError(f"trainer.callbacks: {type(callback).__name__} -> use the section {other} instead")
        callbacks = [*given, *ours, DataReport()]
        logger = config["logger"] if isinstance(config["logger"], (list, Logger)) else False
        return Trainer(**{**config, "callbacks": callbacks, "logger": logger, "enable_progress_bar": False})

    def callback(self, kind: type) -> Any:
        return next(c for c in self.trainer.callbacks if isinstance(c, kind))


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


def as_factory(spec: Namespace) -> Any:
    """A function with arguments as a factory: jsonargparse would call it at once, without the facts of the data."""
    target = resolve_name(":".join(spec.class_path.rsplit(".", 1)))  # not a module of torchvision's of the same name
    if inspect.isclass(target):
        return spec
    kept = {k: v for k, v in vars(spec.get("init_args", Namespace())).items() if k not in facts()}
    return partial(target, **kept)
