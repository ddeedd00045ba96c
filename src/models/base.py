"""What all models share: a network made from facts of the data, an optimizer, a schedule, and cheap logging."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import Metric

from src.data.module import Batch
from src.models.cost import forward_flops
from src.models.factory import accepted, build, build_network, place
from src.models.finetuning import freeze, load_weights
from src.optim.groups import parameter_groups
from src.run.checkpoint import fit_weights
from src.run.errors import ConfigError
from src.run.terminal import rank_zero_print

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class MaskedMean(Metric):
    """The mean over all samples of all devices, without padding. NaN stays NaN.

    torchmetrics' MeanMetric either waits for the device at each update, to look for NaN, or ignores the weights.
    """

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        exact = torch.float32 if torch.backends.mps.is_available() else torch.float64  # Apple's GPUs have no float64
        self.add_state("total", torch.zeros((), dtype=exact), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=exact), dist_reduce_fx="sum")

    def update(self, values: Tensor, real: Tensor) -> None:
        """values [N], real [N]: whether each is a sample or padding."""
        self.total += torch.where(real, values.to(self.total.dtype), 0.0).sum()
        self.count += real.sum()

    def compute(self) -> Tensor:
        return (self.total / self.count).float()


class Model(LightningModule):
    """Base of the models: a subclass says what a step computes and what is measured.

    Args:
        network: the architecture, as a class or function that gives an `nn.Module`.
        optimizer: gets the parameters, in groups: norms, biases, tokens and positions have no weight decay.
        schedule: gets the optimizer; a `num_steps` or `total_steps` argument is filled in from the trainer.
        init_from: weights to begin with, where name and shape fit: a run folder, a checkpoint, a file of weights, or
            the name of torchvision's, such as `ResNet18_Weights.DEFAULT`.
        freeze: parameters that are not trained, by patterns of their names in the network, such as `blocks.0.*`.
        layer_decay: learning rate of each block as a share of the next one's, towards the head.
    """

    uses: tuple[str, ...] = ()  # commands for a trained model, besides evaluate

    def __init__(
        self,
        network: Callable[..., nn.Module],
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., LRScheduler | ReduceLROnPlateau] | None = None,
        init_from: str | None = None,
        freeze: Sequence[str] = (),
        layer_decay: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 < layer_decay <= 1:
            raise ConfigError(f"model.layer_decay: {layer_decay} is not above 0 and at most 1")
        self.factory, self.optimizer, self.schedule = network, optimizer, schedule
        self.init_from, self.frozen, self.layer_decay = init_from, freeze, layer_decay
        self.network: nn.Module | None = None
        self.flops_per_sample: int | None = None  # of a forward pass
        self.window: dict[str, Tensor] = {}  # sums since the last line of the log, on the device
        self.window_steps = 0

    def configure_model(self) -> None:
        if self.network is None:
            self.facts = self.trainer.datamodule.facts  # type: ignore[attr-defined]
            self.network = build_network(self.factory, self.facts)
            if self.init_from is not None and self.trainer.state.fn == TrainerFn.FITTING:
                rank_zero_print(load_weights(self.network, self.init_from))
            freeze(self.network, self.frozen)

    def on_fit_start(self) -> None:
        """Try the network on two samples, without arithmetic: a wrong shape is said before training.

        Raises:
            ConfigError: the network cannot take what the data module gives.
        """
        data, network = self.trainer.datamodule, self.network  # type: ignore[attr-defined]
        assert network is not None
        x = data.on_after_batch_transfer(data.splits["train"][torch.arange(2)], 0)["x"]
        try:
            flops, logits = forward_flops(network, x)
        except (RuntimeError, TypeError, ValueError) as e:
            what = " ".join(str(e).split())[:200]
            hint = " -> if it wants colour images: data.channels 3" if "to have 3 channels" in what else ""
            what = f"{type(network).__name__} cannot take x {list(x.shape)}: {what}{place(e)}{hint}"
            raise ConfigError(f"model.network: {what}") from e
        given = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if flops is not None and given != (wanted := self.logits_shape(x)):
            what = f"{type(network).__name__} gives {given} for x {list(x.shape)}, where logits {wanted} are wanted"
            sized = isinstance(given, list) and len(given) == len(wanted)
            hint = "size its last layer by num_classes or vocab_size" if sized else "let forward return these alone"
            raise ConfigError(f"model.network: {what} -> {hint}")
        self.flops_per_sample = None if flops is None else flops // len(x)

    def logits_shape(self, x: Tensor) -> list[int]:
        """What the network must give for x."""
        return [len(x), self.facts["num_classes"]]

    def forward(self, x: Tensor) -> Tensor:
        assert self.network is not None, "the network is built by the Trainer or by load_run"
        return self.network(x)

    def configure_optimizers(self) -> Any:
        """The optimizer, with its schedule.

        Raises:
            ConfigError: one of them refuses its arguments, or they do not go together.
        """
        assert self.network is not None
        groups: list[Any] = parameter_groups(self, self.network, self.layer_decay)
        if self.layer_decay == 1 and "weight_decay" not in accepted(self.optimizer):
            groups = [p for group in groups for p in group["params"]]  # LBFGS takes no groups
        optimizer = build("optimizer", self.optimizer, groups)
        if isinstance(optimizer, torch.optim.LBFGS):  # takes all gradients as one row, which channels_last forbids
            for p in self.network.parameters():
                p.data = p.data.contiguous()
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_scale", 1.0)
        if self.trainer.gradient_clip_val:  # fused optimizers would unscale the gradients after they are clipped
            optimizer._step_supports_amp_scaling = False
        if self.schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.configure_schedule(self.schedule, optimizer)}

    def configure_schedule(self, factory: Callable[..., Any], optimizer: Optimizer) -> dict[str, Any]:
        rates = {group["lr"] for group in optimizer.param_groups}
        names, total = accepted(factory).keys() & {"num_steps", "total_steps"}, self.trainer.estimated_stepping_batches
        if names and total == math.inf:
            raise ConfigError("model.schedule: training has no end -> set trainer.max_steps, or leave the schedule out")
        schedule = build("schedule", partial(factory, **{name: int(total) for name in names}), optimizer)
        if len(rates) > 1 and "max_lr" in optimizer.param_groups[0]:
            raise ConfigError(
                f"model.schedule: {type(schedule).__name__} gives all parameters one rate, but layer_decay or the "
                "optimizer gives them several -> take src.optim.schedules.WarmupCosine"
            )
        if isinstance(schedule, ReduceLROnPlateau):
            every = self.trainer.check_val_every_n_epoch or 1
            how = {"interval": "epoch", "frequency": every, "strict": False}  # an epoch may end before a validation
            return {"scheduler": schedule, "monitor": getattr(schedule, "monitor", "val/loss"), **how}
        return {"scheduler": schedule, "interval": "step"}

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self.log_scores("val")

    def on_test_epoch_end(self) -> None:
        self.log_scores("test")

    def log_scores(self, split: str) -> None:
        """Log what was measured on a whole split, and begin anew."""

    def pictures(self) -> dict[str, "Figure"]:
        """Figures of the test's results, by the names of their files."""
        return {}

    def watch(self, **values: Tensor) -> None:
        """Add to the means that are logged every `log_every_n_steps`; nothing here waits for the device."""
        self.window_steps += 1
        for name, value in values.items():
            self.window[name] = self.window.get(name, 0) + value.detach().float()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self.window and logs_now(self.trainer, batch_idx):
            self.log_dict({f"train/{name}": total / self.window_steps for name, total in self.window.items()})
            self.log("optim/lr", max(group["lr"] for group in self.trainer.optimizers[0].param_groups))
            self.window, self.window_steps = {}, 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["window"], checkpoint["window_steps"] = dict(self.window), self.window_steps
        checkpoint["micro_batches"] = self.trainer.accumulate_grad_batches

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        fit_weights(self, checkpoint["state_dict"])  # Lightning's own message is a page long
        self.window = {name: total.to(self.device) for name, total in checkpoint["window"].items()}
        self.window_steps = checkpoint["window_steps"]
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self.count_again(checkpoint)

    def count_again(self, checkpoint: dict[str, Any]) -> None:
        """All that counts micro-batches, where a step has more or fewer of them than when this was saved."""
        before, now = checkpoint["micro_batches"], self.trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for count in (progress["total"], progress["current"]):
            count |= {name: n * now // before for name, n in count.items()}
        self.window = {name: total * (now / before) for name, total in self.window.items()}
        self.window_steps = self.window_steps * now // before


def logs_now(trainer: Trainer, batch_idx: int) -> bool:
    """Whether an optimizer step has just ended after which the log is written."""
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a connector
    accumulates = (batch_idx + 1) % trainer.accumulate_grad_batches
    return bool(every) and not accumulates and trainer.global_step % every == 0
