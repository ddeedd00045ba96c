"""What users have, predicted: by the command and from Python, which give the same."""

import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from conftest import (
    SMALL_CNN,  # kind: images
    needs_bfloat16,  # kind: tables
)
from processes import ROOT

from src import load_run
from src.run.errors import ConfigError, DataError

pytestmark = pytest.mark.in_fork
QUICK = ["--trainer.max_epochs", "2", "--pictures.enabled", "false"]


def command(folder, *args, code: int = 0) -> str:
    """In a process of its own: this one uses polars, and cannot be forked."""
    args = [sys.executable, "-m", "src.predict", "--run_dir", folder, *args]
    done = subprocess.run([str(a) for a in args], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


# kind: images
def digits(count: int) -> np.ndarray:
    from src.data.images.datasets import digits

    return digits()[1][0][:count, 0]  # uint8 [N, 8, 8], of test


def test_an_array_files_and_the_split_give_the_same(trained_once, tmp_path):
    from PIL import Image

    folder, x = trained_once(SMALL_CNN), digits(20)
    for i, image in enumerate(x):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    model = load_run(folder)
    command(folder, "--output", tmp_path / "split.parquet")
    names = [f"probability_{k}" for k in range(10)]
    wanted = pl.read_parquet(tmp_path / "split.parquet")[:20].select(names).to_numpy()
    for raw in (x, x[..., None], [*x], tmp_path, [str(p) for p in sorted(tmp_path.glob("*.png"))]):
        assert model.predict(raw).select(names).to_numpy() == pytest.approx(wanted, abs=1e-6)
    command(folder, tmp_path, "--output", tmp_path / "p.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row["file"][-6:] for row in rows] == [f"{i:02}.png" for i in range(20)]
    assert np.array([[row[name] for name in names] for row in rows]) == pytest.approx(wanted, abs=1e-6)


def test_other_sizes_and_top_k(trained_once):
    model, x = load_run(trained_once(SMALL_CNN)), digits(5)
    large = x.repeat(4, 1).repeat(4, 2)
    found = model.predict(large, top_k=2)
    assert found.columns == ["id", "prediction", "top_1", "top_1_probability", "top_2", "top_2_probability"]
    assert found["prediction"].to_list() == found["top_1"].to_list() == model.predict(x)["prediction"].to_list()
    assert (found["top_1_probability"] >= found["top_2_probability"]).all()
    assert model.classes == [str(k) for k in range(10)]
    assert "'image_size': (8, 8)" in repr(model)
    for raw, words in (
        (x / 255.0, "is no image"),
        ("nowhere.png", "nowhere.png: unreadable"),
        (pl.DataFrame({"a": [1]}), ""),
    ):
        with pytest.raises(DataError, match=words):
            model.predict(raw)
    with pytest.raises(ConfigError, match="top_k: 0"):
        model.predict(x, top_k=0)


def test_what_cannot_be_read_is_named_and_the_rest_is_written(trained_once, tmp_path):
    from PIL import Image

    folder = trained_once(SMALL_CNN)
    (tmp_path / "new").mkdir()
    for i, image in enumerate(digits(3)):
        Image.fromarray(image).save(tmp_path / f"new/{i}.png")
    (tmp_path / "new/bad.png").write_text("no image")
    out = command(folder, tmp_path / "new", "--output", tmp_path / "p.csv", code=3)
    assert "3 predictions" in out
    assert "new/bad.png: unreadable: not an image of" in out
    assert out.count("bad.png") == 1
    assert "error: 1 of 4 are unusable -> " in out
    assert len(pl.read_csv(tmp_path / "p.csv")) == 3
    with pytest.warns(UserWarning, match="bad.png"):
        assert len(load_run(folder).predict(tmp_path / "new")) == 3
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    out = command(folder, tmp_path / "table.csv", "--output", tmp_path / "none.csv", code=3)
    assert len(out.splitlines()) == 1
    assert not list(tmp_path.glob("none*"))


# end
# kind: tables
TABLE = ["--config", "configs/experiment/breast_cancer_mlp.yaml", *QUICK]


def peak_mib(args: list) -> float:
    """Of a process of its own, as the kernel measures it."""
    code = f"import resource, sys; from src.predict import main; code = main({[*map(str, args)]!r}); "
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def test_a_table_takes_as_much_memory_as_a_tenth_of_it(trained_once, tmp_path):
    from src.data.tables.datasets import dataset

    folder, frame = trained_once(TABLE), dataset("breast_cancer").drop("target")
    peaks = {}
    for times in (200, 2000):
        pl.concat([frame] * times).write_parquet(tmp_path / f"{times}.parquet")
        peaks[times] = peak_mib(["--run_dir", folder, tmp_path / f"{times}.parquet", "--output", tmp_path / "p.csv"])
    assert len(pl.read_csv(tmp_path / "p.csv", columns=["row"])) == 2000 * len(frame)
    assert peaks[2000] - peaks[200] < 60, peaks


def test_rows_of_a_frame_a_file_and_standard_input(trained_once, tmp_path):
    from src.data.tables.datasets import dataset

    folder, frame = trained_once(TABLE), dataset("breast_cancer").drop("target")[:50]
    model = load_run(folder)
    found = model.predict(frame)
    assert found.columns == ["row", "prediction", "probability_benign", "probability_malignant"]
    assert model.predict(frame.to_arrow()).equals(found)
    assert model.predict({name: frame[name].to_list() for name in reversed(frame.columns)}).equals(found)
    frame.write_csv(tmp_path / "new.csv")
    assert model.predict(tmp_path / "new.csv").drop("row").equals(found.drop("row"))
    command = [sys.executable, "-m", "src.predict", "--run_dir", folder, "-", "--output", "-"]
    with open(tmp_path / "new.csv") as stdin:
        done = subprocess.run(command, cwd=ROOT, stdin=stdin, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("50 predictions: standard output\n")
    assert pl.read_csv(done.stdout.encode())["prediction"].to_list() == found["prediction"].to_list()
    for raw, words in (
        (frame.drop("mean_area"), "there is no column mean_area"),
        (frame[["mean_radius", "mean_area"]], "there is no column .*, .* -> add .*; there are mean_radius, "),
        (5, "is no table"),
        ("no.csv", "no.csv"),
    ):
        with pytest.raises(DataError, match=words):
            model.predict(raw)


@needs_bfloat16
def test_keys_keep_their_names_and_bfloat16_is_bfloat16_in_both(trained_once, tmp_path):
    import torch
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    names = np.array(["benign", "malignant"])[y]
    rows = [",".join([f"k{i}", *map(str, x[i]), names[i]]) for i in range(len(x))]
    header = ",".join(["target_id", *(f"c{k}" for k in range(30)), "target"])
    (tmp_path / "train.csv").write_text("\n".join([header, *rows]) + "\n")
    new = [line.rpartition(",")[0] for line in [header, *rows[:50]]]
    (tmp_path / "new.csv").write_text("\n".join(new) + "\n")
    flags = ["--data.file", tmp_path / "train.csv", "--data.target", "target", "--data.row_key", "target_id"]
    folder = trained_once([*TABLE, "--data.dataset", "null", *flags, "--trainer.precision", "bf16-true"])
    model = load_run(folder)
    found = model.predict(tmp_path / "new.csv")
    assert found.columns == ["target_id", "prediction", "probability_benign", "probability_malignant"]
    command(folder, tmp_path / "new.csv", "--output", tmp_path / "p.parquet")
    assert pl.read_parquet(tmp_path / "p.parquet").equals(found)
    assert model.dtype == torch.float32


# end
# kind: series
def test_the_next_steps_of_a_series(trained_once, tmp_path):
    from src.data.series.seasons import seasons

    flags = ["--trainer.max_epochs", "1", "--model.loss", "quantile"]
    model = load_run(trained_once(["--config", "configs/experiment/seasons_linear.yaml", *QUICK, *flags]))
    frame, window = seasons(), model.facts["window"]
    found = model.predict(frame)
    assert len(found) == model.facts["horizon"] == 24
    assert found["time"][0] > str(frame["time"].max()).replace(" ", "T")
    assert (found["prediction_north_0.1"] <= found["prediction_north_0.9"]).all()
    assert set(model.units) == {"north", "south", "east"}
    frame.write_csv(tmp_path / "past.csv")
    assert model.predict(tmp_path / "past.csv").equals(found)
    assert model.predict(frame.tail(window)).columns == found.columns
    with pytest.raises(DataError, match="too short: 20 steps, a window takes 168"):
        model.predict(frame.tail(20))


# end
# kind: text
def test_texts(trained_once, tmp_path):
    import torch

    small = ["--model.network.dim", "24", "--model.network.depth", "1", "--data.seq_len", "32"]
    small += [
        "--trainer.max_steps",
        "5",
        "--trainer.limit_val_batches",
        "1",
        "--trainer.limit_test_batches",
        "1",
        "--pictures.enabled",
        "false",
    ]
    folder = trained_once(["--config", "configs/experiment/text_gpt.yaml", *small])
    model, text = load_run(folder), "The quick brown fox jumps over the lazy dog, again and again."
    found = model.predict([text, "a"], top_k=2)
    tokens = torch.tensor(list(text.encode()))[None]
    logits = torch.cat([model(part) for part in tokens.split(32, 1)], 1)[0, :-1]  # in windows, as in evaluation
    assert found["tokens"].to_list() == [len(text) - 1, 0]
    loss = torch.nn.functional.cross_entropy(logits, tokens[0, 1:]).item()
    assert found["loss"][0] == pytest.approx(loss, rel=1e-4)
    chances = model(tokens[:, -32:])[0, -1].softmax(0)
    assert found["top_1_probability"][0] == pytest.approx(chances.max().item(), rel=1e-4)
    (tmp_path / "story.txt").write_text(text)
    out = command(folder, tmp_path / "story.txt", "--output", "-")
    assert f"{len(text) - 1}," in out
    command(folder, "--text", text, "--output", tmp_path / "p.parquet")
    assert pl.read_parquet(tmp_path / "p.parquet")["loss"][0] == pytest.approx(loss, rel=1e-4)
    with pytest.raises(DataError, match="is no text"):
        model.predict(5)


# end
