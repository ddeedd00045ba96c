from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from src.data.module import Batch
from src.models.base import MaskedSums, Model
from src.models.criterion import Criterion, Loss, Unit, own_unit, units
from src.run.errors import ConfigError
from src.run.figures import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURED = ("loss", "mse", "mae", "naive_mse", "naive_mae", "seasonal_mse", "seasonal_mae", "coverage")
MAX_NAMED = 12  # channels with scores of their own
PANELS = 6


class Forecasting(Model):
    """The next `horizon` steps of one channel or several: targets [N, horizon, out_channels], NaN where unknown, and
    the network gives [N, horizon, out_channels * num_quantiles].

    `loss`, `mse` and `mae` are in units of each channel's standard deviation in train, `mae_NAME` and `rmse_NAME` in
    its own. Beside them stand two forecasts without a model: the last value (`naive_mse`, `naive_mae`) and the
    value one season before (`seasonal_mse`, `seasonal_mae`). With quantiles, `loss` is the pinball loss, the middle one
    is the forecast, and `coverage` is the share of targets between the outermost ones.

    Args:
        loss: `mse` forecasts the mean, `mae` the median, `huber` lies between them and minds outliers less than `mse`,
            `quantile` forecasts all of `quantiles` (Koenker and Bassett, Regression Quantiles, 1978).
        quantiles: of the loss `quantile`, in order.
        huber_delta: where `huber` turns from squares to absolute values, in standard deviations.
    """

    uses = ("predict",)
    provides = ("num_quantiles",)

    def __init__(
        self,
        loss: Loss = "mse",
        quantiles: tuple[float, ...] = (0.1, 0.5, 0.9),
        huber_delta: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.criterion = Criterion(loss, quantiles, huber_delta)
        self.kept: list[tuple[Tensor, ...]] = []  # windows to draw

    def own_facts(self) -> dict[str, Any]:
        return {"num_quantiles": self.criterion.num_outputs}

    def configure_model(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if "horizon" not in data.facts:
            raise ConfigError(
                f"model: {type(data).__name__} has no horizon to forecast -> take a model of another kind"
            )
        super().configure_model()
        self.sums = MaskedSums(self.facts["horizon"], self.facts["out_channels"], len(MEASURED))

    def logits_shape(self, x: Tensor) -> list[int]:
        return [len(x), self.facts["horizon"], self.facts["out_channels"] * self.criterion.num_outputs]

    def forecast(self, batch: Batch) -> Tensor:
        """[N, horizon, out_channels, num_quantiles], also where the data module has normalized each window."""
        outputs = self(batch["x"]).float().unflatten(-1, (-1, self.criterion.num_outputs))
        return self.restored(outputs, batch)

    def restored(self, outputs: Tensor, batch: Batch) -> Tensor:
        """outputs [N, T, out_channels, ...] of a window, without the window's own normalization."""
        if "mean" not in batch:
            return outputs
        mean, std = (
            batch[name].reshape(outputs.shape[0], 1, -1, *[1] * (outputs.ndim - 3)) for name in ("mean", "std")
        )
        return outputs * std + mean

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        outputs, known = self.forecast(batch), batch["targets"].isfinite()
        # Over all steps, not those known alone, so that it does not depend on how a batch is divided.
        loss = (self.criterion(outputs, batch["targets"].nan_to_num()) * known).mean()
        self.watch(loss=loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        outputs, targets = self.forecast(batch).sort(-1).values, batch["targets"]
        real = targets.isfinite() & (batch["index"] >= 0)[:, None, None]
        past = self.restored(batch["x"][:, : self.facts["window"], : self.facts["out_channels"]].float(), batch)
        errors = [f - targets for f in (self.criterion.point(outputs), past[:, -1:], batch["seasonal"])]
        covered = (targets >= outputs[..., 0]) & (targets <= outputs[..., -1])
        found = [self.criterion(outputs, targets), *(score for e in errors for score in (e.square(), e.abs())), covered]
        self.sums.update(torch.stack(torch.broadcast_tensors(*found), -1), real[..., None])
        batches = self.trainer.num_test_batches if self.trainer.testing else self.trainer.num_val_batches
        if batch_idx % max(1, int(batches[0]) // PANELS) == 0 and len(self.kept) < PANELS:
            self.kept.append((past[0], targets[0], outputs[0]))

    def log_scores(self, split: str) -> None:
        total, count = self.sums.compute()  # [horizon, out_channels, MEASURED]
        self.by_step = (total.sum(1) / count.sum(1)).cpu().numpy()
        channels, scores = total.sum(0) / count.sum(0), total.sum((0, 1)) / count.sum((0, 1))
        measured = dict(zip(MEASURED, scores, strict=True))
        if not self.criterion.quantiles:
            del measured["coverage"]
        if self.trainer.state.fn == TrainerFn.FITTING:  # what does not change, or is too much for a line
            measured = {name: value for name, value in measured.items() if "_" not in name}
        else:
            known = units(self.trainer.datamodule)  # type: ignore[attr-defined]
            for (name, _, std), one in list(zip(known, channels, strict=True))[:MAX_NAMED]:
                plain = name.replace("/", "_")
                measured |= {f"mae_{plain}": one[2] * std, f"rmse_{plain}": one[1].sqrt() * std}
                measured[f"seasonal_mae_{plain}"] = one[6] * std
        self.log_dict({f"{split}/{name}": value.float() for name, value in measured.items()})
        self.sums.reset()
        self.drawn, self.kept = [[part.cpu() for part in one] for one in self.kept], []

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """index [N], targets [N, horizon, out_channels] and the forecasts of all quantiles, in training's units."""
        outputs = self.forecast(batch).sort(-1).values
        return {"index": batch["index"], "targets": batch["targets"], "outputs": outputs}

    def named_outputs(self, batch: Batch) -> dict[str, Tensor]:
        return self.criterion.answers(self.forecast(batch).sort(-1).values, units(self.data))

    def columns(self, outputs: dict[str, Tensor], data: Any) -> dict[str, Any]:
        found, targets = outputs["outputs"].flatten(0, 1), outputs["targets"].flatten(0, 1)  # [N * horizon, C, ...]
        out: dict[str, Any] = {}
        for channel, unit in enumerate(known := units(data)):
            end = f"_{unit[0]}" if len(known) > 1 else ""
            out[f"target{end}"] = own_unit(targets[:, channel], unit).numpy()
            out |= self.criterion.columns(found[:, channel], unit, end)
        return out

    def pictures(self) -> dict[str, "Figure"]:
        known = units(self.trainer.datamodule)  # type: ignore[attr-defined]
        return {
            "forecasts": draw_forecasts(self.drawn, known, self.criterion),
            "error_by_step": draw_errors(self.by_step),
        }


def draw_forecasts(windows: list[list[Tensor]], known: list[Unit], criterion: Criterion) -> "Figure":
    """A window in each panel, and of its channels the next: past, targets, forecast and outermost quantiles."""
    rows = max(1, -(-len(windows) // 2))
    fig = figure(12, 2.4 * rows)
    panels = zip(fig.subplots(rows, 2, squeeze=False).flat, windows, strict=False)
    for i, (axes, (past, targets, outputs)) in enumerate(panels):
        channel = i % len(known)
        name, mean, std = known[channel]
        seen, ahead = np.arange(-len(past) + 1, 1), np.arange(1, len(targets) + 1)
        forecast = outputs[:, channel] * std + mean  # [horizon, num_quantiles]
        axes.plot(seen, past[:, channel] * std + mean, color="0.6", label="past")
        axes.plot(ahead, targets[:, channel] * std + mean, color="k", label="target")
        axes.plot(ahead, criterion.point(forecast), color="C0", label="forecast")
        if criterion.quantiles:
            axes.fill_between(ahead, forecast[:, 0], forecast[:, -1], alpha=0.25, linewidth=0)
        axes.set_title(f"{name}, test", size=9, parse_math=False)
    for axes in fig.axes[len(windows) :]:
        axes.set_axis_off()
    if windows:
        fig.axes[0].legend(fontsize=7)
    return fig


def draw_errors(by_step: np.ndarray) -> "Figure":
    """by_step [horizon, MEASURED]: the mean squared error of each step ahead."""
    fig = figure(6, 3.6)
    axes = fig.subplots()
    for name, label in (("mse", "model"), ("naive_mse", "last value"), ("seasonal_mse", "one season before")):
        axes.plot(np.arange(1, len(by_step) + 1), by_step[:, MEASURED.index(name)], label=label)
    axes.set(title="error by step, test", xlabel="steps ahead", ylabel="mean squared error")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return fig
