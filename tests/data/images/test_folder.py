"""Image folders as people have them: of all kinds, dirty, through config alone."""

import csv
import json
import os

import numpy as np
import pytest
import torch
from conftest import DIGITS
from PIL import Image

import src.evaluate
import src.predict
from src.data.images import folder
from src.data.images.module import ImageDataModule
from src.data.report import Cleaning
from src.run.errors import DataError

RNG = np.random.default_rng(0)


def noise(height=12, width=12, low=0, high=256) -> Image.Image:
    return Image.fromarray(RNG.integers(low, high, (height, width, 3), dtype=np.uint8))


def fill(root, splits=("train", "test"), classes=("cat", "dog"), count=12, **how):
    for split in splits:
        for k, name in enumerate(classes):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                noise(**{"low": 50 * k, "high": 50 * k + 150} | how).save(root / split / name / f"{i:02}.png")
    return root


@pytest.fixture
def make(tmp_path):
    def data(root, **options):
        module = ImageDataModule(
            "folder", data_dir=str(root), cache_dir=str(tmp_path / "cache"), **{"batch_size": 8} | options
        )
        module.setup("fit")
        return module

    return data


def test_splits_that_are_there_are_kept(make, tmp_path):
    data = make(fill(tmp_path / "a", ("train", "val", "test")))
    assert data.num_samples == {"train": 24, "val": 24, "test": 24}
    assert data.facts == {"num_classes": 2, "in_channels": 3, "image_size": (12, 12)}
    assert data.statistics["class_names"] == ["cat", "dog"]
    image = np.asarray(Image.open(tmp_path / "a/train/dog/03.png")).transpose(2, 0, 1)
    i = data.sample_names("train").index("train/dog/03.png")
    assert np.array_equal(data.splits["train"].x[i].numpy(), image)
    assert data.splits["train"].targets[i] == 1


def test_classes_alone_are_split(make, tmp_path):
    data = make(fill(tmp_path / "a", [""], count=50), test_frac=0.2, val_frac=0.1)
    assert data.num_samples == {"train": 72, "val": 8, "test": 20}
    names = [set(data.sample_names(split)) for split in ("train", "val", "test")]
    assert len(set.union(*names)) == 100
    assert data.report["test"]["per_class"] == [10, 10]


def test_names_of_splits(make, tmp_path):
    root = fill(tmp_path / "pets", ("Training", "VALID", "testing"))
    assert make(root).num_samples == {"train": 24, "val": 24, "test": 24}


def test_every_kind_of_image_becomes_rgb(tmp_path):
    square = np.zeros((8, 8, 3), np.uint8)
    square[:4] = (200, 100, 50)
    rgb, grey = Image.fromarray(square), Image.fromarray(square).convert("L")
    clear = Image.fromarray(np.dstack([square, np.full((8, 8), 255, np.uint8)]))
    clear.putpixel((0, 7), (9, 9, 9, 0))
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned clockwise
    rgb.save(tmp_path / "a.png")
    rgb.save(tmp_path / "b.BMP")
    rgb.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "c.gif", save_all=True, append_images=[rgb])
    rgb.convert("CMYK").save(tmp_path / "d.tiff")
    rgb.save(tmp_path / "e.webp", lossless=True)
    clear.save(tmp_path / "f.png")
    rgb.rotate(90).save(tmp_path / "g.png", exif=turned)
    sixteen.save(tmp_path / "h.png")
    (tmp_path / "j.pgm").write_bytes(b"P5 8 8 65535\n" + np.asarray(sixteen).astype(">u2").tobytes())
    grey.convert("1", dither=Image.Dither.NONE).save(tmp_path / "i.png")
    images = {p.name[0]: folder.decode(p, (3, 8, 8)) for p in tmp_path.iterdir()}
    expected = square.transpose(2, 0, 1)
    for name in "abceg":
        assert np.array_equal(images[name], expected), name
    assert np.abs(images["d"].astype(int) - expected).max() <= 1
    assert images["f"][:, 7, 0].tolist() == [255, 255, 255]
    assert np.array_equal(images["f"][:, :7], expected[:, :7])
    for name in "hj":
        assert np.array_equal(images[name], np.stack([np.asarray(grey)] * 3))
        assert folder.header(next(tmp_path.glob(f"{name}.*"))) == ((8, 8), True)
    assert set(np.unique(images["i"])) <= {0, 255}
    assert folder.decode(tmp_path / "h.png", (1, 8, 8)).shape == (1, 8, 8)


def test_a_set_of_grey_images_has_one_channel(make, tmp_path):
    root = fill(tmp_path / "a")
    for path in root.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    assert make(root).facts["in_channels"] == 1
    noise().save(root / "train/cat/00.png")
    assert make(root).facts["in_channels"] == 3


def test_sizes(make, tmp_path):
    root = fill(tmp_path / "a")
    noise(10, 40).save(root / "train/cat/wide.jpg")
    data = make(root)
    assert data.facts["image_size"] == (12, 12)
    assert "images of 2 sizes are made 12x12" in data.report["note"]
    assert make(root, image_size=(6, 9)).facts["image_size"] == (6, 9)
    assert folder.common_shape([((300, 300), False)] * 2, None, Cleaning()) == (3, 224, 224)
    half = Image.new("RGB", (40, 10), "red")
    half.paste("blue", (15, 0, 25, 10))
    half.save(tmp_path / "half.png")
    assert (folder.decode(tmp_path / "half.png", (3, 10, 10))[2] == 255).all()  # the centre


def dirty(root):
    """A folder with one of each trouble; what the report must say of it."""
    fill(root, count=30)
    (root / "train/bird").mkdir()
    (root / "train/dog/.DS_Store").write_bytes(b"x")
    (root / "train/dog/notes.txt").write_text("x")
    whole = (root / "train/cat/00.png").read_bytes()
    (root / "train/cat/empty.jpg").touch()
    (root / "train/cat/cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "train/cat/page.jpg").write_text("<html>")
    (root / "train/cat/zz.png").write_bytes(whole)
    (root / "train/dog/more").mkdir()
    Image.open(root / "test/dog/05.png").save(root / "train/dog/more/leak.BMP")
    noise().save(root / "train/cat/either.png")
    Image.open(root / "train/cat/either.png").save(root / "train/dog/either.webp", lossless=True)
    return {
        "train/cat/empty.jpg": "unreadable",
        "train/cat/cut.png": "unreadable",
        "train/cat/page.jpg": "unreadable",
        "train/cat/zz.png": "duplicate",
        "train/dog/more/leak.BMP": "also in test",
        "train/cat/either.png": "two labels",
        "train/dog/either.webp": "two labels",
    }


def test_a_dirty_folder_is_cleaned_and_reported(make, tmp_path):
    expected = dirty(tmp_path / "a")
    data = make(tmp_path / "a", invalid="skip")
    assert {r["file"]: r["reason"] for r in data.report["removed"]} == expected
    note = f"2 files are hidden or of another kind by their names, as {tmp_path}/a/train/dog/.DS_Store"
    assert data.report["note"] == note
    assert data.statistics["class_names"] == ["cat", "dog"]
    assert data.num_samples["train"] + data.num_samples["val"] == 60
    assert data.report["data/missing_frac"] == 3 / 127  # without .DS_Store and notes.txt
    held_out = {x.numpy().tobytes() for s in ("val", "test") for x in data.splits[s].x}
    assert not held_out & {x.numpy().tobytes() for x in data.splits["train"].x}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: (r / "train/cat/x.jpg").touch(),
            r"/train/cat/x.jpg: unreadable: it is empty -> replace",
        ),
        (
            lambda r: (r / "train/cat/x.jpg").write_text("no"),
            r"x.jpg: unreadable: not an image of .* -> .*data.invalid skip",
        ),
        (lambda r: noise().save(r / "train/x.jpg"), "train/x.jpg: in no class folder -> move it"),
        (
            lambda r: fill(r, ["test"], ["emu"]),
            "test/emu/00.png: class not in train: emu; 11 more of 60 .* -> take it out, .* leave them out with",
        ),
        (lambda r: (r / "train/cat/x.heic").touch(), r"x.heic: unreadable: it is empty"),
        (
            lambda r: (r / "train/cat/x.svg").write_text("<svg/>"),
            r"x.svg: unreadable: not an image of JPEG, PNG, .* ->",
        ),
        (lambda r: (r / "train/cat/x").write_text("no"), r"cat/x: unreadable: not an image of"),
        (lambda r: [p.rename(p.with_suffix(".xyz")) for p in r.glob("*/cat/*")], r"one class only \(dog\)"),
        (lambda r: Image.fromarray(np.full((9, 9), 70_000, np.int32)).save(r / "train/cat/x.tif"), "x.tif: .* 32-bit"),
        (lambda r: (r / "other").mkdir(), "other: stands beside train"),
        (lambda r: (r / "train").rename(r / "tests"), "there is test but no train"),
        (lambda r: (r / "train/cat").rename(r / "cat"), "cat: stands beside train"),
        (lambda r: [p.unlink() for p in r.rglob("*.png")], "no image is in it, nor in a class folder there"),
        (lambda r: [p.unlink() for p in r.glob("test/*/*.png")], "the test split has no image"),
        (lambda r: [p.unlink() for p in r.glob("*/cat/*.png")], r"one class only \(dog\)"),
        (lambda r: [p.write_text("no") for p in r.glob("train/cat/*.png")], "00.png: unreadable: not an image"),
    ],
)
def test_folders_that_cannot_be_used_are_refused(make, tmp_path, change, message):
    root = fill(tmp_path / "a")
    change(root)
    with pytest.raises(DataError, match=message):
        make(root)


def test_images_whose_names_have_no_ending_are_read(make, tmp_path):
    root = fill(tmp_path / "a")
    for path in root.rglob("*.png"):
        path.rename(path.with_suffix(""))
    (root / "README").touch()
    (root / "train/LICENSE").touch()
    assert make(root).num_samples["test"] == 24


def test_a_decompression_bomb_is_not_decoded(make, tmp_path):
    root = fill(tmp_path / "a")
    Image.new("1", (40_000, 40_000)).save(root / "train/cat/bomb.png")
    with pytest.raises(DataError, match=r"bomb.png: unreadable: Image size \(1600000000 pixels\)"):
        make(root)


def test_a_folder_that_is_not_there(make, tmp_path):
    with pytest.raises(DataError, match=r"data.data_dir: .*nowhere is no folder"):
        make(tmp_path / "nowhere")


def test_a_changed_folder_is_packed_again(make, tmp_path):
    root = fill(tmp_path / "a", ("train", "val", "test"))
    assert make(root).num_samples["train"] == 24
    noise().save(root / "train/cat/new.png")
    assert make(root).num_samples["train"] == 25


def test_a_class_of_three_images_is_in_each_split(make, tmp_path):
    root = fill(tmp_path / "a", [""], count=60)
    fill(root, [""], ["emu"], count=3)
    data = make(root)
    assert [data.report[split]["per_class"][2] for split in ("train", "val", "test")] == [1, 1, 1]


def test_links_are_followed_and_loops_are_not(tmp_path):
    root = fill(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/train").symlink_to(root / "train")
    (tmp_path / "b/train/cat/loop").symlink_to(root / "train")
    listed = folder.list_files(tmp_path / "b", Cleaning())
    assert len(listed["train"]) == 24


def test_config_alone_trains_on_a_dirty_folder(run, tmp_path):
    expected = dirty(tmp_path / "a")
    flags = ["--data.dataset", "folder", "--data.data_dir", tmp_path / "a", "--data.cache_dir", tmp_path / "cache"]
    small = ["--model.network.widths", "[8,8]", "--trainer.max_epochs", "3", "--data.batch_size", "16"]
    out = run([*DIGITS, *flags, *small, "--run_dir", tmp_path / "bad"], code=3)
    assert out.count("error: ") == 1
    assert "train/cat/empty.jpg: unreadable: it is empty; 1 more of 127 cannot be used -> " in out
    bad = json.loads((tmp_path / "bad/data_report.json").read_text())["removed"]
    assert {r["file"] for r in bad if r["reason"] == "unreadable"} == {"train/cat/empty.jpg", "train/cat/page.jpg"}
    out = run([*DIGITS, *flags, *small, "--data.invalid", "skip", "--run_dir", tmp_path / "run"])
    assert "left out  7 of 127: " in out
    assert "shift     test against train: mean " in out
    report = json.loads((tmp_path / "run/data_report.json").read_text())
    assert {r["file"] for r in report["removed"]} == set(expected)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["data/missing_frac"] == report["data/missing_frac"] > 0

    run(["--run_dir", tmp_path / "run"], command=src.predict.main)
    with open(tmp_path / "run/predictions.csv") as f:
        rows = list(csv.DictReader(f))
    assert [row["target"] for row in rows] == [row["file"].split("/")[1] for row in rows]
    assert {row["prediction"] for row in rows} <= {"cat", "dog"}
    assert abs(float(rows[0]["probability_cat"]) + float(rows[0]["probability_dog"]) - 1) < 1e-4


def test_evaluation_applies_the_checkpoints_statistics(run, tmp_path):
    """Other images: darker ones, with one more class in train than the model knows, or one fewer."""
    flags = ["--data.cache_dir", tmp_path / "cache", "--data.dataset", "folder", "--data.batch_size", "8"]
    root = fill(tmp_path / "a", classes=("cat", "cow", "dog"))
    small = ["--model.network.widths", "[8,8]", "--trainer.max_epochs", "2", "--data.data_dir", root]
    run([*DIGITS, *flags, *small, "--run_dir", tmp_path / "run"])
    other = fill(tmp_path / "b", classes=("cow", "dog"))
    args = ["--run_dir", tmp_path / "run", "--data.data_dir", other]
    run(args, command=src.predict.main)
    with open(tmp_path / "run/predictions_b.csv") as f:
        rows = list(csv.DictReader(f))
    assert [row["target"] for row in rows] == ["cow"] * 12 + ["dog"] * 12

    from src import load_run

    model = load_run(tmp_path / "run")
    other_data = ImageDataModule("folder", data_dir=str(other), cache_dir=str(tmp_path / "cache"), batch_size=8)
    other_data.setup("test")
    assert other_data.statistics["mean"] != model.data.statistics["mean"]
    assert model.data.statistics["class_names"] == ["cat", "cow", "dog"]
    with torch.no_grad():
        p = model(model.data.standardize(other_data.splits["test"].x.float() / 255)).softmax(1)
    assert [float(row["probability_cow"]) for row in rows] == pytest.approx(p[:, 1].tolist(), abs=1e-5)

    fill(other, classes=("emu",))
    assert "emu/00.png: class not in train: emu; 23 more of 72" in run(args, code=3, command=src.evaluate.main)
    fill(tmp_path / "c", classes=("cow", "dog"), height=20, width=20)
    flags = [*args[:2], "--data.data_dir", tmp_path / "c"]
    assert "--data.image_size [12,12]" in run(
        [*flags, "--data.image_size", "[20,20]"], code=3, command=src.evaluate.main
    )
    assert "Other data than the model was trained on: 24 samples." in run(flags, command=src.evaluate.main)


def test_images_without_classes_are_predicted(run, tmp_path):
    fill(tmp_path / "a", [""], ("cat", "cow", "dog"), 30)
    flags = ["--data.cache_dir", tmp_path / "cache", "--data.dataset", "folder", "--data.batch_size", "8"]
    small = ["--model.network.widths", "[8,8]", "--trainer.max_epochs", "2", "--data.data_dir", tmp_path / "a"]
    run([*DIGITS, *flags, *small, "--run_dir", tmp_path / "run"])
    (tmp_path / "new").mkdir()
    for path in (tmp_path / "a").glob("*/0[0-4].png"):
        path.rename(tmp_path / "new" / f"{path.parent.name}{path.name}")
    (tmp_path / "new/notes.txt").write_text("none of them")
    (tmp_path / "new/more").mkdir()
    (tmp_path / "new/cat00.png").rename(tmp_path / "new/more/cat00.png")  # a folder that is no class of the model's
    (tmp_path / "new/more/cut.png").write_text("no")
    flags = ["--run_dir", tmp_path / "run", "--data.data_dir", tmp_path / "new", "--data.invalid", "skip"]
    out = run(flags, command=src.predict.main)
    assert "left out  1 of 16: 1 unreadable (data_report_new.json)" in out
    with open(tmp_path / "run/predictions_new.csv") as f:
        rows = list(csv.DictReader(f))
    assert [row["file"] for row in rows] == sorted(
        str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*0*.png")
    )
    assert {row["target"] for row in rows} == {""}
    from src import load_run

    model = load_run(tmp_path / "run")
    images = [torch.from_numpy(np.array(Image.open(tmp_path / "new" / row["file"]))) for row in rows]
    x = torch.stack(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        p = model(model.data.standardize(x)).softmax(1)
    assert [float(row["probability_cow"]) for row in rows] == pytest.approx(p[:, 1].tolist(), abs=1e-5)
    one = tmp_path / "new" / rows[-1]["file"]
    run(["--run_dir", tmp_path / "run", "--data.data_dir", one], command=src.predict.main)
    with open(tmp_path / f"run/predictions_{one.stem}.csv") as f:
        (row,) = csv.DictReader(f)
    assert row["file"] == one.name
    assert float(row["probability_cow"]) == pytest.approx(float(rows[-1]["probability_cow"]), abs=1e-6)
    out = run(flags, code=3, command=src.evaluate.main)
    assert "new: nothing says the classes of these images -> name folders so, or take python -m src.predict" in out


@pytest.mark.parametrize(
    ("splits", "classes", "held"),
    [
        ([""], ("cat", "dog"), 24),
        (["test"], ("cat", "dog"), 24),
        ([""], ("dog",), 12),
        (["train", "val"], ("dog",), 12),
    ],
)
def test_a_trained_model_takes_all_of_other_data(make, tmp_path, splits, classes, held, capsys):
    fitted = make(fill(tmp_path / "a", [""], ("ant", "cat", "dog"), 30)).state_dict()
    other = ImageDataModule("folder", data_dir=str(fill(tmp_path / "b", splits, classes)), cache_dir=str(tmp_path))
    other.fitted = fitted
    other.setup("test")
    assert other.num_samples["test"] == held
    names = [other.statistics["class_names"][t] for t in other.splits["test"].targets]
    assert names == [name.split("/")[-2] for name in other.sample_names("test")]
    assert other.statistics == fitted["statistics"]
    assert f"Other data than the model was trained on: {held} samples." in capsys.readouterr().out


def test_a_trained_model_knows_its_own_data_wherever_it_lies(make, tmp_path, capsys):
    trained = make(fill(tmp_path / "a", [""], count=30))
    (tmp_path / "a").rename(tmp_path / "b")
    moved = ImageDataModule("folder", data_dir=str(tmp_path / "b"), cache_dir=str(tmp_path / "cache"))
    moved.fitted = trained.state_dict()
    moved.setup("test")
    assert moved.num_samples == trained.num_samples
    assert moved.sample_names("test") == trained.sample_names("test")
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [("cut.png", "cut.png: unreadable: not an image"), ("notes.txt", "notes.txt: no image is in it")],
)
def test_one_file_that_is_no_image(make, tmp_path, name, message):
    fitted = make(fill(tmp_path / "a", [""], count=30)).state_dict()
    (tmp_path / name).write_text("no")
    other = ImageDataModule("folder", data_dir=str(tmp_path / name), cache_dir=str(tmp_path))
    with pytest.raises(DataError, match=f"data.data_dir: .*{name} is no folder"):
        other.setup("fit")
    other.fitted = fitted
    with pytest.raises(DataError, match=message):
        other.setup("predict")


def test_new_images_in_test_do_not_move_those_of_the_other_splits(make, tmp_path):
    trained = make(fill(tmp_path / "a", ("train", "test")))
    noise().save(tmp_path / "a/test/cat/new.png")
    data = ImageDataModule("folder", data_dir=str(tmp_path / "a"), cache_dir=str(tmp_path / "cache"), batch_size=8)
    data.fitted = trained.state_dict()
    data.setup("test")
    assert data.num_samples == trained.num_samples | {"test": 25}
    assert data.sample_names("val") == trained.sample_names("val")


def test_other_data_is_taken_on_without_the_commands(make, tmp_path):
    """As Lightning does that restores a data module from a checkpoint."""
    state = make(fill(tmp_path / "a", [""], ("ant", "cat", "dog"), 30)).state_dict()
    other = make(fill(tmp_path / "b", [""], ("cat", "dog"), 30))
    other.adopt(state)
    assert other.num_samples["test"] == 60
    assert other.facts == state["facts"]
    assert set(other.splits["test"].targets.tolist()) == {1, 2}


def test_names_that_are_not_utf8(make, tmp_path):
    root = fill(tmp_path / "a")
    (root / "train/cat/00.png").rename(os.fsdecode(os.fsencode(root) + b"/train/cat/caf\xe9.jfif"))
    assert any("caf" in name for split in ("train", "val") for name in make(root).sample_names(split))


def test_two_folders_of_one_split_are_refused(make, tmp_path):
    root = fill(tmp_path / "a", ("train", "val", "valid", "test"))
    with pytest.raises(DataError, match=r"valid: .*/val is val already -> put all"):
        make(root)
