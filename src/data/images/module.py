"""Images: fetched, cleaned, split and packed once; augmented and normalized by the batch, on the device."""

import inspect
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache as kept
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from src.data import cache, report
from src.data.images import clean, folder, pictures
from src.data.images.augment import Augmentation, augment, within
from src.data.images.mix import Mix
from src.data.images.report import channel_moments, image_shift, image_split
from src.data.module import Arrays, Batch, DataModule
from src.data.order import Balanced, Order
from src.run.errors import ConfigError, DataError
from src.run.terminal import rank_zero_print

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Images = tuple[np.ndarray, np.ndarray]  # uint8 [N, C, H, W], int64 [N] or [N, num_classes] of 0 and 1
Samples = dict[str, clean.Samples]  # of each split that came in
Place = tuple[str, np.ndarray]  # a split that came in, and rows of it


class ImageDataModule(DataModule):
    """Images with one label each.

    Args:
        dataset: `digits` (scikit-learn's 1,797 handwritten digits of 8x8 pixels, which need no download), a set of
            torchvision with its official test split, or `folder`: image files in `data_dir`.
        data_dir: where torchvision's sets lie; for `folder` it holds `train/CLASS/`, `test/CLASS/` and perhaps
            `val/CLASS/`, or `CLASS/` alone, with images of any usual kind.
        download: fetch a torchvision set that is not in `data_dir`.
        val_frac: share of the training samples held out for validation, the same share of each class.
        test_frac: share held out for testing where a folder has no `test`, the same share of each class.
        image_size: height and width to which the images of a folder are brought, by their shorter side and then
            their centre; by default as they are, or where they differ or are large, squares of the median shorter
            side, at most 224.
        invalid: whether a file or label that cannot be used is an `error`, or left out (`skip`) and listed in the
            report. Duplicates, and training images that are also in test, are always left out.
        max_skipped_frac: the largest share of samples that may be left out as invalid.
        channels: 1 or 3; a grey image is repeated to make 3. By default as the images are.
        normalize: subtract the mean and divide by the standard deviation of each channel, measured on train alone.
        augment: operations on the training images, in this order.
        mix: puts two training images into one, with the labels of both; after `augment`.
        balance: an epoch takes all classes equally often, samples of small ones more than once.
    """

    provides = ("num_classes", "in_channels", "image_size")  # facts, which no config states

    def __init__(
        self,
        dataset: Literal["digits", "folder", "MNIST", "FashionMNIST", "CIFAR10", "CIFAR100"] = "digits",
        data_dir: str = "data",
        download: bool = False,
        val_frac: float = 0.1,
        test_frac: float = 0.2,
        image_size: tuple[int, int] | None = None,
        invalid: Literal["error", "skip"] = "error",
        max_skipped_frac: float = 0.05,
        channels: Literal[1, 3] | None = None,
        normalize: bool = True,
        augment: list[Augmentation] | None = None,
        mix: Mix | None = None,
        balance: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, share in (("val_frac", val_frac), ("test_frac", test_frac)):
            if not 0 < share < 1:
                raise ConfigError(f"data.{name}: {share} is not between 0 and 1")
        within("data.max_skipped_frac", max_skipped_frac, 0, 1)
        if image_size and (dataset != "folder" or min(image_size) < 1):
            raise ConfigError(f"data.image_size: {list(image_size)} -> give height and width, for a folder only")
        self.reads_files = dataset != "digits" or type(self).load is not ImageDataModule.load
        if not self.reads_files and data_dir != "data":
            raise ConfigError(f"data.data_dir: {data_dir} is not read by the digits -> set data.dataset, to folder?")
        self.dataset, self.data_dir, self.download = dataset, Path(data_dir), download
        self.val_frac, self.test_frac, self.image_size = val_frac, test_frac, image_size
        self.invalid, self.max_skipped_frac = invalid, max_skipped_frac
        self.channels, self.normalize = channels, normalize
        self.augment, self.mix, self.balance = augment or [], mix, balance
        self.prepared: Path | None = None
        self.class_names: list[str] = []  # a `load` may set it; else classes are called by their numbers

    def prepare_data(self) -> None:
        self.prepare()

    def prepare(self) -> Path:
        """The folder of the prepared data; built by whoever comes first."""
        if self.prepared:
            return self.prepared
        modules = {
            type(self).__module__,
            __name__,
            clean.__name__,
            folder.__name__,
            report.__name__,
            channel_moments.__module__,
        }
        names = ("dataset", "val_frac", "test_frac", "image_size", "invalid", "max_skipped_frac")
        options = {name: getattr(self, name) for name in names} | self.own()
        options["source"] = [inspect.getsource(sys.modules[m]) for m in sorted(modules)]
        files = cache.files_in(self.data_dir) if self.reads_files else []
        for path in (value for value in self.own().values() if isinstance(value, (str, Path))):
            if os.path.exists(path):  # a `load` may read it
                files += cache.files_in(Path(path)) or [Path(path)]
        name = f"{type(self).__name__}-{self.dataset}-{cache.fingerprint(options, files)}"
        trained_on = self.cache_dir / name
        if self.fitted and not (cache.damage(trained_on) is None and self.is_own(cache.report(trained_on)["train"])):
            name += "-" + cache.fingerprint(self.fitted)
        self.prepared = cache.prepare(self.cache_dir, name, self.build)
        return self.prepared

    def is_own(self, train: dict[str, Any]) -> bool:
        """Whether this train split, by its mean and std, is the one that the checkpoint was fitted on."""
        assert self.fitted is not None
        return all(np.allclose(train[name], self.fitted["statistics"][name], 1e-9, 0) for name in ("mean", "std"))

    def own(self) -> dict[str, Any]:
        """The plain values that a subclass keeps besides ours: its `load` may depend on them."""
        plain = (str, int, float, tuple, list, dict, Path)
        known = vars(ImageDataModule())
        return {name: value for name, value in vars(self).items() if name not in known and isinstance(value, plain)}

    def load(self) -> tuple[Images, Images]:
        """Training and test images; a data set of your own overrides this."""
        if not self.reads_files and type(self) is not ImageDataModule:
            rank_zero_print(
                f"{type(self).__name__} has no load() and names no other dataset: these are scikit-learn's digits."
            )
        return digits() if self.dataset == "digits" else self.torchvision_set()

    def build(self) -> tuple[cache.Splits, dict[str, Any]]:
        cleaning = report.Cleaning(self.invalid, self.max_skipped_frac)
        known = self.fitted["statistics"]["class_names"] if self.fitted else []
        if self.dataset == "folder":
            size = self.image_size or (self.fitted["facts"]["image_size"] if self.fitted else None)
            samples, told = folder.read(self.data_dir, size, self.cache_dir, cleaning, known)
            class_names, came_in = told["class_names"], told["came_in"]
        else:
            loaded = clean.two_pairs(self.load(), f"{type(self).__name__}.load")
            class_names, told = self.class_names or known, {}
            samples = clean.from_arrays(loaded, len(class_names) or None, cleaning)
            class_names = class_names or [str(k) for k in range(len(report.count(samples["train"].targets)))]
            came_in = sum(len(targets) for _, targets in loaded.values())
        cleaning.check_limit(came_in)
        kept = clean.without_copies(samples, cleaning)
        places = self.foreign(samples, kept, class_names) if self.fitted else self.divide(samples, kept, class_names)
        splits = {split: taken(samples[source], index) for split, (source, index) in places.items()}
        return splits, told | self.describe(splits, class_names) | cleaning.report(came_in)

    def foreign(self, samples: Samples, kept: dict[str, np.ndarray], class_names: list[str]) -> dict[str, Place]:
        """For a trained model: the splits of its own data; of other data all of `test`, else `val`, else train."""
        with suppress(DataError, KeyError):  # what cannot be divided is other data
            places = self.divide(samples, kept, class_names)
            mean, std = channel_moments(taken(samples["train"], places["train"][1])["x"])
            if self.is_own({"mean": mean, "std": std}):
                return places
        source = next(split for split in ("test", "val", "train") if split in samples)
        return dict.fromkeys(report.SPLITS, (source, np.arange(len(samples[source].targets))))

    def divide(self, samples: Samples, kept: dict[str, np.ndarray], class_names: list[str]) -> dict[str, Place]:
        """Where the samples of each split come from; test and val are held out of train where they are not given."""
        if not len(kept["train"]):
            raise DataError("train: each of its images is also in test or val, or has two labels -> give it others")
        places: dict[str, Place] = {split: (split, index) for split, index in kept.items()}
        for split, share in (("test", self.test_frac), ("val", self.val_frac)):
            if split not in places:
                index, least = places["train"][1], 2 if "val" in places or split == "val" else 3
                targets = samples["train"].targets[index]
                rest, part = clean.stratified(targets, share, f"data.{split}_frac", class_names, least)
                places |= {"train": ("train", index[rest]), split: ("train", index[part])}
        return {split: places[split] for split in report.SPLITS}

    def describe(self, splits: dict[str, dict[str, Any]], class_names: list[str]) -> dict[str, Any]:
        """The data report's figures; raises DataError where a class has no training sample."""
        out: dict[str, Any] = {"num_classes": len(class_names), "class_names": class_names}
        for split, arrays in splits.items():
            out[split] = image_split(arrays["x"], arrays["targets"], len(class_names))
        if 0 in out["train"]["per_class"] and not self.fitted:
            name = class_names[out["train"]["per_class"].index(0)]
            raise DataError(f"class {name}: train has no usable sample that is not in test or val -> add some")
        return out | {"shift": image_shift(out)}

    def torchvision_set(self) -> tuple[Images, Images]:
        import torchvision

        kind = getattr(torchvision.datasets, self.dataset)
        try:
            train, test = (kind(self.data_dir, train=t, download=self.download) for t in (True, False))
        except (RuntimeError, OSError, ValueError, AssertionError, EOFError) as e:  # the last are of damaged files
            hint = "a download needs a network" if self.download else "give data.data_dir, or --data.download true"
            what = (str(e) or f"damaged, {type(e).__name__}").splitlines()[0]
            raise DataError(f"{self.dataset} in {self.data_dir}: {what} -> {hint}") from e
        self.class_names = [name.partition(" - ")[0] for name in train.classes]  # MNIST's are like "7 - seven"
        return to_images(train), to_images(test)

    def setup(self, stage: str) -> None:
        if self.splits:
            return
        prepared = self.prepare()
        self.report, self.content = cache.report(prepared), cache.content(prepared)
        for split in report.SPLITS:
            self.splits[split] = Arrays(cache.read(prepared, split, "x"), cache.read(prepared, split, "targets"))
        _, channels, *image_size = self.splits["train"].x.shape
        self.facts = {"num_classes": self.report["num_classes"], "in_channels": self.channels or channels}
        self.facts["image_size"] = tuple(image_size)
        self.statistics = {name: self.report["train"][name] for name in ("mean", "std")}
        self.statistics["class_names"] = self.report["class_names"]
        if channels > self.facts["in_channels"]:
            raise ConfigError(f"data.channels: the images have {channels} -> take {channels}, or leave it out")
        if self.fitted:
            if self.content != self.fitted.get("content", self.content):
                count, *_, height, width = self.splits["test"].x.shape
                rank_zero_print(
                    f"Other data than the model was trained on: {count:,} images, at {height}x{width} pixels."
                )
            if stage != "predict" and (self.splits["test"].targets < 0).any():
                what = "nothing says the classes of these images -> name folders so, or take python -m src.predict"
                raise DataError(f"{self.data_dir}: {what}")
            self.adopt(self.fitted)

    def sample_names(self, split: str) -> list[str]:
        if self.dataset != "folder":
            return []
        return [name.decode(errors="replace") for name in np.load(self.prepare() / f"{split}_names.npy")]

    def adopt(self, state: dict[str, Any]) -> None:
        """Raises DataError where these images or classes are none that the model knows."""
        facts, names = state["facts"], state["statistics"]["class_names"]
        _, channels, *size = self.splits["train"].x.shape
        if size != list(facts["image_size"]):
            wanted = "[{},{}]".format(*facts["image_size"])
            raise DataError(f"the model takes images of {wanted}, these are {size} -> --data.image_size {wanted}")
        if channels > facts["in_channels"]:
            raise DataError(f"the model is of grey images, these have {channels} channels -> make them grey")
        own = self.statistics["class_names"]
        if unknown := [name for name in own if name not in names]:
            raise DataError(f"the model knows no class {unknown[0]} -> leave its folder out; it knows {names}")
        places = torch.tensor([names.index(name) for name in own])
        hot = torch.eye(len(names), dtype=torch.int64)[places]
        for arrays in self.splits.values():
            targets = arrays.targets
            arrays.targets = torch.where(targets < 0, -1, places[targets]) if targets.ndim == 1 else targets @ hot
        super().adopt(state)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Whole batch, on the device: x uint8 [N, C, H, W] -> augmented and mixed in training, normalized; float32, or
        what `trainer.precision` makes the weights."""
        batch = {**batch, "x": batch["x"].float().div_(255)}
        if self.trainer and self.trainer.training:
            epoch = self.trainer.current_epoch
            batch["x"] = augment(batch["x"], batch.get("draw", batch["index"]), self.augment, self.seed, epoch)
            batch = self.mix(batch, self.facts["num_classes"], self.seed, epoch) if self.mix else batch
        x = self.standardize(batch["x"])
        return {**batch, "x": self.trainer.precision_plugin.convert_input(x) if self.trainer else x}

    def ordered(self) -> Callable[[int, int, int], Order]:
        if not self.balance:
            return super().ordered()
        targets = self.splits["train"].targets
        if targets.ndim != 1:
            raise ConfigError("data.balance: the samples have several labels -> set it to false")
        return Balanced(targets)

    def picture(self, batch: Batch) -> "Figure":
        names = self.statistics["class_names"]
        labels = [t.nonzero().flatten().tolist() if t.ndim else [int(t)] for t in batch["targets"]]
        return pictures.images(batch["x"].float().cpu().numpy(), [", ".join(names[k] for k in few) for few in labels])

    def standardize(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] in [0, 1] -> what the network gets: standardized by train's statistics, grey repeated."""
        if self.normalize:
            mean, std = (by_channel(tuple(self.statistics[name]), x.device) for name in ("mean", "std"))
            x = (x - mean) / std
        return x.expand(-1, self.facts["in_channels"], -1, -1)


@kept  # a copy from the host at each batch would stop the GPU
def by_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


def digits() -> tuple[Images, Images]:
    """Handwritten digits of 43 people (Alpaydin and Kaynak, 1998); a fifth of each class is the test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = (bunch.images * 255 / 16).round().astype(np.uint8)[:, None]  # [N, 1, 8, 8]
    targets = bunch.target.astype(np.int64)
    train, test = clean.stratified(targets, 0.2)
    return (x[train], targets[train]), (x[test], targets[test])


def to_images(dataset: Any) -> Images:
    x, targets = np.asarray(dataset.data), np.asarray(dataset.targets, dtype=np.int64)
    x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(x), targets


def taken(samples: clean.Samples, index: np.ndarray) -> dict[str, Any]:
    names = np.array([os.fsencode(samples.names[i]) for i in index])
    return {"x": cache.Rows(samples.x, index), "targets": samples.targets[index], "names": names}
