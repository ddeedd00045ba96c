"""Each check of the data has a fault that it finds, on data that is healthy without it."""

import json
import math
import time
from functools import partial

import numpy as np
import pytest
import torch

from src.data.loader import Arrays
from src.data.module import DataModule
from src.data.waves import WavesDataModule
from src.diagnosis.data import examine

pytestmark = pytest.mark.in_fork  # where threads of other tests are not


def ready(data: DataModule) -> DataModule:
    data.prepare_data()
    data.setup("fit")
    return data


def waves() -> DataModule:
    return ready(WavesDataModule())


def numbers(n: int = 1000, seed: int = 0) -> DataModule:
    """Ten columns, and a target that depends on the first three, with noise."""
    data, draw = DataModule(), np.random.default_rng(seed)
    for split, size in (("train", n), ("val", n // 4), ("test", n // 4)):
        x = draw.normal(size=(size, 10))
        y = x[:, 0] + x[:, 1] - x[:, 2] + draw.normal(size=size)
        put(data, split, torch.from_numpy(x).float(), torch.from_numpy(y).float())
    return data


def put(data: DataModule, split: str, x: torch.Tensor, y: torch.Tensor) -> DataModule:
    data.splits[split] = Arrays(x, y)
    return data


def changed(data: DataModule, x=lambda x: x, y=lambda y: y, split: str = "train") -> DataModule:
    return put(data, split, x(data.splits[split].x.clone()), y(data.splits[split].targets.clone()))


def flipped(data: DataModule, share: float, pair: bool = False) -> tuple[DataModule, set[int]]:
    """Labels of a share of train are others, any or the next one; and which."""
    draw, y = np.random.default_rng(0), data.splits["train"].targets.clone()
    classes, rows = int(y.max()) + 1, draw.permutation(len(y))[: int(share * len(y))]
    y[rows] = (y[rows] + (1 if pair else torch.from_numpy(draw.integers(1, classes, len(rows))))) % classes
    return put(data, "train", data.splits["train"].x, y), set(rows.tolist())


def found(data: DataModule, loss: str = "") -> dict:
    out = examine(data, 60, loss)
    assert out.unknown == []
    assert all(one.source for one in out.findings)
    json.dumps([one.evidence for one in out.findings])
    return {one.check: one for one in out.findings}


def only(data: DataModule, check: str):
    findings = found(data)
    assert [*findings] == [check]
    return findings[check]


HEALTHY = {"waves": waves, "numbers": numbers}
# kind: images


def digits() -> DataModule:
    from src.data.images.module import ImageDataModule

    return ready(ImageDataModule(dataset="digits"))


HEALTHY["digits"] = digits
# end
# kind: tables


def table(dataset: str) -> DataModule:
    from src.data.tables.module import TableDataModule

    return ready(TableDataModule(dataset=dataset, scale="standard"))


HEALTHY |= {name: lambda name=name: table(name) for name in ("wine", "breast_cancer", "diabetes")}
# end
# kind: series


def seasons() -> DataModule:
    from src.data.series.module import SeriesDataModule

    return ready(SeriesDataModule(dataset="seasons", window=168, horizon=24))


HEALTHY["seasons"] = seasons
# end
# kind: text


def language() -> DataModule:
    from src.data.text.module import TextDataModule

    return ready(TextDataModule(tokenizer="bytes", seq_len=128))


HEALTHY["language"] = language
# end


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_data_has_no_findings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = examine(HEALTHY[name](), 60)
    assert (out.findings, out.unknown) == ([], [])
    assert not out.measured or out.measured["trivial_loss"] > out.measured["linear_loss"]
    assert bool(out.measured) == (name != "seasons")  # which has many targets


def test_hard_data_is_no_noise():
    """Waves whose classes are hardly told apart, but rightly labelled: models say otherwise of half of them."""
    data = ready(WavesDataModule(noise=4.0))
    out = examine(data, 60)
    assert out.measured["linear_score"] < 0.6
    assert out.findings == []


@pytest.mark.parametrize(("share", "pair"), [(0.1, False), (0.2, False), (0.4, False), (0.2, True)])
def test_wrong_labels_are_named(share, pair):
    data, wrong = flipped(waves(), share, pair)
    one = only(data, "label_noise")
    named = set(one.evidence["suspicious"])
    assert len(named & wrong) > 0.95 * len(named)
    assert len(named & wrong) > 0.9 * len(wrong)
    assert one.evidence["share"] == pytest.approx(share, abs=0.04)
    sure, index, given, likely = one.evidence["worst"][0]
    assert data.splits["train"].targets[index] == given != likely
    assert waves().splits["train"].targets[index] == likely
    assert 0.2 < sure <= 1


def test_without_the_wrong_labels_it_is_healthy(tmp_path):
    data, _ = flipped(waves(), 0.2)
    file = tmp_path / "without.txt"
    file.write_text("\n".join(map(str, found(data)["label_noise"].evidence["suspicious"])))
    mended = WavesDataModule(without=str(file))
    mended.splits = data.splits
    assert found(mended) == {}


def test_wrong_labels_are_found_in_all_of_train():
    """Models are fitted on 3,000 samples; those that they have not seen are looked at, too."""
    data, draw = DataModule(), torch.Generator().manual_seed(0)
    for split, size in (("train", 6000), ("val", 500)):
        y = torch.randint(4, (size,), generator=draw)
        put(data, split, 4 * torch.nn.functional.one_hot(y, 8) + torch.randn(size, 8, generator=draw), y)
    data, wrong = flipped(data, 0.2)
    named = set(only(data, "label_noise").evidence["suspicious"])
    assert len(named & wrong) > 0.8 * len(wrong)


# kind: images
@pytest.mark.parametrize(("share", "pair"), [(0.2, False), (0.2, True), (0.4, False)])
def test_wrong_labels_of_images(share, pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, wrong = flipped(digits(), share, pair)
    named = set(only(data, "label_noise").evidence["suspicious"])
    assert len(named & wrong) > 0.9 * len(named)
    assert len(named & wrong) > 0.7 * len(wrong)


# end
# kind: tables
def test_wrong_labels_of_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("wine", "breast_cancer"):
        data, wrong = flipped(table(name), 0.2)
        named = set(only(data, "label_noise").evidence["suspicious"])
        assert len(named & wrong) > 0.8 * len(named) > 0.6 * len(wrong)


# end
def test_numbers_that_are_not_finite():
    def broken(x):
        x[::10, 3] = torch.nan
        return x

    assert only(changed(waves(), broken), "not_finite").evidence["share"] == pytest.approx(0.1 / 64, rel=0.01)
    assert only(changed(numbers(), y=lambda y: y / 0), "not_finite").evidence["share"] == 1


class Scaled(WavesDataModule):
    """Waves in another unit, which an option of its own mends."""

    def __init__(self, standardize: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.standardize = standardize

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return {**batch, "x": batch["x"] if self.standardize else 100 + 1000 * batch["x"]}


def test_inputs_that_are_not_scaled():
    one = only(ready(Scaled(standardize=False)), "input_scale")
    assert one.change == {"data": {"init_args": {"standardize": True}}}
    assert found(ready(Scaled())) == {}
    one = only(changed(changed(numbers(), lambda x: 100 * x), lambda x: 100 * x, split="val"), "input_scale")
    assert one.change == {}
    assert "standardize" in one.todo
    assert one.certain
    assert found(both(numbers(), lambda x: x / 20))["input_scale"].certain is False
    assert found(both(numbers(), lambda x: x * torch.logspace(-3, 3, 10)))["input_scale"].certain


def both(data: DataModule, x) -> DataModule:
    return changed(changed(data, x), x, split="val")


def test_val_that_is_in_train():
    data = waves()
    train, val = data.splits["train"], data.splits["val"]
    put(data, "val", torch.cat([val.x, train.x[:50]]), torch.cat([val.targets, train.targets[:50]]))
    one = only(data, "val_in_train")
    assert one.evidence["indices"] == [*range(50)]
    assert one.evidence["share"] == pytest.approx(50 / (len(val) + 50))


def test_rows_of_few_values_that_are_equal_by_chance():
    data, draw = DataModule(), torch.Generator().manual_seed(0)
    for split, size in (("train", 2000), ("val", 500)):
        x = torch.randint(4, (size, 6), generator=draw).float()
        put(data, split, x, (x.sum(1) > 9).long())
    assert found(data) == {}


def test_copies_in_train():
    few = torch.arange(60)
    data = waves()
    data = changed(data, lambda x: x[few.repeat(10)], lambda y: y[few.repeat(10)])
    one = only(data, "duplicates")
    assert one.evidence["different"] == 60
    assert one.evidence["share"] == pytest.approx(0.9)
    assert len(one.evidence["indices"]) == 540
    first = torch.cat([torch.arange(950), torch.arange(50)])  # a twentieth are copies: too few to matter
    assert found(changed(numbers(), lambda x: x[first], lambda y: y[first])) == {}


def test_equal_samples_with_other_labels():
    data = waves()
    x, y = data.splits["train"].x, data.splits["train"].targets
    data = put(data, "train", torch.cat([x, x[:40]]), torch.cat([y, (y[:40] + 1) % 3]))
    one = found(data)["conflicting_labels"]
    assert one.evidence["suspicious"] == [*range(40), *range(len(x), len(x) + 40)]
    assert one.certain
    assert found(put(data, "train", torch.cat([x, x[:40]]), torch.cat([y, y[:40]]))) == {}  # the same labels
    data, twice = numbers(), torch.arange(1000) % 950  # measured twice, with some noise
    assert found(changed(data, lambda x: x[twice], lambda y: y[twice] + torch.randn(1000) / 10)) == {}


def leaking(data: DataModule, noise: float = 0.05, column: int = 4) -> DataModule:
    for split, arrays in data.splits.items():
        x, y = arrays.x.clone(), arrays.targets.float()
        draw = torch.randn(len(y), generator=torch.Generator().manual_seed(0))
        x[:, column] = (y - y.mean()) / y.std() + noise * draw
        put(data, split, x, arrays.targets)
    return data


def test_target_among_the_inputs():
    one = only(leaking(numbers()), "target_leak")
    assert (one.evidence["column"], one.change) == (4, {})
    assert "leave it out" in one.todo
    assert one.evidence["alone"] > 0.95 > 0.8 > one.evidence["others"]
    assert found(leaking(numbers(), noise=0.5)) == {}  # it tells much, but not all
    data = leaking(leaking(numbers()), column=5)  # as a sensor that is there twice: no number tells it alone
    assert found(data) == {}


def test_one_number_that_is_all_there_is():
    data = numbers()
    for split in data.splits:
        data = put(data, split, data.splits[split].x[:, :1], data.splits[split].x[:, 0] * 2)
    assert found(data) == {}


# kind: tables
@pytest.mark.parametrize("name", ["breast_cancer", "diabetes"])
def test_target_among_the_columns(name, tmp_path, monkeypatch):
    """The change leaves that column out, besides those that are."""
    from src.data.tables.module import TableDataModule

    monkeypatch.chdir(tmp_path)
    dropped = {"diabetes": "sex", "breast_cancer": "mean_texture"}[name]
    data = ready(TableDataModule(dataset=name, scale="standard", drop=[dropped]))
    one = only(leaking(data, column=2), "target_leak")
    column = one.evidence["name"]
    assert one.change == {"data": {"init_args": {"drop": [dropped, column]}}}
    left = ready(TableDataModule(dataset=name, scale="standard", **one.change["data"]["init_args"]))
    names = [feature["column"] for feature in data.statistics["features"]]
    assert names[2] == column
    assert [feature["column"] for feature in left.statistics["features"]] == [*names[:2], *names[3:]]
    assert found(left) == {}


# end
def test_val_that_is_otherwise():
    assert only(changed(waves(), lambda x: 1.7 * x, split="val"), "drift").evidence["auc"] > 0.9
    assert only(changed(numbers(), lambda x: x + 1, split="val"), "drift").evidence["drift"] > 0.3


def sorted_order(targets):
    order = targets.argsort()
    return lambda n, seed, epoch: lambda start, stop: order[start:stop]


def test_classes_in_order():
    for make in (waves, numbers, partial(numbers, n=120)):
        data = make()
        data.epoch_order = sorted_order(data.splits["train"].targets)
        assert "shuffle" in only(data, "not_shuffled").todo


def test_some_of_a_class_in_a_row_are_no_order():
    """As samplers of metric learning draw them."""
    data = waves()
    order = data.splits["train"].targets.argsort()[:1292].reshape(-1, 4)
    order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(0))].flatten()
    data.epoch_order = lambda n, seed, epoch: lambda start, stop: order[start:stop]
    assert found(data) == {}


def test_val_has_the_targets_of_other_samples():
    """What train tells is learned, and is wrong in val."""
    mixed = lambda y: y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]  # noqa: E731
    data = changed(waves(), y=mixed, split="val")
    assert "of val's" in only(data, "labels_independent").text


def test_targets_are_classes_by_the_loss():
    whole = changed(changed(numbers(), y=lambda y: (10 * y).long()), y=lambda y: (10 * y).long(), split="val")
    out = examine(whole, 60, "mse_loss")
    assert (out.findings, out.unknown, out.measured["is_class"]) == ([], [], False)
    assert out.measured["linear_score"] == pytest.approx(0.75, abs=0.1)  # R2
    one = lambda y: (y > 0).float()[:, None]  # noqa: E731
    out = examine(changed(changed(numbers(), y=one), y=one, split="val"), 60, "binary_cross_entropy_with_logits")
    assert (out.findings, out.unknown, out.measured["is_class"]) == ([], [], True)
    assert out.measured["linear_score"] > 0.7


def test_a_number_that_the_target_follows_but_does_not_copy():
    data = numbers()
    for split in data.splits:
        data = put(data, split, data.splits[split].x, torch.sin(3 * data.splits[split].x[:, 0]))
    assert found(data) == {}


def test_targets_of_other_samples():
    shuffled = lambda y: y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]  # noqa: E731
    for make in (waves, numbers):
        assert only(changed(make(), y=shuffled), "labels_independent").evidence["best"] < 3


def test_rare_classes():
    data, draw = DataModule(), torch.Generator().manual_seed(0)
    for split, size in (("train", 2000), ("val", 500)):
        y = (torch.rand(size, generator=draw) < 0.1).long()
        put(data, split, torch.randn(size, 5, generator=draw) + 0.6 * y[:, None], y)
    one = only(data, "imbalance")
    assert one.change == {"model": {"init_args": {"class_weights": "balanced"}}}
    clear = changed(data, lambda x: x + 5 * data.splits["train"].targets[:, None])
    clear = changed(clear, lambda x: x + 5 * data.splits["val"].targets[:, None], split="val")
    assert found(clear) == {}  # rare, but found
    even = clear.splits["val"].targets.clone()
    rare = clear.splits["train"].x[clear.splits["train"].targets == 1][:200]
    x, y = (
        torch.cat(pair) for pair in ((clear.splits["val"].x, rare + 0.001), (even, torch.ones(200, dtype=torch.long)))
    )
    assert found(put(clear, "val", x, y))["imbalance"].evidence["apart_from_val"] > 0.25


class Slow(Arrays):
    def __getitem__(self, index):
        time.sleep(0.5)
        return super().__getitem__(index)


class Odd(Arrays):
    def __getitem__(self, index):
        raise OSError("the disk is gone")


def test_what_cannot_be_looked_at_is_unknown():
    data = waves()
    data.splits["train"] = Odd(data.splits["train"].x, data.splits["train"].targets)
    assert examine(data, 10).unknown == [("read", "OSError: the disk is gone")]
    data = waves()
    data.splits["train"] = Slow(data.splits["train"].x, data.splits["train"].targets)
    begun, out = time.monotonic(), examine(data, 0.5)
    assert time.monotonic() - begun < 5
    assert out.unknown
    assert all("no time was left" in why for _, why in out.unknown)


def test_classes_that_overlap_are_no_noise():
    """Clusters that lie on each other: models agree, and are often wrong, as nothing tells the labels."""
    data, draw = DataModule(), np.random.default_rng(1)
    centers = draw.uniform(-10, 10, (6, 2))
    for split, size in (("train", 2000), ("val", 500)):
        y = draw.integers(0, 6, size)
        x = (centers[y] + draw.normal(scale=3, size=(size, 2))) / 6
        put(data, split, torch.from_numpy(x).float(), torch.from_numpy(y))
    assert found(data) == {}


def test_samples_of_loaders():
    """Of any module's loaders the samples are there as they come, and nothing else."""
    from types import SimpleNamespace

    data = waves()
    order = data.splits["train"].targets.argsort()
    loaded = SimpleNamespace(splits=dict(data.splits), epoch_order=None, on_after_batch_transfer=lambda batch, _: batch)
    assert found(loaded) == {}
    loaded.splits["train"] = Arrays(data.splits["train"].x[order], data.splits["train"].targets[order])
    assert only(loaded, "not_shuffled").change == {}


@pytest.mark.parametrize(("of_val", "checks"), [(lambda x: x, []), (lambda x: 0.3 * x + 0.4, ["drift"])])
def test_loaders_that_prepare_val_otherwise(of_val, checks):
    """Of loaders, which may augment train alone, only another scale is told."""
    data = changed(waves(), x=of_val, split="val")
    data.epoch_order = None
    assert [*found(data, "cross_entropy")] == checks


def test_samples_that_are_standardized_over_their_own_columns():
    scales = torch.tensor([0.1, 20.0, 3.0, 1.0, 5.0, 0.5, 2.0, 1.0, 10.0, 1.0])

    def each(x):
        x = x + scales
        return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)

    data = changed(changed(numbers(), x=each), x=each, split="val")
    assert "normalized_rows" in found(data)


def test_classes_that_train_has_none_of():
    data = waves()
    first = data.splits["train"].targets < 3
    put(data, "train", data.splits["train"].x[first], data.splits["train"].targets[first])
    assert 0.5 < found(data)["missing_classes"].evidence["share"] < 0.9


def test_classes_that_val_names_otherwise():
    finding = only(changed(waves(), y=lambda y: (y + 1) % 10, split="val"), "labels_differ")
    assert finding.evidence["traded"] > 0.8
    assert finding.evidence["as_is"] < 0.2


def test_few_samples_of_train_are_no_drift():
    """Many columns, scaled by a few samples: by that alone val would be unlike them."""
    draw, data = np.random.default_rng(0), DataModule()
    x = torch.from_numpy(draw.normal(size=(440, 30)) @ draw.normal(size=(30, 30))).float()
    x, y = (x - x[:40].mean(0)) / x[:40].std(0), (x[:, 0] > 0).long()
    put(put(data, "train", x[:40], y[:40]), "val", x[40:], y[40:])
    data.epoch_order = waves().epoch_order
    assert "drift" not in found(data)


def test_names_of_classes_that_a_loss_takes_for_numbers():
    """Of data whose labels rise with the inputs, whole numbers are meant."""
    assert found(waves(), "mse_loss")["wrong_loss"].evidence["named"] > 0.8
    assert "wrong_loss" not in found(waves(), "cross_entropy")
    counts = changed(numbers(), y=lambda y: (2 * y).round().clamp(-6, 6))
    assert "wrong_loss" not in found(changed(counts, y=lambda y: (2 * y).round().clamp(-6, 6), split="val"), "mse_loss")


def test_what_tokens_cost_is_counted():
    """Two tokens as often: ln 2 by their frequencies; where one follows the other, half of that chance is left."""
    x = torch.arange(101).repeat(40, 1) % 2
    data = numbers()
    for split in data.splits:
        put(data, split, x[:, :-1], x[:, 1:])
    measured = examine(data, 60).measured
    assert measured["trivial_loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert measured["linear_loss"] == pytest.approx(-math.log(0.75), abs=1e-3)
    for split in data.splits:
        put(data, split, x[:, :-1], torch.where(torch.arange(100) < 99, -100, x[:, 1:]))  # all but one are left out
    assert examine(data, 60).measured["linear_loss"] < 0.02
