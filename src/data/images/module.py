"""Images: fetched, cleaned, split and packed once; augmented and normalized by the batch, on the device."""

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache as remember
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.data import cache
from src.data.images import datasets, folder, pictures, samples
from src.data.images.augment import Augmentation, augment
from src.data.images.datasets import Images, digits
from src.data.images.samples import Samples, figures, stratified, without_copies
from src.data.loader import Arrays, Batch
from src.data.module import PreparedDataModule, State
from src.data.order import key
from src.data.report import SPLITS, Cleaning
from src.run.errors import ConfigError, DataError
from src.run.terminal import rank_zero_print

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ImageDataModule(PreparedDataModule):
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
        channels: 1 or 3; a grey image is repeated to make 3. By default as the images are.
        normalize: subtract the mean and divide by the standard deviation of each channel, measured on train alone.
        mean: of each channel in [0, 1], in place of the measured one, as the weights of others may expect it.
        std: the same of the standard deviation.
        augment: operations on the training images, in this order.
        mix: puts two training images into one, with the labels of both, after `augment`:
            `torchvision.transforms.v2.MixUp` or `CutMix`.
        views: what an image is classified by, but in training: by itself (`one`), by the mean of its logits and those
            of its mirror image (`mirrored`), or of both also where they are moved by a pixel, up and left or down and
            right (`shifted`; Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024).
    """

    provides = ("num_classes", "in_channels", "image_size")  # facts, which no config states
    varies = ("in_channels",)  # grey images are repeated
    sources = ("data_dir", "dataset")

    def __init__(
        self,
        dataset: Literal["digits", "folder", "MNIST", "FashionMNIST", "CIFAR10", "CIFAR100"] = "digits",
        data_dir: str = "data",
        download: bool = False,
        val_frac: float = 0.1,
        test_frac: float = 0.2,
        image_size: tuple[int, int] | None = None,
        channels: Literal[1, 3] | None = None,
        normalize: bool = True,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        augment: list[Augmentation] | None = None,
        mix: Callable[..., nn.Module] | None = None,
        views: Literal["one", "mirrored", "shifted"] = "one",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, share in (("val_frac", val_frac), ("test_frac", test_frac)):
            if not 0 < share < 1:
                raise ConfigError(f"data.{name}: {share} is not between 0 and 1")
        if image_size and (dataset != "folder" or min(image_size) < 1):
            raise ConfigError(f"data.image_size: {list(image_size)} -> give height and width, for a folder only")
        self.reads_files = dataset != "digits" or type(self).load is not ImageDataModule.load
        if not self.reads_files and data_dir != "data":
            raise ConfigError(f"data.data_dir: {data_dir} is not read by the digits -> set data.dataset, to folder?")
        self.dataset, self.data_dir, self.download = dataset, Path(data_dir), download
        self.val_frac, self.test_frac, self.image_size = val_frac, test_frac, image_size
        if (std and min(std) <= 0) or not (normalize or mean is std is None):
            raise ConfigError(f"data.mean {mean}, data.std {std} -> take a std above 0, and leave data.normalize true")
        self.channels, self.normalize, self.expected = channels, normalize, {"mean": mean, "std": std}
        self.augment, self.mix, self.evaluated_by = augment or [], mix, views
        self.mixer: nn.Module | None = None
        self.class_names: list[str] = []  # a `load` may set it; else classes are called by their numbers

    def depends_on(self) -> tuple[dict[str, Any], list[Path]]:
        options = {name: getattr(self, name) for name in ("dataset", "val_frac", "test_frac", "image_size")}
        modules = {sys.modules[type(self).__module__], sys.modules[__name__], datasets, folder, samples}
        plain, ours = (str, int, float, tuple, list, dict, Path), vars(ImageDataModule())
        # A `load` may depend on all plain values that a subclass keeps, and on the files that they name.
        more = {name: value for name, value in vars(self).items() if name not in ours and isinstance(value, plain)}
        paths = [Path(value) for value in more.values() if isinstance(value, (str, Path)) and os.path.exists(value)]
        paths += [self.data_dir] if self.reads_files else []
        files = [file for path in paths for file in cache.files_in(path)]
        return {**options, **more, "source": sorted(map(inspect.getsource, modules))}, files

    def load(self) -> tuple[Images, Images]:
        """Training and test images; a data set of your own overrides this."""
        if self.dataset == "digits":
            if type(self) is not ImageDataModule:  # its load is missing, or misspelt
                name = type(self).__name__
                rank_zero_print(f"{name} has no load() and names no other dataset: these are scikit-learn's digits.")
            return digits()
        images, self.class_names = datasets.torchvision_set(self.dataset, self.data_dir, self.download)
        return images

    def build(self, cleaning: Cleaning, fitted: State | None) -> cache.Prepared:
        given, class_names = self.read(cleaning, fitted)
        cleaning.check()
        if fitted:
            measured = next(given[split] for split in ("test", "val", "train") if split in given)
            check_fits(measured, class_names, fitted)
            parts = {"test": measured}
        else:
            parts = self.divide(without_copies(given, cleaning), class_names)
        arrays = {
            split: {"x": s.x, "targets": s.targets, "names": np.array([os.fsencode(name) for name in s.names])}
            for split, s in parts.items()
        }
        classes = {"num_classes": len(class_names), "class_names": class_names}
        return arrays, classes | figures(parts, class_names)

    def read(self, cleaning: Cleaning, fitted: State | None) -> tuple[dict[str, Samples], list[str]]:
        """The samples of each split that there is, and the names of the classes."""
        known = fitted["statistics"]["class_names"] if fitted else []
        if self.dataset == "folder":
            size = self.image_size or (fitted["facts"]["image_size"] if fitted else None)
            samples, class_names = folder.read(self.data_dir, size, self.cache_dir, cleaning, known)
        else:
            loaded, source = self.load(), f"{type(self).__name__}.load"
            samples, class_names = datasets.checked(loaded, source, self.class_names or known, cleaning)
        if len(class_names) < 2:
            raise DataError(f"there is one class only ({''.join(class_names)}) -> give samples of two classes or more")
        return samples, class_names

    def divide(self, samples: dict[str, Samples], class_names: list[str]) -> dict[str, Samples]:
        """Hold test and val out of train where they are not given."""
        if not len(samples["train"].targets):
            raise DataError("train: each of its images is also in test or val, or has two labels -> give it others")
        for split, share in (("test", self.test_frac), ("val", self.val_frac)):
            if split not in samples:
                train, least = samples["train"], 2 if "val" in samples or split == "val" else 3
                rest, held = stratified(train.targets, share, f"data.{split}_frac", class_names, least)
                samples = {**samples, "train": train.take(rest), split: train.take(held)}
        return {split: samples[split] for split in SPLITS}

    def open(self, split: str, read: Callable[[str], Tensor]) -> Arrays:
        return Arrays(read("x"), read("targets"))

    def measure(self) -> tuple[dict[str, Any], dict[str, Any]]:
        _, channels, *image_size = self.splits["test"].x.shape
        if self.channels and channels > self.channels:
            raise ConfigError(f"data.channels: the images have {channels} -> take {channels}, or leave it out")
        facts = {"num_classes": self.report["num_classes"], "in_channels": self.channels or channels}
        train, class_names = self.report["train"], self.report["class_names"]
        statistics = {name: given or train[name] for name, given in self.expected.items()}
        if {*map(len, statistics.values())} - {channels, facts["in_channels"]}:
            raise ConfigError(f"data.mean, data.std: give {facts['in_channels']} numbers, one for a channel")
        return facts | {"image_size": tuple(image_size)}, statistics | {"class_names": class_names}

    def setup(self, stage: str) -> None:
        super().setup(stage)
        try:
            self.mixer = self.mix(num_classes=self.facts["num_classes"]) if self.mix else None
        except (TypeError, ValueError) as e:
            hint = "take torchvision.transforms.v2.MixUp or CutMix"
            raise ConfigError(f"data.mix: {str(e).splitlines()[0]} -> {hint}") from e
        if stage != "predict" and (self.splits["test"].targets < 0).any():
            what = "nothing says the classes of these images -> name folders so, or take python -m src.predict"
            raise DataError(f"{self.data_dir}: {what}")

    def keys(self, split: str, index: np.ndarray) -> dict[str, Any]:
        files = self.sample_names(split)
        return super().keys(split, index) | ({"file": [files[i] for i in index]} if files else {})

    def samples_of(self, raw: Any, cleaning: Cleaning) -> Iterator[tuple[dict[str, Any], Batch]]:
        """Images of any size, as `folder.given_images` takes them; colours become grey where those of train were."""
        decode = partial(folder.decode, shape=(len(self.statistics["mean"]), *self.facts["image_size"]))
        given, key = folder.given_images(raw), "file" if isinstance(raw, (str, Path)) else "id"
        while part := list(islice(given, self.micro_batch_size)):
            cleaning.came_in += len(part)
            if found := list(folder.readable("", part, decode, cleaning)):
                x = torch.from_numpy(np.stack([image for _, image in found]))
                yield {key: [file.class_name for file, _ in found]}, {"x": x}

    def sample_names(self, split: str) -> list[str]:
        """The files of a split's samples, if each is a file."""
        if self.dataset != "folder" or self.folder is None:
            return []
        names = np.load(self.folder / f"{self.stored_as(split)}_names.npy")
        return [name.decode(errors="replace") for name in names]

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Whole batch, on the device: x uint8 [N, C, H, W] -> augmented and mixed in training, normalized; float32, or
        what `trainer.precision` makes the weights. Mixing gives `soft_targets` [N, num_classes] besides `targets`."""
        batch = {**batch, "x": batch["x"].float().div_(255)}
        if self.trainer and self.trainer.training:
            batch["x"] = augment(batch["x"], batch["index"], self.augment, self.seed, self.trainer.current_epoch)
            if self.mixer:
                with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's generator of the CPU
                    torch.default_generator.manual_seed(key(self.seed, *self.position(), self.trainer.global_rank))
                    batch["x"], batch["soft_targets"] = self.mixer(batch["x"], batch["targets"])
        return {**batch, "x": self.as_weights(self.standardize(batch["x"]))}

    def standardize(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] in [0, 1] -> what the network gets: standardized by train's statistics, grey repeated."""
        if self.normalize:
            mean, std = (by_channel(tuple(self.statistics[name]), x.device) for name in ("mean", "std"))
            x = (x - mean).div_(std)
        return x.expand(-1, self.facts["in_channels"], -1, -1)

    def inputs(self) -> dict[str, dict[str, Any]]:
        size, channels = self.facts["image_size"], len(self.statistics["mean"])
        what = "by PIL: draft(None, (2 * longer side,) * 2), ImageOps.exif_transpose, 16 bits to (value + 128) // 257, "
        what += f"on white where transparent, {'L' if channels == 1 else 'RGB'}, ImageOps.fit to width, height, BICUBIC"
        return {"images": {"dtype": "uint8", "shape": ["N", channels, *size], "meaning": what}}

    def views(self, x: Tensor) -> list[Tensor]:
        out = [x]
        if self.evaluated_by == "shifted":
            framed = F.pad(x, [1] * 4, mode="replicate")
            out += [framed[..., :-2, :-2], framed[..., 2:, 2:]]
        if self.evaluated_by != "one":
            out += [view.flip(-1) for view in out]
        return out

    def hint(self, message: str) -> str:
        return "if it wants colour images: data.channels 3" if "to have 3 channels" in message else ""

    def picture(self, batch: Batch) -> "Figure":
        names = self.statistics["class_names"]
        return pictures.images(batch["x"].float().cpu(), [names[k] for k in batch["targets"].tolist()])


def check_fits(samples: Samples, class_names: list[str], fitted: State) -> None:
    """Raise DataError where a trained model cannot take these images or classes."""
    facts, known = fitted["facts"], fitted["statistics"]["class_names"]
    _, channels, *size = samples.x.shape
    if size != list(facts["image_size"]):
        wanted = "[{},{}]".format(*facts["image_size"])
        raise DataError(f"the model takes images of {wanted}, these are {size} -> --data.image_size {wanted}")
    if channels > facts["in_channels"]:
        raise DataError(f"the model is of grey images, these have {channels} channels -> make them grey")
    if class_names != known:
        raise DataError(f"the model knows the classes {known}, not {class_names} -> name data with classes of its own")


@remember  # a copy from the host at each batch would stop the GPU
def by_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]
