import numpy as np
import pytest
import torch

from src.data.image import ImageDataModule, make_report, stratified, without
from src.errors import ConfigError, DataError


@pytest.fixture
def digits(tmp_path):
    data = ImageDataModule(cache_dir=str(tmp_path))
    data.prepare_data()
    data.setup("fit")
    return data


def test_digits_have_a_fixed_stratified_split(digits, tmp_path):
    assert digits.num_samples == {"train": 1293, "val": 144, "test": 360}
    other = ImageDataModule(cache_dir=str(tmp_path / "other"), seed=5)
    other.setup("fit")
    for split in ("train", "val", "test"):
        assert torch.equal(other.splits[split].x, digits.splits[split].x)
        counts = digits.report[split]["per_class"]
        assert max(counts) - min(counts) <= 0.05 * sum(counts)


def test_no_image_is_in_two_of_train_and_test(digits):
    train, test = ({x.numpy().tobytes() for x in digits.splits[s].x} for s in ("train", "test"))
    assert not train & test


def test_facts_and_statistics_come_from_the_data(digits):
    assert digits.facts == {"num_classes": 10, "in_channels": 1, "image_size": (8, 8)}
    x = digits.splits["train"].x.double() / 255
    assert digits.statistics["mean"] == pytest.approx([x.mean().item()])
    assert digits.statistics["std"] == pytest.approx([x.std(correction=0).item()])


def test_standardized_train_has_mean_0_and_deviation_1(digits):
    x = digits.on_after_batch_transfer(digits.splits["train"][torch.arange(1293)], 0)["x"]
    assert x.dtype == torch.float32
    assert x.mean().item() == pytest.approx(0, abs=1e-5)
    assert x.std().item() == pytest.approx(1, abs=1e-3)


def test_grey_images_are_repeated_for_three_channels(tmp_path):
    data = ImageDataModule(cache_dir=str(tmp_path), channels=3)
    data.setup("fit")
    x = data.on_after_batch_transfer(data.splits["val"][torch.arange(4)], 0)["x"]
    assert x.shape == (4, 3, 8, 8)
    assert data.facts["in_channels"] == 3
    assert torch.equal(x[:, 0], x[:, 2])


def test_mnist_from_its_files(data_dir, tmp_path):
    data = ImageDataModule("MNIST", data_dir=str(data_dir), cache_dir=str(tmp_path))
    data.setup("fit")
    assert data.num_samples == {"train": 54_000, "val": 6_000, "test": 10_000}
    assert data.facts == {"num_classes": 10, "in_channels": 1, "image_size": (28, 28)}
    assert data.statistics["mean"] == pytest.approx([0.1307], abs=1e-3)


def test_a_set_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"MNIST in .*--data.download true"):
        ImageDataModule("MNIST", data_dir=str(tmp_path / "none"), cache_dir=str(tmp_path)).setup("fit")


def test_a_test_image_in_train_is_left_out():
    x = np.arange(12, dtype=np.uint8).reshape(3, 1, 2, 2)
    kept, removed = without(images_of=x, seen_in=x[1:2])
    assert kept.tolist() == [True, False, True]
    assert removed == 1


def test_report_measures_each_split():
    x = np.array([[[[0, 255]]], [[[255, 255]]]], dtype=np.uint8)
    split = {"x": x, "targets": np.array([0, 2])}
    report = make_report({"train": split, "val": split, "test": split}, removed=0)
    assert report["num_classes"] == 3
    assert report["train"]["per_class"] == [1, 0, 1]
    assert report["train"]["mean"] == [0.75]
    assert report["train"]["std"] == pytest.approx([np.sqrt(0.1875)])


def test_a_class_with_one_sample_cannot_be_split():
    with pytest.raises(DataError, match="least populated"):
        stratified(np.array([0, 0, 0, 0, 1]), 0.5)


@pytest.mark.parametrize("val_frac", [0, 1, -0.5, 2])
def test_val_frac_is_a_share(val_frac):
    with pytest.raises(ConfigError, match=r"data.val_frac"):
        ImageDataModule(val_frac=val_frac)
