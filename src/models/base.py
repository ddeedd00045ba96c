from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import Metric

from src.data.module import Batch
from src.models.answers import described, rows
from src.models.blocks import find_blocks
from src.models.factory import build, build_network, build_schedule, check_takes, parameter_groups, try_network
from src.models.finetuning import OWN, chosen, freeze, load_weights
from src.models.levers import compile_blocks, draw_anew, recompute_activations, swap_modules
from src.run.checkpoint import fit_weights, gathered
from src.run.errors import ConfigError
from src.run.private import check_compiler, leave_unscaling_to_scaler
from src.run.terminal import rank_zero_print
from src.strategies.fsdp import FSDP

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure


class Model(LightningModule):
    """Base of the models: a subclass says what a step computes and what is measured.

    Args:
        network: the architecture, as a class or function that gives an `nn.Module`; it gets those facts of the data
            (`num_classes` and so on) that it has as arguments.
        optimizer: gets the parameters, in groups: norms, biases, tokens and positions have no weight decay.
        schedule: gets the optimizer; a `num_steps` or `total_steps` argument is filled in from the trainer.
        swap: other modules of the network's, by patterns as of `blocks`, such as `{head.2: {class_path:
            torch.nn.Identity}}`; what its forward does without a module, such as F.relu, stays.
        reset: draw the weights anew, as each module's own reset_parameters does; a module without one keeps them.
        init_from: weights to begin with, where name and shape fit: a run folder, a checkpoint, a file of weights (of
            torch or safetensors), or the name of torchvision's, such as `ResNet18_Weights.DEFAULT`.
        freeze: parameters that are not trained, by patterns of their names in the network, such as `blocks.0.*`.
        unfreeze_epoch: after so many epochs they are trained, too; by default never.
        blocks: the modules that the network is divided by, by patterns of their names, such as `layers.*`; by default
            those of its attribute `blocks`.
        activation_checkpointing: compute each block's activations once more in the backward pass, in place of keeping
            them: less memory, more time, the same losses.
        compile: let torch compile each block, or the whole of a network without blocks: faster after some minutes of
            compiling; the losses may differ in their last digits, and dropout draws other numbers.
    """

    uses: tuple[str, ...] = ()  # commands for a trained model, besides evaluate
    provides: tuple[str, ...] = ()  # facts of its own for the network, which no config states
    data = run_dir = summary = classes = units = cast(Any, None)  # what load_run knows

    def __init__(
        self,
        network: Callable[..., nn.Module],
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., LRScheduler | ReduceLROnPlateau] | None = None,
        init_from: str | None = None,
        freeze: Sequence[str] = (),
        unfreeze_epoch: int | None = None,
        blocks: Sequence[str] = (),
        activation_checkpointing: bool = False,
        compile: bool = False,
        swap: dict[str, Callable[..., nn.Module]] | None = None,
        reset: bool = False,
    ) -> None:
        super().__init__()
        self.factory, self.optimizer, self.schedule = network, optimizer, schedule
        self.swap, self.reset = swap or {}, reset
        self.init_from, self.frozen, self.block_names = init_from, freeze, blocks
        if getattr(network, "keywords", {}).get("pretrained") is True:  # of timm's, say: only for a run that begins
            self.factory, self.init_from = partial(network, pretrained=False), init_from or OWN
        if unfreeze_epoch is not None and (unfreeze_epoch < 1 or not freeze):
            raise ConfigError(f"model.unfreeze_epoch: {unfreeze_epoch} -> take 1 or more, and set model.freeze")
        self.unfreeze_epoch, self.thaws = unfreeze_epoch or 0, unfreeze_epoch is not None
        self.activation_checkpointing, self.compiles = activation_checkpointing, compile
        self.network: nn.Module | None = None
        self.network_name = ""  # of its class, before FSDP makes that another
        self.flops_per_sample: int | None = None  # of a forward pass
        self.window: dict[str, Tensor] = {}  # sums since the last line of the log, on the device
        self.window_steps = 0

    def configure_model(self) -> None:
        if self.network is None:
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            self.facts = {**data.facts, **self.own_facts()}
            if lacks := sorted({*data.facts} - {*getattr(data, "provides", data.facts)}):
                raise ConfigError(f"{type(data).__name__}.provides lacks the fact {lacks[0]} -> add it there")
            check_takes(self.factory, data.must_take())
            sharded = self.trainer.strategy if isinstance(self.trainer.strategy, FSDP) else None
            self.network = sharded.build(self.make_network) if sharded else self.make_network()
            self.network_name = type(self.network).__name__
            if self.init_from is not None and self.trainer.state.fn == TrainerFn.FITTING:
                own = partial(build_network, partial(self.factory, pretrained=True), self.facts)
                load = partial(load_weights, self.network, self.init_from, own, data.facts | data.statistics)
                rank_zero_print(sharded.first(load) if sharded else load())
            if not self.thaws or self.trainer.state.fn == TrainerFn.FITTING:  # of a plan, what takes most is told
                freeze(self.network, self.frozen, gradients=self.thaws and self.trainer.world_size > 1)
            self.pull_levers(self.network)
            if sharded:
                if self.trainer.state.fn == TrainerFn.FITTING:
                    sharded.first(self.try_network)  # a part of a network cannot be tried
                sharded.divide(self.network, self.blocks())

    def make_network(self) -> nn.Module:
        network = build_network(self.factory, self.facts)
        swap_modules(network, self.swap)
        if self.reset:
            draw_anew(network)
        return network

    def pull_levers(self, network: nn.Module) -> None:
        if self.activation_checkpointing:
            recompute_activations(network, self.blocks())
        if self.compiles:
            compile_blocks(network, self.blocks(), self.trainer.strategy.root_device)

    def blocks(self) -> list[nn.Module]:
        assert self.network is not None
        return find_blocks(self.network, self.block_names)

    def own_facts(self) -> dict[str, Any]:
        """What the network must know of the model: the values of `provides`."""
        return {}

    def on_fit_start(self) -> None:
        if not isinstance(self.network, FSDPModule):  # which was tried before it was divided
            self.try_network()

    def try_network(self) -> None:
        """Try the network on two samples, so that a wrong shape ends the run before training."""
        assert self.network is not None
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        x = data.on_after_batch_transfer(data.splits["train"][torch.arange(2)], 0)["x"]
        self.flops_per_sample = try_network(self.network, x, self.logits_shape(x), data.hint)

    def on_train_epoch_start(self) -> None:
        if self.thaws and self.trainer.current_epoch >= self.unfreeze_epoch:
            self.thaw()
            rank_zero_print(f"unfrozen  after {self.unfreeze_epoch} epochs: {', '.join(self.frozen)}")

    on_train_start = on_train_epoch_start  # which is not called in the midst of an epoch

    def thaw(self) -> None:
        freeze(self.get_submodule("network"), self.frozen, frozen=False)
        self.thaws = False

    def on_after_backward(self) -> None:
        if self.thaws and self.trainer.world_size > 1:  # DDP takes no parameters later: it has the frozen ones, too
            for p in chosen(self.get_submodule("network"), self.frozen).values():
                p.grad = None

    def logits_shape(self, x: Tensor) -> list[int]:
        """What the network must give for x."""
        return [len(x), self.facts["num_classes"]]

    def forward(self, x: Tensor) -> Tensor:
        assert self.network is not None, "the network is built by the Trainer or by load_run"
        return self.network(x)

    def configure_optimizers(self) -> Any:
        assert self.network is not None
        later = {*chosen(self.network, self.frozen).values()} if self.thaws else set()
        groups = parameter_groups(self, self.network, self.blocks(), later)
        optimizer = build("optimizer", self.optimizer, groups)
        if type(optimizer).__module__.startswith("torchao."):
            check_compiler("model.optimizer", self.device)
        if self.trainer.gradient_clip_val:  # fused optimizers would unscale the gradients after they are clipped
            leave_unscaling_to_scaler(optimizer)
        if self.schedule is None:
            return optimizer
        schedule = build_schedule(self.schedule, optimizer, self.trainer.estimated_stepping_batches)
        how: dict[str, Any] = {"scheduler": schedule, "interval": "step"}
        if isinstance(schedule, ReduceLROnPlateau):
            every = self.trainer.check_val_every_n_epoch or 1
            how |= {"interval": "epoch", "frequency": every, "monitor": "val/loss"}
            how["strict"] = False  # an epoch may end before a validation
        return {"optimizer": optimizer, "lr_scheduler": how}

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

    def columns(self, outputs: dict[str, Tensor], data: Any) -> dict[str, Any]:
        """What `predict_step` gave for samples, as named columns of a file, in terms of the data. A model that gives
        `probabilities` is asked for the `top_k` largest by a third argument."""
        raise ConfigError(f"{type(self).__name__} predicts no rows -> give it predict_step and columns: docs/add.md")

    def __repr__(self) -> str:
        return described(self) if self.run_dir else super().__repr__()

    def predict(self, raw: Any, top_k: int | None = None) -> "pl.DataFrame":
        """The rows of `src.predict` for raw input of any form; with a warning where some are left out."""
        return rows(self, raw, top_k)

    def named_outputs(self, batch: Batch) -> dict[str, Tensor]:
        """What an exported model gives for a batch of x alone, by names, in the data's own units."""
        raise ConfigError(f"{type(self).__name__} does not name what it gives -> write its method named_outputs")

    def watch(self, **values: Tensor) -> None:
        """Add to the means that are logged every `log_every_n_steps`; nothing here waits for the device.

        What is called `known` is no metric but a share, by whose mean the means of the others are divided.
        """
        self.window_steps += 1
        for name, value in values.items():
            self.window[name] = self.window.get(name, 0) + value.detach().float()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self.window and logs_now(self.trainer, batch_idx):
            self.log_dict({f"train/{name}": value for name, value in self.window_means().items()})
            self.log("optim/lr", max(group["lr"] for group in self.trainer.optimizers[0].param_groups))
            self.window, self.window_steps = {}, 0

    def window_means(self) -> dict[str, Tensor]:
        """Of what was watched, over all devices."""
        means = {name: total / self.window_steps for name, total in self.window.items()}
        if self.trainer.world_size > 1:
            everywhere: Any = self.trainer.strategy.reduce(torch.stack([*means.values()]), reduce_op="mean")
            means = dict(zip(means, everywhere, strict=True))
        known = means.pop("known", 1)
        return {name: mean / known for name, mean in means.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        mine = {name: total.cpu() for name, total in self.window.items()}
        checkpoint["windows"], checkpoint["window_steps"] = gathered(mine, self.trainer), self.window_steps
        checkpoint["micro_batches"] = self.trainer.accumulate_grad_batches

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        fit_weights(self, checkpoint["state_dict"])  # Lightning's own message is a page long
        if self.trainer.state.fn == TrainerFn.FITTING:
            windows, self.window_steps = checkpoint["windows"], checkpoint["window_steps"]
            if len(windows) != self.trainer.world_size:
                means = {name: torch.stack([w[name] for w in windows]).mean(0) for name in windows[0]}
                windows = [means] * self.trainer.world_size
            self.window = {name: total.to(self.device) for name, total in windows[self.global_rank].items()}
            self.recount(checkpoint)

    def recount(self, checkpoint: dict[str, Any]) -> None:
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


class MaskedMean(Metric):
    """The means over all samples of all devices, without padding. NaN stays NaN.

    torchmetrics' MeanMetric either waits for the device at each update, to look for NaN, or ignores the weights.
    """

    total: Tensor
    count: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        exact = torch.float32 if torch.backends.mps.is_available() else torch.float64  # Apple's GPUs have no float64
        for name in ("total", "count"):
            self.add_state(name, torch.zeros(shape, dtype=exact), dist_reduce_fx="sum")

    def update(self, values: Tensor, real: Tensor) -> None:
        """values [N, *shape], real [N, ...]: whether each is of a sample or padding."""
        self.total += torch.where(real, values.to(self.total.dtype), 0.0).sum(0)
        self.count += real.sum(0)

    def compute(self) -> Tensor:
        return (self.total / self.count).float()


class MaskedSums(MaskedMean):
    def compute(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Sums, and how many values each is of; not rounded, so that differences of means can be taken."""
        return self.total, self.count
