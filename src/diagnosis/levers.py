"""What a trial changes of a LightningModule: the rate of a step, its schedule, weight decay, its weights and layers."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.nn.parameter import is_lazy

from src.diagnosis.finding import Overlay
from src.models.levers import draw_anew, swap_modules

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
OF_GROUPS = {"weight_decay", "momentum"}  # numbers of an optimizer's groups
LAYERS = {"dropout": (DROPOUTS, "p"), "norm_momentum": (NORMS, "momentum")}  # numbers of layers by key


def network_of(model: LightningModule) -> nn.Module:
    network = getattr(model, "network", None)
    return network if isinstance(network, nn.Module) else model


def numbers_of(trainer: Trainer, model: LightningModule) -> dict[str, Any]:
    """The greatest of each kind that there is in a module and its optimizers."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    found = {k: [getattr(m, n) or 0 for m in model.modules() if isinstance(m, of)] for k, (of, n) in LAYERS.items()}
    found |= {name: [group.get(name) or 0 for group in groups] for name in OF_GROUPS}
    drawn = [m.weight.detach() for m in model.modules() if isinstance(m, WEIGHTED) and not is_lazy(m.weight)]
    units = [
        u for p in drawn if p.numel() > 1 and (u := float(p.std()) * p[0].numel() ** 0.5)
    ]  # 0.6 as torch draws them, 0 is meant so
    sizes = {"smallest_weights": min(units, default=1.0), "largest_weights": max(units, default=1.0)}
    return {name: max(values, default=0) for name, values in found.items()} | sizes


class Rate(Callback):
    """Has an optimizer take a step at another rate than the one that a schedule, or the code, has set. That is there
    again after the step."""

    def rate(self, group: dict[str, Any]) -> Any:
        raise NotImplementedError

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self.highest = {id(g): g.get("max_lr", g.get("initial_lr", g["lr"])) for g in groups}
        self.set = dict[int, tuple[Any, Any]]()  # the rate that was there, and that of this step
        for optimizer in trainer.optimizers:
            optimizer.register_step_pre_hook(self.before)
            optimizer.register_step_post_hook(self.after)

    def before(self, optimizer: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        self.change(optimizer)
        closure: Any = kwargs.get("closure", args[1] if len(args) > 1 else None)

        def closed() -> Any:  # training_step runs in it, and may set a rate
            loss = closure()
            self.change(optimizer)
            return loss

        return (args[:1], {**kwargs, "closure": closed}) if closure else None

    def change(self, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            if group["lr"] is not self.set.get(id(group), (None, None))[1]:
                own, group["lr"] = group["lr"], self.rate(group)
                self.set[id(group)] = own, group["lr"]

    def after(self, optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups:
            own, new = self.set.pop(id(group), (None, None))
            group["lr"] = own if group["lr"] is new else group["lr"]


class Levers(Rate):
    """Changes a module as an overlay says.

    Args:
        overlay: `lr_times`: times the rate; `schedule: null`: the highest rate all the time; `weight_decay`,
            `momentum`, `dropout` and `norm_momentum`, for all that are greater; `model`, as of a config, with `reset`
            and `swap`.
    """

    def __init__(self, overlay: Overlay) -> None:
        self.overlay, self.times = overlay, overlay.get("lr_times", 1.0)
        self.wanted = overlay.get("model", {}).get("init_args", {})

    def rate(self, group: dict[str, Any]) -> Any:
        return (self.highest[id(group)] if "schedule" in self.overlay else group["lr"]) * self.times

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network = network_of(pl_module)
        if self.wanted.get("reset") and any(hasattr(m, "reset_parameters") for m in network.modules()):
            draw_anew(network)
        swaps = {name: one["class_path"].rpartition(".")[2] for name, one in self.wanted.get("swap", {}).items()}
        swap_modules(network, {name: getattr(nn, kind) for name, kind in swaps.items()})
        for key, (kinds, name) in LAYERS.items():
            for module in (m for m in pl_module.modules() if isinstance(m, kinds) and key in self.overlay):
                setattr(module, name, min(getattr(module, name) or 0, self.overlay[key]))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if {"lr_times", "schedule"} & self.overlay.keys():
            super().on_train_start(trainer, pl_module)
        for group in (g for optimizer in trainer.optimizers for g in optimizer.param_groups):
            for name in OF_GROUPS & self.overlay.keys() & group.keys():
                group[name] = min(group[name], self.overlay[name])
        for how in trainer.lr_scheduler_configs:
            how.strict = False  # what it monitors may come later than its first epoch ends
