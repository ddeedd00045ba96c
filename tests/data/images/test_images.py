import inspect
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import Precision
from torchvision.transforms import v2

from src.data.images.datasets import digits as digits_of_sklearn
from src.data.images.module import ImageDataModule
from src.data.images.samples import stratified
from src.run.errors import ConfigError, DataError


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
    assert digits.statistics["class_names"] == [str(k) for k in range(10)]


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
    assert data.report["removed"] == []


def test_a_set_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"MNIST in .*--data.download true"):
        ImageDataModule("MNIST", data_dir=str(tmp_path / "none"), cache_dir=str(tmp_path)).setup("fit")


def test_a_class_with_one_sample_cannot_be_split():
    with pytest.raises(DataError, match="class ant has 1 usable sample, 2 are needed -> add some, or take"):
        stratified(np.array([0, 0, 0, 0, 1]), 0.5, class_names=["bee", "ant"])
    with pytest.raises(DataError, match=r"data.val_frac: 0.9 of 10 samples leaves too few for 2 classes -> lower it"):
        stratified(np.arange(10) % 2, 0.9)


@pytest.mark.parametrize(("num_classes", "each"), [(30, 4), (100, 5), (2, 3)])
def test_one_of_each_class_is_held_out_at_least(num_classes, each):
    targets = np.arange(num_classes * each) % num_classes
    rest, part = stratified(targets, 0.1, least=3)
    assert np.array_equal(np.bincount(targets[part]), np.ones(num_classes))
    assert sorted([*rest, *part]) == list(range(len(targets)))


@pytest.mark.parametrize("options", [{"val_frac": f} for f in (0, 1, -0.5, 2)] + [{"test_frac": 1.5}])
def test_fractions_are_shares(options):
    with pytest.raises(ConfigError, match=f"data.{next(iter(options))}"):
        ImageDataModule(**options)


def test_image_size_is_for_folders():
    with pytest.raises(ConfigError, match=r"data.image_size"):
        ImageDataModule(image_size=(8, 8))


class Given(ImageDataModule):
    """Two classes of random images; `given` is what a test makes of them."""

    given = None

    def load(self):
        return self.given


@pytest.fixture
def make(tmp_path):
    def make(change=lambda sets: None, **options):
        rng = np.random.default_rng(0)
        sets = {"x": rng.integers(0, 256, (40, 1, 4, 4), dtype=np.uint8), "y": np.arange(40) % 2}
        sets |= {"x_test": rng.integers(0, 256, (8, 1, 4, 4), dtype=np.uint8), "y_test": np.arange(8) % 2}
        change(sets)
        module = Given(cache_dir=str(tmp_path), batch_size=8, **options)
        module.given = (sets["x"], sets["y"]), (sets["x_test"], sets["y_test"])
        module.setup("fit")
        return module

    return make


def change(name, value, row=None):
    def apply(sets):
        if row is None:
            sets[name] = value(sets[name]) if callable(value) else value
        else:
            sets[name][row] = value

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change("y", -1, 3), "train row 3: label out of range: -1 is not in 0..1 -> number the classes"),
        (change("y", 7, 5), "train: there are labels 0, 1, 7 -> number the classes"),
        (change("y_test", 2, 1), "test row 1: label out of range: 2 is not in 0..1"),
        (change("y", lambda y: y + 1), "train: there are labels 1, 2 -> number the classes"),
        (change("y", lambda y: np.eye(2, dtype=int)[y]), r"train: labels are int64 \[40, 2\] -> give one whole number"),
        (change("y", lambda y: y[:, None]), r"train: labels are int64 \[40, 1\] -> give one whole number"),
        (change("y", lambda y: y.astype(np.float32)), r"train: labels are float32 \[40\] -> give one whole number"),
        (change("y", lambda y: np.where(y > 0, y, np.nan)), "train: labels are float64"),
        (change("y", lambda y: y + 0.5 * (np.arange(40) == 6)), "train: labels are float64"),
        (change("y", lambda y: y.astype(str)), "train: labels are <U21"),
        (change("y", lambda y: y[:-1]), "train: 40 images, but 39 labels"),
        (change("y", lambda y: y * 2), "train: there are labels 0, 2 -> number the classes"),
        (change("y", lambda y: y * 0), r"one class only \(0\)"),
        (
            change("x", lambda x: x / 255),
            r"train: images are float64 \[40, 1, 4, 4\] -> give uint8 \[N, C, H, W\]",
        ),
        (change("x", lambda x: x[:, 0]), r"train: images are uint8 \[40, 4, 4\]"),
        (
            change("x", lambda x: np.zeros((40, 8, 8, 3), np.uint8)),
            r"\[40, 8, 8, 3\] seem to be \[N, H, W, C\] -> x.transp",
        ),
        (
            change("x_test", lambda x: x[:, :, :3]),
            r"images differ in shape: train \[1, 4, 4\], test \[1, 3, 4\]",
        ),
        (change("x_test", lambda x: x[:0]), "test: 0 images, but 8 labels"),
        (lambda sets: sets.update(x=sets["x"][:0], y=sets["y"][:0]), "there is one class only"),
        (change("x", lambda x: [x[0], x[1][:, :2]]), "Given.load: .* -> give two pairs of images and labels"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(make, change, message):
    with pytest.raises(DataError, match=message):
        make(change)


@pytest.mark.parametrize("loaded", [None, (1, 2, 3), (([], []),) * 3])
def test_a_load_gives_two_pairs(tmp_path, loaded):
    class Given(ImageDataModule):
        def load(self):
            return loaded

    with pytest.raises(DataError, match=r"Given.load: .* -> give two pairs"):
        Given(cache_dir=str(tmp_path)).prepare_data()


def test_invalid_labels_can_be_left_out(make):
    data = make(change("y", -1, slice(0, 2)), invalid="skip")
    assert [(r["file"], r["reason"]) for r in data.report["removed"]] == [
        ("train row 0", "label out of range"),
        ("train row 1", "label out of range"),
    ]
    assert data.report["data/missing_frac"] == 2 / 48
    assert sum(data.num_samples.values()) == 46


def test_copies_go_and_test_stays(make):
    def copy(sets):
        sets["x"][4] = sets["x"][2]  # the same label: one of them stays
        sets["x"][7] = sets["x"][6]  # another label: both go
        sets["x"][9], sets["x"][11] = sets["x_test"][1], sets["x_test"][2]  # in test
        sets["x_test"][4] = sets["x_test"][2]

    data = make(copy)
    found = {r["file"]: (r["reason"], r["detail"]) for r in data.report["removed"]}
    assert found == {
        "train row 4": ("duplicate", "train row 2"),
        "train row 6": ("two labels", "train row 7"),
        "train row 7": ("two labels", "train row 6"),
        "train row 9": ("also in test", "test row 1"),
        "train row 11": ("also in test", "test row 2"),
    }
    assert data.report["removed_counts"] == {"two labels": 2, "also in test": 2, "duplicate": 1}
    assert data.report["data/duplicate_frac"] == 5 / 48
    assert sum(data.num_samples[s] for s in ("train", "val")) == 35
    assert data.num_samples["test"] == 8


def test_no_image_is_left(make):
    with pytest.raises(DataError, match="train: each of its images is also in test or val"):
        make(lambda sets: sets.update(x=sets["x_test"], y=sets["y_test"]))


def test_statistics_do_not_know_test_or_val(make):
    before, after = make().statistics, make(change("x_test", 255, slice(0, 8)), val_frac=0.1).statistics
    assert before == after
    data = make(val_frac=0.25)
    x = data.splits["train"].x.double() / 255
    assert data.statistics["mean"] == pytest.approx([x.mean().item()])


def test_shift_between_train_and_test_is_measured(make):
    def shift(sets):
        sets["x_test"] = (sets["x_test"] // 4 + 192).astype(np.uint8)
        sets["y_test"][:] = 0

    report = make(shift).report
    assert report["shift"]["test"]["mean"][0] > 1
    assert report["shift"]["test"]["class_shares"] == pytest.approx(0.5, abs=0.02)
    assert abs(report["shift"]["val"]["mean"][0]) < 0.5


class Above(ImageDataModule):
    """Digits below a border against the others."""

    def __init__(self, border: int = 5, **kwargs) -> None:
        super().__init__(**kwargs)
        self.border = border

    def load(self):
        (x, y), (x_test, y_test) = digits_of_sklearn()
        return (x, (y >= self.border).astype(int)), (x_test, (y_test >= self.border).astype(int))


def test_own_arguments_make_own_data(tmp_path):
    """The prepared data of one value is not taken for another's."""
    shares = []
    for border in (5, 8, 5):
        data = Above(border, cache_dir=str(tmp_path), data_dir=str(tmp_path / "none"))
        data.setup("fit")
        shares.append(data.splits["train"].targets.float().mean().item())
    assert shares[0] == shares[2] == pytest.approx(0.5, abs=0.05)
    assert shares[1] == pytest.approx(0.2, abs=0.05)


class FromFile(ImageDataModule):
    """Images of a file that lies outside of data_dir."""

    def __init__(self, path: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.path = path

    def load(self):
        x = np.load(self.path)
        return (x[:80], np.arange(80) % 2), (x[80:], np.arange(20) % 2)


def test_a_file_that_an_argument_names_makes_new_data_when_it_changes(tmp_path):
    means = []
    for low in (0, 100):
        x = np.random.default_rng(0).integers(low, low + 50, (100, 1, 8, 8 + low // 100), dtype=np.uint8)
        np.save(tmp_path / "x.npy", x)
        data = FromFile(str(tmp_path / "x.npy"), cache_dir=str(tmp_path / "cache"), batch_size=8)
        data.setup("fit")
        means += data.statistics["mean"]
    assert means[1] > means[0] + 0.3


def test_a_constant_channel_has_a_deviation_of_1(make):
    def color(sets):
        for name in ("x", "x_test"):
            sets[name] = np.concatenate([sets[name], sets[name] // 2], 1)
        sets["x"][:, 1] = 77

    data = make(color)
    assert data.statistics["std"][1] == 1
    assert data.standardize(data.splits["test"].x / 255).abs().max() < 3


def test_damaged_files_of_a_set_are_one_line(data_dir, tmp_path):
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for file in (data_dir / "MNIST/raw").glob("*ubyte"):
        (raw / file.name).write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"MNIST in .* -> "):
        ImageDataModule("MNIST", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache")).setup("fit")


def test_labels_that_were_swapped_are_refused_on_resume(tmp_path):
    class Swapped(ImageDataModule):
        def __init__(self, swap: bool = False, **kwargs):
            super().__init__(**kwargs)
            self.swap = swap

        def load(self):
            (x, targets), test = digits_of_sklearn()
            targets = targets.copy()
            if self.swap:
                first, other = 0, int((targets != targets[0]).argmax())
                targets[[first, other]] = targets[[other, first]]
            return (x, targets), test

    one, other = (Swapped(swap, cache_dir=str(tmp_path)) for swap in (False, True))
    one.setup("fit")
    other.setup("fit")
    with pytest.raises(DataError, match="the data has changed since this run began: content"):
        other.load_state_dict(one.state_dict())


def in_training(data, epoch=3, number=5, rank=0):
    progress = SimpleNamespace(current=SimpleNamespace(completed=number))
    fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    where = {"current_epoch": epoch, "global_rank": rank, "fit_loop": fit_loop}
    data.trainer = SimpleNamespace(training=True, precision_plugin=Precision(), **where)
    return data


@pytest.mark.parametrize("mix", [v2.MixUp, v2.CutMix, partial(v2.MixUp, alpha=0.4)])
def test_the_mix_of_a_batch_depends_on_seed_epoch_number_and_device_alone(tmp_path, mix):
    """So a run that goes on mixes as one that was never stopped, and what else draws random numbers is left alone."""
    data = ImageDataModule(cache_dir=str(tmp_path), mix=mix, seed=7)
    data.setup("fit")
    batch = data.splits["train"][torch.arange(64)]
    torch.manual_seed(5)
    state, whole = torch.get_rng_state(), in_training(data).on_after_batch_transfer(batch, 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again = data.on_after_batch_transfer(batch, 0)
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    for where in ({"epoch": 4}, {"number": 6}, {"rank": 1}):
        assert not torch.equal(in_training(data, **where).on_after_batch_transfer(batch, 0)["x"], whole["x"])
    data.seed = 8
    assert not torch.equal(in_training(data).on_after_batch_transfer(batch, 0)["x"], whole["x"])


def test_mixing_gives_soft_targets_and_is_for_training_alone(tmp_path):
    data, plain = (ImageDataModule(cache_dir=str(tmp_path), mix=mix) for mix in (partial(v2.CutMix, alpha=9.0), None))
    for module in (data, plain):
        module.setup("fit")
    batch = data.splits["train"][torch.arange(64)]
    assert data.on_after_batch_transfer(batch, 0).keys() == {"x", "targets", "index"}
    mixed, alone = (in_training(module).on_after_batch_transfer(batch, 0) for module in (data, plain))
    assert torch.equal(mixed["targets"], batch["targets"])
    soft, x, partners = mixed["soft_targets"], alone["x"], alone["x"].roll(1, 0)
    assert soft.shape == (64, 10)
    assert torch.allclose(soft.sum(1), torch.ones(64))
    foreign = (mixed["x"] != x).any(0)
    assert torch.equal(torch.where(foreign, partners, x), mixed["x"])
    different = batch["targets"] != batch["targets"].roll(1, 0)
    shares = soft.gather(1, batch["targets"][:, None])[:, 0][different]
    assert torch.allclose(shares, shares[:1])
    assert 0 < shares[0] < 1
    assert alone.keys() == {"x", "targets", "index"}


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        (v2.Resize, "unexpected keyword argument 'num_classes' -> take torchvision.transforms.v2.MixUp or CutMix"),
        (partial(v2.MixUp, alpha=0.0), "data.mix: Expected parameter concentration .* -> take"),
    ],
)
def test_what_does_not_mix_is_refused(tmp_path, mix, message):
    with pytest.raises(ConfigError, match=message):
        ImageDataModule(cache_dir=str(tmp_path), mix=mix).setup("fit")


@pytest.mark.parametrize(("name", "moves"), [("one", [0]), ("mirrored", [0]), ("shifted", [0, 1, -1])])
def test_views_in_evaluation(name, moves):
    x = torch.rand(2, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    views = ImageDataModule(views=name).views(x)
    framed = torch.nn.functional.pad(x, [1] * 4, mode="replicate")
    expected = [framed[..., 1 - d : 7 - d, 1 - d : 6 - d] for d in moves]
    expected += [view.flip(-1) for view in expected] if name != "one" else []
    assert len(views) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(views, expected, strict=True))


def test_a_network_of_colour_images_has_a_hint():
    data = ImageDataModule()
    assert data.hint("expected input[2, 1, 8, 8] to have 3 channels") == "if it wants colour images: data.channels 3"
    assert data.hint("mat1 and mat2 shapes cannot be multiplied") == ""


def test_what_is_the_data_are_arguments():
    assert set(ImageDataModule.sources) <= inspect.signature(ImageDataModule).parameters.keys()


def test_a_data_set_whose_load_is_misspelt_is_told_that_it_takes_the_digits(tmp_path, capsys):
    class Misspelt(ImageDataModule):
        def laod(self):
            raise AssertionError("nothing calls this")

    Misspelt(cache_dir=str(tmp_path)).prepare_data()
    assert "Misspelt has no load() and" in capsys.readouterr().out
