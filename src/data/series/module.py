"""Series: stamps cleaned, put on a regular grid and standardized once; windows taken by the batch."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from src.data.loader import Batch, Loader
from src.data.order import EvalOrder
from src.data.series.augment import Augmentation, Normals
from src.data.series.prepare import GridDataModule
from src.data.series.seasons import seasons
from src.data.series.stamps import Clock
from src.data.series.windows import Windows, moved
from src.run.errors import ConfigError, DataError
from src.run.figures import figure
from src.run.terminal import rank_zero_print

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPS = 1e-5  # the least standard deviation of a window


class SeriesDataModule(GridDataModule):
    """One series or many of numbers over time; a sample is a window of the past with the steps after it.

    Args:
        dataset: `seasons`, three hourly series made in code: a trend, seasons of a day and a week, noise and holes.
        stride: in training, steps between the windows of an epoch, which begin elsewhere in each; evaluation takes
            every window.
        normalize: what the network gets is standardized by `train`, or besides each `window` by itself (Kim et al.,
            Reversible Instance Normalization, 2022, without its affine part).
        augment: operations on training windows, in this order.
    """

    provides = ("window", "horizon", "in_channels", "out_channels", "num_known")  # facts, which no config states
    sources = ("file", "dataset")

    def __init__(
        self,
        dataset: Literal["seasons"] | None = None,
        stride: int = 1,
        normalize: Literal["train", "window"] = "train",
        augment: list[Augmentation] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if self.file and dataset:
            raise ConfigError(f"data.file, data.dataset: {self.file} and {dataset} are named -> leave one out")
        if stride < 1:
            raise ConfigError(f"data.stride: {stride} is less than 1")
        self.dataset, self.stride, self.normalize, self.augment = dataset, stride, normalize, augment or []
        self.epoch_order = partial(moved, stride)
        self.series_names: list[str] = []
        self.predicts = False
        self.tiles: dict[str, Windows] = {}  # what is predicted of a split

    def load(self) -> pl.DataFrame:
        return seasons() if self.dataset else super().load()

    def open(self, split: str, read: Callable[[str], Tensor]) -> Windows:
        rows = {name: read(name) for name in ("values", "targets", "series", "time")}
        windows = partial(Windows, rows, window=self.window, horizon=self.horizon, num_known=self.num_known)
        season = self.report["season"] or 0
        self.tiles[split] = windows(read("tiles"), season=season)
        if self.predicts:
            return self.tiles[split]
        if split == "train" and not self.fitted:
            return windows(read("starts"), stride=self.stride)
        return windows(read("starts"), season=season)

    def measure(self) -> tuple[dict[str, Any], dict[str, Any]]:
        self.series_names, statistics = self.report.pop("series_names"), self.report.pop("statistics")
        channels = self.tiles["test"].values.shape[1]
        facts = {"window": self.window, "horizon": self.horizon, "in_channels": channels, "num_known": self.num_known}
        return facts | {"out_channels": len(statistics["targets"]["names"])}, statistics

    def setup(self, stage: str) -> None:
        self.predicts = stage == "predict"
        super().setup(stage)
        if stage != "predict" and not len(self.splits["test"]):
            what = f"no window of {self.window} steps is followed by {self.horizon} with known targets"
            raise DataError(f"{self.named}: {what} -> give more rows, or take python -m src.predict")

    def predict_dataloader(self) -> Loader:
        tiles = self.tiles[self.predict_split]
        if not len(tiles):
            what = f"no forecast can be made in {self.predict_split}"
            hint = "give rows without holes at their end, and with values of data.known after it"
            raise DataError(f"{self.named}: {what} -> {hint}")
        if unmade := self.report[self.stored_as(self.predict_split)]["unmade"]:
            why = "they would look at long holes, or at values of data.known that are not there"
            rank_zero_print(f"{self.named}: {unmade} more forecasts are not made, because {why}.")
        return Loader(tiles, EvalOrder(len(tiles), *self.share()))

    def keys(self, split: str, index: np.ndarray) -> dict[str, Any]:
        """The stamp of each step of the tiles `index` [N], and its series if there are several: [N * horizon]."""
        tiles = self.tiles[split]
        rows = (tiles.starts[index][:, None] + self.window + torch.arange(self.horizon)).flatten()
        time = pl.Series(tiles.rows["time"][rows].numpy()).cast(pl.Datetime("us"))
        out: dict[str, Any] = {"time": Clock(**self.statistics["clock"]).told(time)}
        if self.statistics["roles"]["group"]:
            out["series"] = [self.series_names[i] for i in tiles.rows["series"][rows].tolist()]
        return out

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Whole batch, on the device: x augmented in training, as the weights are; with `normalize: window` the columns
        of the targets standardized by each window, whose `mean` and `std` [N, 1, out_channels] are added."""
        batch = {**batch, "x": batch["x"].float()}
        window, out = self.window, self.facts["out_channels"]
        if self.augment and self.trainer and self.trainer.training:
            seen = batch["x"][:, :window, : self.facts["in_channels"] - self.facts["num_known"]]
            for i, operation in enumerate(self.augment):
                draw = Normals(batch["index"], self.seed, self.trainer.current_epoch, i)
                changed, batch["targets"] = operation(seen, batch["targets"], draw)
                seen.copy_(changed)
        if self.normalize == "window":
            seen = batch["x"][:, :window, :out]
            batch["mean"] = seen.mean(1, keepdim=True)
            batch["std"] = (seen.var(1, keepdim=True, correction=0) + EPS**2).sqrt()
            seen.copy_((seen - batch["mean"]) / batch["std"])
        return {**batch, "x": self.as_weights(batch["x"])}

    def picture(self, batch: Batch) -> "Figure":
        """Windows as the network gets them, the columns of the targets, and what is to be forecast."""
        targets, x = batch["targets"].float().cpu(), batch["x"].float().cpu()
        if "mean" in batch:
            targets = (targets - batch["mean"].cpu()) / batch["std"].cpu()
        fig = figure(12, 5)
        ahead = np.arange(self.window, self.window + self.horizon)
        for axes, seen, wanted in zip(fig.subplots(2, 4).flat, x, targets, strict=False):
            for c in range(min(3, targets.shape[2])):
                name = self.statistics["targets"]["names"][c]
                axes.plot(seen[: self.window, c], color=f"C{c}", linewidth=0.8, label=name)
                axes.plot(ahead, wanted[:, c], color=f"C{c}", linewidth=0.8, linestyle=":")
            axes.tick_params(labelsize=6)
        fig.axes[0].legend(fontsize=6)
        return fig
