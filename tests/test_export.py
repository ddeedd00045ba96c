"""Exports of all kinds, used in a process that has neither this project nor its folder: what `predict` says."""

import json
import re
import subprocess
import sys
import urllib.request
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from conftest import ROOT

import src.export
import src.exporting.graph
import src.networks
from src import load_run

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.in_fork
SMOKE = ["--config", "configs/trainer/smoke.yaml", "--pictures.enabled", "false", "--trainer.limit_train_batches", "10"]
TINY = ["--config", "configs/experiment/digits_cnn.yaml", *SMOKE]  # kind: images
BOTH = ("onnx", "torch_export")
NETWORKS = {
    # kind: images
    "digits_cnn": BOTH, "digits_lstm": BOTH[:1], "digits_vit": BOTH[:1], "digits_mlp": BOTH[:1],
    # end
    # kind: tables
    "diabetes_mlp": BOTH[:1], "wine_mlp": BOTH[:1],
    # end
    # kind: series
    "seasons_linear": BOTH,
    # end
    # kind: text
    "text_gpt": BOTH,
    # end
}  # fmt: skip
FLAGS = {
    "seasons_linear": ["--data.calendar", "[hour,weekday]", "--model.loss", "quantile"],
    "text_gpt": ["--model.network.dim", "32", "--model.network.num_heads", "2", "--model.network.depth", "1"],
}
CLEAN = """
import json, sys, numpy as np
folder, root = sys.argv[1:]
assert root not in sys.path
about = json.load(open(folder + "/model.json"))
given = dict(np.load(folder + "/../raw.npz"))
if about["format"] == "onnx":
    import onnxruntime
    session = onnxruntime.InferenceSession(folder + "/model.onnx")
    run = lambda raw: dict(zip([o.name for o in session.get_outputs()], session.run(None, raw)))
else:
    import torch
    model = torch.export.load(folder + "/model.pt2").module()
    for name, one in about["inputs"].items():
        if "codes" in one:
            given[name] = np.array([one["codes"].get(word, 0) for word in given[name]])
    run = lambda raw: {k: v.numpy() for k, v in model({k: torch.tensor(v) for k, v in raw.items()}).items()}
found, first = run(given), run({name: values[:1] for name, values in given.items()})
assert set(found) == set(about["outputs"]), found.keys()
assert all(np.allclose(found[name][:1], first[name], atol=1e-5) for name in found)
assert "src" not in sys.modules and "lightning" not in sys.modules
np.savez(folder + "/../found.npz", **found)
"""


def used(folder, raw: dict) -> dict[str, np.ndarray]:
    np.savez(folder / "../raw.npz", **raw)
    clean = [sys.executable, "-I", "-c", CLEAN, folder, ROOT]
    done = subprocess.run(clean, cwd=folder.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(np.load(folder / "../found.npz"))


# kind: images
def images() -> np.ndarray:
    from src.data.images.datasets import digits

    return digits()[1][0][:7]  # uint8 [7, 1, 8, 8], of test


def check_images(model, ask):
    wanted, found = model.predict(images()[:, 0]), ask({"images": images()})
    names = [f"probability_{name}" for name in model.classes]
    assert found["probabilities"] == pytest.approx(wanted[names].to_numpy(), abs=1e-5)
    assert [model.classes[k] for k in found["prediction"]] == wanted["prediction"].to_list()


# end
def check_table(model, ask):
    frame = model.data.load()[:50]
    wanted, found = model.predict(frame.drop("target")), ask({n: frame[n].to_numpy() for n in model.data.inputs()})
    if model.classes:
        names = [f"probability_{name}" for name in model.classes]
        assert found["probabilities"] == pytest.approx(wanted[names].to_numpy(), abs=1e-5)
    else:
        assert found["prediction"] == pytest.approx(wanted["prediction"].to_numpy(), abs=1e-3)  # of hundreds


def check_series(model, ask):
    frame, facts = model.data.load(), model.facts
    wanted, names = model.predict(frame), ["north", "south", "east"]
    clock = frame.upsample("time", every="1h").tail(facts["window"])
    values = np.full((1, facts["window"] + facts["horizon"], 3), np.nan)
    values[0, : facts["window"]] = clock[names].to_numpy()
    assert np.isnan(values[0, 1 : facts["window"]]).any()
    time = clock["time"].to_list() + [datetime.fromisoformat(t) for t in wanted["time"]]
    calendar = np.array([[[t.hour, t.weekday()] for t in time]], float)
    found = ask({"values": values, "calendar": calendar})
    assert set(found) == {name for name in wanted.columns if name != "time"}
    for name, forecast in found.items():
        assert forecast[0] == pytest.approx(wanted[name].to_numpy(), abs=1e-4)
    window = facts["window"]
    rows = frame.upsample("time", every="1h")
    hole = (rows["east"].is_null() & rows["east"].shift(1).is_not_null()).arg_true()  # windows that begin in one
    begin = next(at for at in hole.to_list()[::-1] if at + window <= len(rows) and at > window)
    cut = rows[begin : begin + window]
    time = pl.datetime_range(
        cut["time"][0], interval="1h", eager=True, end=cut["time"][0] + timedelta(hours=window + facts["horizon"] - 1)
    )
    calendar = np.array([[[t.hour, t.weekday()] for t in time]], float)
    for since, before in ((0, rows["east"][begin - 1]), (begin, np.nan)):  # with rows before the window, and without
        values[0, :window] = cut[names].to_numpy()
        values[0, 0, 2] = before
        wanted, found = model.predict(rows[since : begin + window]), ask({"values": values, "calendar": calendar})
        assert found["prediction_east"][0] == pytest.approx(wanted["prediction_east"].to_numpy(), abs=1e-4)


# kind: text
def check_text(model, ask):
    from src.data.text.tokens import encode

    text, size = "a statement of", model.facts["seq_len"]
    tokens = encode(model.data.statistics["tokenizer"], text)
    found = ask({"tokens": np.pad(tokens, (0, size - len(tokens)))[None]})["probabilities"][0, len(tokens) - 1]
    wanted = model.predict(text, top_k=3)
    best = np.argsort(-found)[:3]
    for k in range(3):
        assert wanted[f"top_{k + 1}_probability"][0] == pytest.approx(found[best[k]], abs=1e-5)


# end
CHECKS = {
    "digits": check_images,  # kind: images
    "seasons": check_series,
    "text": check_text,  # kind: text
}


@pytest.fixture(scope="module")
def exported(request, trained_once):
    """The run of an experiment, trained before a test is forked."""
    name = request.param
    return name, trained_once(["--config", f"configs/experiment/{name}.yaml", *SMOKE, *FLAGS.get(name, [])])


@pytest.mark.parametrize("exported", NETWORKS, indirect=True)
def test_raw_input_gives_what_predict_says_without_this_project(exported, run, tmp_path):
    name, folder = exported
    for kind in NETWORKS[name]:
        output = run(["--run_dir", folder, "--format", kind, "--output", tmp_path / kind], command=src.export.main)
        assert re.search(r"differs by \S+ at most from the model, on \d+ samples of test", output)
        assert "Warning" not in output
    for kind in NETWORKS[name]:
        CHECKS.get(name.split("_")[0], check_table)(load_run(folder), lambda raw, kind=kind: used(tmp_path / kind, raw))
        assert str(ROOT) not in (tmp_path / kind / src.export.NAMES[kind]).read_text("latin-1")


# kind: tables
def test_words_dates_and_holes_of_a_table(run, tmp_path):
    rng, file = np.random.default_rng(0), tmp_path / "flats.csv"
    lines = ["place,day,size,target"]
    places, days, sizes = rng.choice(["north", "south", "", "True"], 240), rng.permutation(240), rng.normal(50, 9, 240)
    for place, day, size in zip(places, days, sizes, strict=True):
        price = size + 30 * (place == "north") + 5 * rng.normal()
        lines.append(f"{place},{np.datetime64('2024-01-01') + day},{'' if day % 7 == 0 else f'{size} m2'},{price}")
    file.write_text("\n".join(lines) + "\n")
    args = ["--config", "configs/experiment/diabetes_mlp.yaml", *SMOKE, "--data.dataset", "null", "--data.file", file]
    run([*args, "--run_dir", tmp_path / "run", "--data.scale", "quantile"])
    for kind in BOTH:
        run(["--run_dir", tmp_path / "run", "--format", kind, "--output", tmp_path / kind], command=src.export.main)
        about = json.loads((tmp_path / kind / "model.json").read_text())["inputs"]
        assert about["size"]["meaning"] == "in m2; NaN where it is missing"
        assert about["day"]["meaning"] == "in seconds since 1970; NaN where it is missing"
        assert about["place"]["dtype"] == ("string" if kind == "onnx" else "int64")
        assert (words := [*about["place"]["codes"]])[: words.index("north")] == sorted(words[: words.index("north")])
    new = tmp_path / "new.csv"
    new.write_text("place,day,size\nnorth,2024-03-01,50\n,2025-01-01,\nelsewhere,,33.5\nTrue,2024-07-05,20\n")
    raw = {"place": np.array(["north", "", "elsewhere", "True"]), "size": np.array([50, np.nan, 33.5, 20])}
    days = np.array(["2024-03-01", "2025-01-01", "NaT", "2024-07-05"], "datetime64[s]")
    raw["day"] = np.where(np.isnat(days), np.nan, days.astype(float))
    wanted = load_run(tmp_path / "run").predict(new)["prediction"].to_numpy()
    for kind in BOTH:
        assert used(tmp_path / kind, raw)["prediction"] == pytest.approx(wanted, abs=1e-4)


def test_a_column_that_is_called_like_an_answer(run, tmp_path):
    rng, file = np.random.default_rng(0), tmp_path / "named.csv"
    lines = [f"{x},{2 * x + rng.normal()}" for x in rng.normal(size=240)]
    file.write_text("\n".join(["prediction,target", *lines]) + "\n")
    args = ["--config", "configs/experiment/diabetes_mlp.yaml", *SMOKE, "--data.dataset", "null", "--data.file", file]
    run([*args, "--run_dir", tmp_path / "run"])
    output = run(["--run_dir", tmp_path / "run"], command=src.export.main, code=2)
    assert "error: prediction: an input and an answer -> rename the column" in output
    run(["--run_dir", tmp_path / "run", "--format", "torch_export"], command=src.export.main)


# end
# kind: images
@pytest.mark.parametrize("exported", ["digits_cnn"], indirect=True)
def test_the_server_of_the_docs_answers(exported, run, tmp_path):
    from PIL import Image

    folder, out = exported[1], tmp_path / "out"
    output = run(["--run_dir", folder, "--output", out, "--int8"], command=src.export.main)
    before, after = json.loads((out / "model.json").read_text())["int8"]
    assert (out / "model_int8.onnx").stat().st_size < (out / "model.onnx").stat().st_size / 2
    assert before["accuracy"] - 0.05 < after["accuracy"] <= 1
    assert before["accuracy"] > 0.3
    assert ("; slower than float32" in output) == (after["batch_sec"] > before["batch_sec"])
    (code,) = re.findall(r"```python\n(# serve.py.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL)
    plain = Image.fromarray(images()[0, 0].repeat(4, 0).repeat(5, 1))
    plain.save(tmp_path / "digit.png")
    (turn := Image.Exif())[0x0112] = 6
    plain.resize((500, 320), Image.Resampling.BICUBIC).save(tmp_path / "turned.jpg", exif=turn)
    clear = plain.convert("RGBA")
    clear.putalpha(Image.fromarray(np.pad(np.full((16, 40), 255, np.uint8), ((0, 16), (0, 0)))))
    clear.save(tmp_path / "clear.png")
    Image.fromarray(np.asarray(plain).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    files = [tmp_path / name for name in ("digit.png", "turned.jpg", "clear.png", "deep.png")]
    server = subprocess.Popen([sys.executable, "-I", "-c", code, out, "0"], stdout=subprocess.PIPE, text=True)
    try:
        port = server.stdout.readline().split(":")[-1].strip()
        posted = [urllib.request.urlopen(f"http://127.0.0.1:{port}", file.read_bytes()) for file in files]
        answers = [json.load(reply) for reply in posted]
    finally:
        server.kill()
        server.communicate()
    model = load_run(folder)
    for file, answer in zip(files, answers, strict=True):
        wanted = model.predict(file).row(0, named=True)
        assert answer["prediction"] == wanted["prediction"]
        for name, probability in answer["probabilities"].items():
            assert probability == pytest.approx(wanted[f"probability_{name}"], abs=1e-5), file.name
    assert answers[1]["probabilities"] != answers[0]["probabilities"] != answers[2]["probabilities"]


@pytest.mark.parametrize("exported", ["digits_cnn"], indirect=True)
def test_exported_weights_are_begun_with(exported, run, tmp_path):
    folder = exported[1]
    run(["--run_dir", folder, "--format", "safetensors", "--output", tmp_path / "out"], command=src.export.main)
    flags = [
        "--model.init_from",
        tmp_path / "out/weights.safetensors",
        "--model.optimizer.lr",
        "0",
        "--seed_everything",
        "1",
    ]
    run([*TINY, *flags, "--run_dir", tmp_path / "again"])
    before, after = (dict(load_run(path).network.named_parameters()) for path in (folder, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert all(bool((before[name] == after[name]).all()) for name in before)


COUNTS = """
from torch import Tensor, nn

class Counting(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1)) * (len(x) / len(x))
"""


def test_what_is_refused_leaves_nothing(trained_once, copied, start, run, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def refused(code, words, *args, run_dir):
        output = run(["--run_dir", run_dir, "--output", out, *args], code=code, command=src.export.main)
        line = output.strip().splitlines()[-1]
        assert re.match(f"error: .*{words}.*( -> |choose)", line), output
        assert not out.exists()
        assert not list(tmp_path.glob(".out*"))

    folder = trained_once(TINY)
    refused(2, "--int8: not in torch_export", "--format", "torch_export", "--int8", run_dir=folder)
    refused(2, "tensorrt", "--format", "tensorrt", run_dir=folder)
    with monkeypatch.context() as patched:
        patched.setattr(src.exporting.graph, "MOST", 2**12)
        refused(2, "over the 2 GiB that an ONNX file holds", run_dir=folder)
    refused(75, "cannot be written", "--format", "safetensors", "--output", "/proc/out", run_dir=folder)
    refused(4, "no run", run_dir=tmp_path / "none")
    damaged = copied(TINY)
    with open(damaged / "checkpoints/best.ckpt", "r+b") as file:
        file.seek(2000)
        file.write(b"damage")
    refused(4, "best.ckpt", run_dir=damaged)
    unfinished = start([*TINY, "--run_dir", tmp_path / "cut"])
    unfinished.wait_for(tmp_path / "cut/config.yaml")
    unfinished.kill()
    unfinished.wait()
    refused(4, "no best checkpoint is there: the run was cut short", run_dir=tmp_path / "cut")
    (tmp_path / "counting.py").write_text(COUNTS)
    monkeypatch.setattr(src.networks, "__path__", [*src.networks.__path__, str(tmp_path)])
    flags = ["--model.network", "src.networks.counting.Counting", "--run_dir", tmp_path / "counts"]
    run([*TINY, *flags])
    refused(2, "Counting does not go into onnx: ", run_dir=tmp_path / "counts")
    run(["--config", "tests/small.yaml", *SMOKE, "--run_dir", tmp_path / "waves"])
    refused(2, "WavesDataModule does not say what is raw input", run_dir=tmp_path / "waves")


# end
