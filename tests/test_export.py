"""Exports of all kinds, used in a process that has neither this project nor its folder."""

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT

import src.export

pytest.importorskip("onnxruntime")
SMOKE = ["--config", "configs/trainer/smoke.yaml", "--pictures.enabled", "false", "--trainer.limit_train_batches", "10"]
NETWORKS = {
    # kind: images
    "digits_cnn": [], "digits_lstm": [], "digits_vit": [], "digits_mlp": [],
    # end
    # kind: tables
    "diabetes_mlp": [], "wine_mlp": [],
    # end
    # kind: series
    "seasons_linear": [],
    # end
    # kind: text
    "text_gpt": ["--model.network.dim", "32", "--model.network.num_heads", "2", "--model.network.depth", "1"],
    # end
}  # fmt: skip
CLEAN = """
import json, sys, numpy as np
assert not [path for path in sys.path if sys.argv[2] in path]
folder, kind = sys.argv[1], sys.argv[3]
about = json.load(open(folder + "/model.json"))
rng = np.random.default_rng(0)
for count in (1, 7):
    raw = {}
    for name, one in about["inputs"].items():
        size = [{"N": count, "T": 5}.get(n, n) for n in one["shape"]]
        raw[name] = rng.integers(0, one.get("below", 256), size).astype(one["dtype"])
    if kind == "onnx":
        import onnxruntime
        session = onnxruntime.InferenceSession(folder + "/model.onnx")
        found = dict(zip([o.name for o in session.get_outputs()], session.run(None, raw)))
    else:
        import torch
        model = torch.export.load(folder + "/model.pt2").module()
        found = {k: v.detach().numpy() for k, v in model({k: torch.tensor(v) for k, v in raw.items()}).items()}
    assert set(found) == set(about["outputs"]), found.keys()
    assert all(len(v) == count and np.isfinite(v).all() for v in found.values())
    if "probabilities" in found:
        assert abs(found["probabilities"].sum(-1) - 1).max() < 1e-5
assert "src" not in sys.modules and "lightning" not in sys.modules
"""


def used(folder, kind, tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", "-c", CLEAN, folder, ROOT, kind], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["onnx", "torch_export"])
@pytest.mark.parametrize("name", NETWORKS)
def test_raw_input_goes_in_without_this_project(name, kind, trained_once, run, tmp_path):
    folder = trained_once(["--config", f"configs/experiment/{name}.yaml", *SMOKE, *NETWORKS[name]])
    output = run(["--run_dir", folder, "--format", kind, "--output", tmp_path / "out"], command=src.export.main)
    apart = float(re.search(r"differs by (\S+) at most from the model, on \d+ samples of test", output)[1])
    assert apart <= 1e-5
    used(tmp_path / "out", kind, tmp_path)
    assert str(ROOT) not in (tmp_path / "out" / ("model.onnx" if kind == "onnx" else "model.pt2")).read_text("latin-1")


# kind: images
TINY = ["--config", "configs/experiment/digits_cnn.yaml", *SMOKE]


def test_the_server_of_the_docs_answers(trained_once, run, tmp_path):
    run(["--run_dir", trained_once(TINY), "--output", tmp_path / "out", "--int8"], command=src.export.main)
    about = json.loads((tmp_path / "out/model.json").read_text())
    assert (tmp_path / "out/model_int8.onnx").stat().st_size < (tmp_path / "out/model.onnx").stat().st_size
    assert 0 <= about["int8"]["after"]["accuracy"] <= 1
    (code,) = re.findall(r"```python\n(# serve.py.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL)
    (tmp_path / "serve.py").write_text(code)
    call = """
import io, runpy, sys, numpy as np
from PIL import Image
sys.argv = ["serve.py", sys.argv[1]]
file = io.BytesIO()
Image.fromarray(np.zeros((30, 40), np.uint8)).save(file, "png")
answer = runpy.run_path("serve.py")["answer"](file.getvalue())
assert abs(sum(answer["probabilities"].values()) - 1) < 1e-5 and answer["prediction"] in answer["probabilities"]
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", call, tmp_path / "out"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_what_is_refused_leaves_nothing(trained_once, copied, run, tmp_path):
    folder, out = trained_once(TINY), tmp_path / "out"

    def refused(code, *args, run_dir=folder):
        output = run(["--run_dir", run_dir, "--output", out, *args], code=code, command=src.export.main)
        assert output.strip().splitlines()[-1].startswith("error: ")
        assert not out.exists()
        assert not list(tmp_path.glob(".out*"))

    refused(2, "--format", "torch_export", "--int8")
    refused(2, "--format", "tensorrt")
    damaged = copied(TINY)
    with open(damaged / "checkpoints/best.ckpt", "r+b") as file:
        file.seek(2000)
        file.write(b"damage")
    refused(4, run_dir=damaged)
    refused(4, run_dir=tmp_path / "none")
    output = run(["--run_dir", folder, "--format", "safetensors", "--output", "/proc/out"], 75, command=src.export.main)
    assert "cannot be written" in output


# end
