import textwrap
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAUROC, MulticlassConfusionMatrix

from src.data.module import Batch
from src.models.answers import ranked
from src.models.base import MaskedMean, Model
from src.run.errors import ConfigError, DataError
from src.run.figures import figure
from src.run.terminal import rank_zero_print

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Classification(Model):
    """One of several classes for each sample, by cross-entropy: targets [N], and the network gives logits
    [N, num_classes].

    Measured are loss, accuracy, and the means over the classes of F1 and of the area under the ROC curve. Classes that
    cannot be measured, because a split has none of their samples, are left out of these means, with a warning.

    Args:
        outputs: of a network that ends in a softmax or sigmoid, `probabilities`, whose logarithms are then taken.
        label_smoothing: share of the target's probability spread over all classes, in training.
        class_weights: factors of the classes' losses in training, or `balanced`: each class weighs as much as the
            others.
    """

    uses = ("predict",)

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weights: list[float] | Literal["balanced"] | None = None,
        outputs: Literal["logits", "probabilities"] = "logits",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= label_smoothing <= 1:
            raise ConfigError(f"model.label_smoothing: {label_smoothing} is not from 0 to 1")
        self.label_smoothing, self.class_weights, self.outputs = label_smoothing, class_weights, outputs
        self.weights: Tensor | None = None
        self.mean_loss = MaskedMean()
        self.warned: set[str] = set()  # splits

    def configure_model(self) -> None:
        super().configure_model()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        targets = next(iter(data.splits.values())).targets
        if targets.is_floating_point() or targets.ndim != 1:
            what = f"labels are {targets.dtype} {list(targets.shape)}"
            hint = data.hint(what) or "make them int64, one for a sample"
            raise DataError(f"{type(data).__name__}.setup: {what} -> {hint}")
        if "num_classes" not in self.facts:
            raise DataError(f"{type(data).__name__}.setup: facts lack num_classes -> set it")
        how: Any = {"num_classes": self.facts["num_classes"], "ignore_index": -1, "validate_args": False}
        self.auroc, self.confusion = MulticlassAUROC(average="none", **how), MulticlassConfusionMatrix(**how)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.class_weights is not None:
            targets = self.trainer.datamodule.splits["train"].targets  # type: ignore[attr-defined]
            self.weights = loss_weights(self.class_weights, targets, self.facts["num_classes"]).to(self.device)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, ...] -> logits [N, num_classes]"""
        given = super().forward(x)
        return given if self.outputs == "logits" else given.float().clamp(min=1e-30).log()  # finite

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits, targets = self(batch["x"]).float(), batch.get("soft_targets", batch["targets"])
        # The mean over samples, not over their weights, so that it does not depend on how a batch is divided.
        how = "mean" if self.weights is None else "none"
        loss = F.cross_entropy(
            logits, targets, self.weights, reduction=how, label_smoothing=self.label_smoothing
        ).mean()
        classes = targets if targets.ndim == 1 else targets.argmax(1)
        self.watch(loss=loss, acc=(logits.argmax(1) == classes).float().mean())
        return loss

    def classify(self, x: Tensor) -> Tensor:
        """x [N, ...] -> logits [N, num_classes], the mean over the data module's views of x."""
        views = (self.data or self.trainer.datamodule).views(x)  # type: ignore[attr-defined]
        return torch.stack([self(view).float() for view in views]).mean(0)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits, targets, real = self.classify(batch["x"]), batch["targets"], batch["index"] >= 0
        known = torch.where(real, targets, -1)
        self.confusion.update(logits.argmax(1), known)
        self.auroc.update(logits.softmax(1), known)
        self.mean_loss.update(F.cross_entropy(logits, targets, reduction="none"), real)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """index [N], targets [N], and the classes' probabilities [N, num_classes]."""
        probabilities = self.classify(batch["x"]).softmax(1)
        return {"index": batch["index"], "targets": batch["targets"], "probabilities": probabilities}

    def named_outputs(self, batch: Batch) -> dict[str, Tensor]:
        probabilities = self.classify(batch["x"]).softmax(1)
        return {"prediction": probabilities.argmax(1), "probabilities": probabilities}

    def columns(self, outputs: dict[str, Tensor], data: Any, top_k: int | None = None) -> dict[str, Any]:
        probabilities = outputs["probabilities"]
        names = data.statistics.get("class_names") or list(range(probabilities.shape[1]))
        targets = [names[t] if t >= 0 else None for t in outputs["targets"]]
        found = {"target": targets, "prediction": [names[t] for t in probabilities.argmax(1)]}
        if top_k:
            return found | ranked(probabilities, names.__getitem__, top_k)
        return found | {f"probability_{name}": probabilities[:, k].numpy() for k, name in enumerate(names)}

    def log_scores(self, split: str) -> None:
        confusion = self.confusion.compute()  # over all devices, as all that follows
        samples, hits = confusion.sum(1), confusion.diagonal()
        f1 = 2 * hits / (confusion.sum(0) + samples)  # NaN for a class that is neither a target nor predicted
        measurable = (samples > 0) & (samples < samples.sum())
        areas = torch.where(measurable, self.auroc.compute(), torch.nan)  # torchmetrics scores absent classes, too
        scores = {"loss": self.mean_loss.compute(), "acc": hits.sum() / samples.sum()}
        scores |= {"f1": f1.nanmean(), "auroc": areas.nanmean()}
        self.log_dict({f"{split}/{name}": value for name, value in scores.items()})
        if not measurable.all() and not self.trainer.sanity_checking and split not in self.warned:
            self.warned.add(split)
            names = textwrap.shorten(", ".join(np.array(self.class_names())[~measurable.cpu().numpy()]), 200)
            rank_zero_print(f"{split} has only, or no, samples of class {names}: {split}/auroc is without it")
        self.counts = confusion.cpu().numpy()
        for metric in (self.mean_loss, self.auroc, self.confusion):
            metric.reset()

    def class_names(self) -> list[str]:
        statistics = self.trainer.datamodule.statistics  # type: ignore[attr-defined]
        return statistics.get("class_names") or [str(k) for k in range(self.facts["num_classes"])]

    def pictures(self) -> dict[str, "Figure"]:
        return {"confusion": draw_confusion(self.counts, self.class_names())}


def loss_weights(given: list[float] | Literal["balanced"], targets: Tensor, num_classes: int) -> Tensor:
    """[num_classes], from train's targets [N] if `balanced`."""
    if given == "balanced":
        return len(targets) / num_classes / torch.bincount(targets, minlength=num_classes).clamp(min=1)
    if len(given) != num_classes or min(given) < 0:
        raise ConfigError(f"model.class_weights: {given} -> give {num_classes} numbers, none below 0")
    return torch.tensor(given)


def draw_confusion(counts: np.ndarray, names: list[str]) -> "Figure":
    """counts [num_classes, num_classes], rows are targets; each row is coloured by its shares."""
    size = len(counts)
    fig = figure(*[min(14.0, 3.0 + 0.4 * size)] * 2)
    axes = fig.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(title="targets against predictions, test", xlabel="prediction", ylabel="target")
    if size <= 30:
        turn = 90 if max(map(len, names)) > 3 else 0
        axes.set_xticks(range(size), names, rotation=turn, parse_math=False)
        axes.set_yticks(range(size), names, parse_math=False)
        for i, j in zip(*np.nonzero(counts), strict=True):
            axes.text(j, i, counts[i, j], ha="center", va="center", color="w" if shares[i, j] > 0.5 else "k", size=8)
    return fig
