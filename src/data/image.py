"""Images: fetched, cleaned, split and packed once; augmented and normalized by the batch, on the device."""

import functools
import hashlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from src import pictures
from src.data import cache
from src.data.augment import Augmentation, augment
from src.data.mix import Mix
from src.data.module import Arrays, Batch, DataModule
from src.errors import ConfigError, DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Images = tuple[np.ndarray, np.ndarray]  # uint8 [N, C, H, W], int64 [N]


class ImageDataModule(DataModule):
    """Images with one label each.

    Args:
        dataset: `digits` (scikit-learn's 1,797 handwritten digits of 8x8 pixels, which need no download), or a set of
            torchvision with its official test split.
        data_dir: where torchvision's sets lie.
        download: fetch a torchvision set that is not in `data_dir`.
        val_frac: share of the training samples held out for validation, the same share of each class.
        channels: 1 or 3; a grey image is repeated to make 3. By default as the images are.
        normalize: subtract the mean and divide by the standard deviation of each channel, measured on train alone.
        augment: operations on the training images, in this order.
        mix: puts two training images into one, with the labels of both; after `augment`.
        balance: an epoch takes all classes equally often, samples of small ones more than once.
        batch_size: samples of one optimizer step, over all devices.
        micro_batch_size: samples that one device takes at once; by default the batch size over the devices.
        num_workers: processes that fetch batches.
        seed: of order and augmentation; follows `seed_everything`. The split does not depend on it.
        cache_dir: folder of the prepared data.
        worker_timeout_sec: how long to wait for a worker's batch before the run ends; 0 waits for ever.
        auto_micro_batch: when memory runs out, halve the micro-batch and go on; the batch size stays.
    """

    def __init__(
        self,
        dataset: Literal["digits", "MNIST", "FashionMNIST", "CIFAR10", "CIFAR100"] = "digits",
        data_dir: str = "data",
        download: bool = False,
        val_frac: float = 0.1,
        channels: Literal[1, 3] | None = None,
        normalize: bool = True,
        augment: list[Augmentation] | None = None,
        mix: Mix | None = None,
        balance: bool = False,
        batch_size: int = 128,
        micro_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        cache_dir: str = ".cache",
        worker_timeout_sec: float = 120.0,
        auto_micro_batch: bool = False,
    ) -> None:
        super().__init__(
            batch_size, micro_batch_size, num_workers, seed, cache_dir, worker_timeout_sec, auto_micro_batch
        )
        if not 0 < val_frac < 1:
            raise ConfigError(f"data.val_frac: {val_frac} is not between 0 and 1")
        self.dataset, self.data_dir, self.download = dataset, Path(data_dir), download
        self.val_frac, self.channels, self.normalize = val_frac, channels, normalize
        self.augment, self.mix, self.balance = augment or [], mix, balance

    def prepare_data(self) -> None:
        self.prepare()

    def prepare(self) -> Path:
        """The folder of the prepared data; built by whoever comes first."""
        source = [inspect.getsource(inspect.getmodule(kind) or kind) for kind in (type(self), ImageDataModule)]
        options = {"dataset": self.dataset, "val_frac": self.val_frac, "source": source}
        files = [] if self.dataset == "digits" else [f for f in self.data_dir.rglob("*") if f.is_file()]
        name = f"{type(self).__name__}-{self.dataset}-{cache.fingerprint(options, files)}"
        return cache.prepare(self.cache_dir, name, self.build)

    def load(self) -> tuple[Images, Images]:
        """Training and test images; a data set of your own overrides this."""
        return digits() if self.dataset == "digits" else self.torchvision_set()

    def build(self) -> tuple[cache.Splits, dict[str, Any]]:
        (x, targets), test = self.load()
        train, val = stratified(targets, self.val_frac)
        kept, removed = without(images_of=x[train], seen_in=test[0])
        splits = {
            "train": {"x": x[train][kept], "targets": targets[train][kept]},
            "val": {"x": x[val], "targets": targets[val]},
            "test": {"x": test[0], "targets": test[1]},
        }
        return splits, make_report(splits, removed)

    def torchvision_set(self) -> tuple[Images, Images]:
        import torchvision

        kind = getattr(torchvision.datasets, self.dataset)
        try:
            train, test = (kind(self.data_dir, train=t, download=self.download) for t in (True, False))
        except (RuntimeError, OSError) as e:
            hint = "a download needs a network" if self.download else "give data.data_dir, or --data.download true"
            raise DataError(f"{self.dataset} in {self.data_dir}: {str(e).splitlines()[0]} -> {hint}") from e
        return to_images(train), to_images(test)

    def setup(self, stage: str) -> None:
        if self.splits:
            return
        folder = self.prepare()
        self.report = cache.report(folder)
        for split in ("train", "val", "test"):
            self.splits[split] = Arrays(cache.read(folder, split, "x"), cache.read(folder, split, "targets"))
        self.check_sizes()
        _, channels, *image_size = self.splits["train"].x.shape
        self.facts = {
            "num_classes": self.report["num_classes"],
            "in_channels": self.channels or channels,
            "image_size": tuple(image_size),
        }
        self.statistics = {"mean": self.report["train"]["mean"], "std": self.report["train"]["std"]}
        if channels > self.facts["in_channels"]:
            raise ConfigError(f"data.channels: the images have {channels} -> take {channels}, or leave it out")

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Whole batch, on the device: x uint8 [N, C, H, W] -> float32, augmented and mixed in training, normalized."""
        batch = {**batch, "x": batch["x"].float().div_(255)}
        if self.trainer and self.trainer.training:
            epoch = self.trainer.current_epoch
            batch["x"] = augment(batch["x"], batch["index"], self.augment, self.seed, epoch)
            batch = self.mix(batch, self.facts["num_classes"], self.seed, epoch) if self.mix else batch
        return {**batch, "x": self.standardize(batch["x"])}

    def picture(self, batch: Batch) -> "Figure":
        return pictures.images(batch["x"].cpu().numpy(), [str(int(t)) for t in batch["targets"]])

    def standardize(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] in [0, 1] -> what the network gets: standardized by train's statistics, grey repeated."""
        if self.normalize:
            mean, std = self.mean_and_std(x.device)
            x = (x - mean) / std
        return x.expand(-1, self.facts["in_channels"], -1, -1)

    @functools.cache  # noqa: B019  # one entry a device: a copy from the host at each batch would stop the GPU
    def mean_and_std(self, device: torch.device) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(self.statistics[s], device=device)[:, None, None] for s in ("mean", "std"))
        return mean, std


def digits() -> tuple[Images, Images]:
    """Handwritten digits of 43 people (Alpaydin and Kaynak, 1998); a fifth of each class is the test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = (bunch.images * 255 / 16).round().astype(np.uint8)[:, None]  # [N, 1, 8, 8]
    targets = bunch.target.astype(np.int64)
    train, test = stratified(targets, 0.2)
    return (x[train], targets[train]), (x[test], targets[test])


def to_images(dataset: Any) -> Images:
    x, targets = np.asarray(dataset.data), np.asarray(dataset.targets, dtype=np.int64)
    x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(x), targets


def stratified(targets: np.ndarray, frac: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the rest and of a share of each class; always the same ones.

    Raises:
        DataError: a class has too few samples to be split.
    """
    from sklearn.model_selection import train_test_split

    try:
        rest, part = train_test_split(np.arange(len(targets)), test_size=frac, stratify=targets, random_state=0)
    except ValueError as e:
        raise DataError(f"the data cannot be split with data.val_frac {frac}: {e}") from e
    return np.sort(rest), np.sort(part)


def without(images_of: np.ndarray, seen_in: np.ndarray) -> tuple[np.ndarray, int]:
    """Which training images to keep, and how many are left out because the very same image is in the test split."""
    test = {hashlib.sha256(image.tobytes()).digest() for image in seen_in}
    kept = np.array([hashlib.sha256(image.tobytes()).digest() not in test for image in images_of])
    return kept, int((~kept).sum())


def make_report(splits: cache.Splits, removed: int) -> dict[str, Any]:
    """What each split holds: samples, per class, mean and standard deviation of each channel in [0, 1]."""
    num_classes = int(max(s["targets"].max() for s in splits.values())) + 1
    report: dict[str, Any] = {"num_classes": num_classes, "removed": {"train image also in test": removed}}
    for split, arrays in splits.items():
        x = arrays["x"].astype(np.float32) / 255
        report[split] = {
            "samples": len(x),
            "per_class": np.bincount(arrays["targets"], minlength=num_classes).tolist(),
            "mean": x.mean(axis=(0, 2, 3), dtype=np.float64).tolist(),
            "std": np.maximum(x.std(axis=(0, 2, 3), dtype=np.float64), 1e-8).tolist(),
        }
    return report
