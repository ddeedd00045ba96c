"""Every wrong config is one line that names the place, and the nearest right name; nothing is imported for it."""

import re
import subprocess
import sys

import pytest
import yaml
from conftest import (
    DIGITS,  # kind: images
    ROOT,
    SMALL,
)

from src.config import source
from src.config.request import command_parser, read_request
from src.config.strict_yaml import read_text
from src.run.errors import ConfigError

EVIL = "evil_module.Evil"
BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)

FILES = {
    "duplicate key": ("trainer: {max_epochs: 1}\ntrainer: {max_epochs: 2}\n", r"bad.yaml:2: .*trainer"),
    "nested duplicate": ("trainer:\n  max_epochs: 1\n  max_epochs: 2\n", r"bad.yaml:3: .*trainer.max_epochs"),
    "unknown group": ("trainers:\n", r"bad.yaml:1: .*trainers.*trainer"),
    "unknown trainer key": ("trainer:\n  max_epoch: 3\n", r"bad.yaml:2: .*trainer.max_epoch.*max_epochs"),
    "unknown data key": ("data:\n  init_args:\n    batchsize: 3\n", r"bad.yaml:3: .*data.batchsize.*batch_size"),
    "unknown network key": (
        "model: {init_args: {network: {init_args: {width: [1]}}}}\n",
        r"bad.yaml:1: .*model.network.width.*widths",
    ),
    "unknown section key": ("checkpoints: {moniter: val/acc}\n", r"checkpoints.moniter.*monitor"),
    "key outside init_args": ("model: {label_smoothin: 0.1}\n", r"model.label_smoothin"),
    "no such class of ours": ("model: {class_path: src.models.classification.Clasification}\n", r"Classification"),
    "bare class name": ("model: {class_path: Classification}\n", r"src.models.classification.Classification"),
    "empty": ("", r"bad.yaml"),
    "a list": ("- 1\n- 2\n", r"bad.yaml.*mapping"),
    "a word": ("hello\n", r"bad.yaml.*mapping"),
    "not YAML": ("trainer: [1, 2\n", r"bad.yaml:\d+"),
    "python tag": ("x: !!python/object/apply:os.system [ls]\n", r"bad.yaml:1"),
    "alias bomb": (BOMB, r"bad.yaml.*alias"),
    "alias of itself": ("a: &a [*a]\n", r"bad.yaml"),
    "a list for a group": ("trainer: [1, 2]\n", r"trainer"),
    "a value for a group": ("trainer: 3\n", r"trainer"),
    "os.system": ("model: {class_path: os.system}\n", r"os.system"),
    "os.system through ours": ("model: {class_path: src.train.os.system}\n", r"src.train.os.system"),
    "os.system through an import": ("model: {class_path: src.run.os.system}\n", r"src.run.os.system"),
    "eval in a list": ("trainer: {callbacks: [{class_path: builtins.eval}]}\n", r"builtins.eval"),
    "logging.os.system": ("trainer: {logger: {class_path: logging.os.system}}\n", r"logging.os.system"),
    "side effects": (f"trainer: {{callbacks: [{{class_path: {EVIL}}}]}}\n", r"evil_module"),
    "side effects as text": (f"model: {{init_args: {{network: {EVIL}}}}}\n", r"evil_module"),
}

FLAGS = {
    "unknown key on the way": (["--model.netwrok.widths", "[1]"], r"--model.netwrok.widths.*network"),
    "abbreviation": (["--trainer.max_epoch", "3"], r"trainer.max_epoch.*max_epochs"),
    "unknown flag": (["--tainer.max_epochs", "3"], r"tainer.*trainer"),
    "abbreviated option": (["--run_di", "x"], r"run_di"),
    "network's key": (["--model.network.widhts", "[1]"], r"model.network.widhts.*widths"),
    # kind: images
    "augmentation's key": (
        [*DIGITS, "--data.augment", "[{class_path: src.data.images.augment.Flip, init_args: {q: 1}}]"],
        r"\bq\b",
    ),
    # end
    "optimizer's key at the model": (
        ["--model.lr", "0.1"],
        r"model.lr: unknown key; did you mean model.optimizer.lr\?",
    ),
    "no training": (["--trainer.max_epochs", "0"], r"trainer.max_epochs: 0 trains nothing -> take 1 or more"),
    "no value": (["--data.batch_size"], r"data.batch_size: a value is missing"),
    "a lone word": (["tests/small.yaml"], r"what is this for"),
    "class as a flag": (["--model.network", EVIL], r"evil_module"),
}


TWO = ["--trainer.accelerator", "cpu", "--trainer.devices", "2"]


@pytest.mark.parametrize("name", FILES)
def test_wrong_file(name, tmp_path, monkeypatch):
    text, message = FILES[name]
    (tmp_path / "bad.yaml").write_text(text)
    refused([*SMALL, "--config", str(tmp_path / "bad.yaml")], message, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", FLAGS)
def test_wrong_flag(name, tmp_path, monkeypatch):
    flags, message = FLAGS[name]
    args = flags if name == "a lone word" else [*SMALL, *flags]
    refused(args, message, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\x89PNG\r\n\x1a\n\x00\x00", r"UTF-8"), (b"x: \xff\xfe\n", r"UTF-8"), (b"x: " + b"a" * 1_100_000, r"bytes")],
    ids=["binary", "not UTF-8", "huge"],
)
def test_wrong_bytes(content, message, tmp_path, monkeypatch):
    (tmp_path / "bad.yaml").write_bytes(content)
    refused(["--config", str(tmp_path / "bad.yaml")], message, tmp_path, monkeypatch)


def test_missing_file_names_the_nearest(tmp_path, monkeypatch):
    refused(["--config", "configs/trainer/smok.yaml"], r"smoke.yaml", tmp_path, monkeypatch)


def test_what_plain_values_mean():
    numbers, _ = read_text("[1e-3, .5e3, 1_000, 0x1f, -0, .inf]", "")
    assert numbers == [0.001, 500.0, 1000, 31, 0, float("inf")]
    assert all(isinstance(value, str) for value in read_text("[010, 2024-01-01, 12:30:00, '1', 1e]", "")[0])
    data, lines = read_text("a: &x {1: yes}\nb:\n- *x", "f")
    assert data == {"a": {"1": True}, "b": [{"1": True}]}
    assert lines == {"a": "f:1", "a.1": "f:1", "b": "f:2", "b.0.1": "f:1"}


def test_help_explains_the_keys(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        read_request(command_parser("train", "The manual."), [*SMALL, "--help"])
    shown = capsys.readouterr().out
    assert "The manual." in shown
    assert re.search(r"^  --trainer.max_epochs 3 +Stop training once", shown, re.MULTILINE)
    assert re.search(r"^  --model.network.widths \[32, 16\] +units of each hidden layer", shown, re.MULTILINE)
    assert "--model.network.num_classes" not in shown  # is filled in
    assert re.search(
        r"^  --model.optimizer.betas \[0.9, 0.999\] +coefficients", shown, re.MULTILINE
    )  # of torch's class
    assert "--model.optimizer.params" not in shown


def refused(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'was here')!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=message) as e:
        read_request(command_parser("train", None), args)
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 500
    assert not (tmp_path / "was here").exists()


def test_a_typo_is_refused_before_torch_is_loaded():
    code = "import sys, src.train; c = src.train.main(sys.argv[1:]); print(c, 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, *SMALL, "--trainer.max_epoch", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["2", "False"]
    assert done.stderr.startswith("error: --trainer.max_epoch: ")
    assert len(done.stderr.splitlines()) == 1


VALUES = {
    "trainer.max_epochs": "abc",
    "data.batch_size": "-3",
    "data.micro_batch_size": "7",
    "data.num_workers": "-1",
    "data.noise": "much",
    "model.network.widths": "banana",
    "model.optimizer.lr": "[1]",
    "model.optimizer.momentumm": "1",
    "seed_everything": "abc",
    "trainer.accelerator": "nope",
    "trainer.precision": "nope",
    "trainer.accumulate_grad_batches": "2",
    "checkpoints.monitor": "val/accc",
    "checkpoints.keep_last": "0",
    "model.network.num_classes": "11",
    "model": "torch.nn.Linear",
    "data": "src.networks.mlp.MLP",
}


@pytest.mark.parametrize("key", VALUES)
def test_wrong_value(key, run, tmp_path):
    flags = [f"--{key}", VALUES[key], "--run_dir", tmp_path / "run"]
    output = run([*SMALL, "--config", "configs/trainer/smoke.yaml", *flags], code=2)
    line = output.splitlines()[-1]
    assert line.startswith("error: ")
    assert key.split(".")[-1] in line
    assert "Traceback" not in output
    assert len(line) < 500


MISPLACED = {
    "lr": "model.optimizer.lr",
    "batch_size": "data.batch_size",
    "epochs": "trainer.max_epochs or trainer.min_epochs",
    "widths": "model.network.widths",
}


@pytest.mark.parametrize("key", MISPLACED)
def test_a_flag_without_its_path_gets_a_hint(key, run):
    assert run([*SMALL, f"--{key}", "3"], code=2).endswith(f"unknown key {key}; did you mean {MISPLACED[key]}?\n")


@pytest.mark.parametrize("name", ["torch.optim.SGD", "src.optim.muon.Muon"])
def test_a_class_without_its_path_gets_a_hint(name, run):
    output = run([*SMALL, "--model.optimizer", name.rpartition(".")[2]], code=2)
    assert output.endswith(f"did you mean {name}?\n")


def test_a_python_without_the_packages_is_told_so():
    done = subprocess.run([sys.executable, "-S", "-m", "src.train"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.startswith("error: this Python lacks what requirements.lock lists -> make install")


NETWORKS = {
    "ours": ["--model.network", "src.networks.mlp.MLP"],
    # kind: images
    "function": [*DIGITS, "--model.network", "torchvision.models.resnet18", "--data.channels", "3"],
    "function with arguments": [
        *[
            *DIGITS,
            "--model.network",
            "{class_path: torchvision.models.resnet18, init_args: {zero_init_residual: true}}",
        ],
        *["--data.channels", "3"],
    ],
    # end
    "fact that agrees": ["--model.network.num_classes", "10"],
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_is_named_in_the_config(kind, run, tmp_path):
    run([*SMALL, *NETWORKS[kind], "--config", "configs/trainer/smoke.yaml", "--run_dir", tmp_path / "run"])


# kind: images
def test_a_network_that_does_not_fit_the_images(run, tmp_path):
    flags = ["--model.network", "torchvision.models.resnet18", "--run_dir", tmp_path / "run"]
    output = run([*DIGITS, *flags], code=2)
    assert "ResNet cannot take x [2, 1, 8, 8]" in output.splitlines()[-1]
    assert output.endswith("data.channels 3\n")


# end


def test_printed_and_saved_configs_can_be_used_again(run, tmp_path):
    printed = run([*SMALL, "--data.batch_size", "32", "--model.optimizer.lr", "1e-2", "--print_config"])
    config = yaml.safe_load(printed)
    assert config["data"]["init_args"]["batch_size"] == 32
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.01
    (tmp_path / "again.yaml").write_text(printed)
    assert yaml.safe_load(run(["--config", tmp_path / "again.yaml", "--print_config"])) == config
    run(["--config", tmp_path / "again.yaml", "--config", "configs/trainer/smoke.yaml", "--run_dir", tmp_path / "a"])
    run(["--config", tmp_path / "a/config.yaml", "--run_dir", tmp_path / "b"])
    assert (tmp_path / "a/config.yaml").read_text() == (tmp_path / "b/config.yaml").read_text()


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--data.batch_size", "0", "error: data.batch_size: 0 is less than 1\n"),
    ],
)
def test_what_a_class_says_of_its_arguments_is_told_alone(flag, value, message, run, tmp_path):
    assert message in run([*SMALL, flag, value, "--run_dir", tmp_path / "run"], code=2)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--model.network.widths", "wide", 'expected list, not "wide" -> write [A, B, ...]'),
        ("--model.network.widths", "[8, a]", 'model.network.widths.1: expected int, not "a"'),
        ("--model.optimizer.lr", "fast", 'expected float, not "fast"'),
        ("--model.schedule.warmup_frac", "x", 'expected float, not "x"'),
        ("--model.optimizer.betas", "[1]", "expected a list of 2 values, not [1]"),
        ("--model.class_weights", "heavy", "expected list or 'balanced', not \"heavy\" -> write [A, B, ...]"),
        (
            "--model.network",
            "torchvision.models.resnet19",
            "torchvision.models has no resnet19; did you mean resnet18?",
        ),
        ("--data.batch_size", "1.5", "expected int, not 1.5"),
        ("--checkpoints.mode", "up", "expected 'min' or 'max', not \"up\""),
        ("--trainer.max_epochs", "x", 'expected int, not "x"'),
    ],
)
def test_a_wrong_type_is_told_with_its_whole_key_and_value(flag, value, message, run, tmp_path):
    out = run([*SMALL, flag, value, "--run_dir", tmp_path / "run"], code=2)
    assert out.splitlines()[-1] == f"error: {flag}: {message}"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.network", "torch.nn.Linear", "--model.network.widths", "3"], "--model.network.widths: unknown key"),
        (["--wandb", "null"], "--wandb: wandb is a group of keys, but here it has the value null -> --wandb.mode dis"),
        (["--model", "5"], "--model: class_path is missing"),
        (
            ["--trainer.callbacks+", "{class_path: lightning.pytorch.strategies.fsdp._lazy_load, init_args: {f: x}}"],
            "lightning.pytorch.strategies.fsdp._lazy_load is not among what pyproject.toml allows configs to name",
        ),
        (["--model.network", "torch.nn.init.ones_"], "torch.nn.init.ones_ is a function, which is not known to give"),
        (["--trainer.callbacks+", "torch.nn.init.ones_"], "torch.nn.init.ones_ is a function, which is not known"),
        (["--data.seed", "3"], "--data.seed: follows seed_everything -> set that"),
        (["--data.batch_size", "true"], '--data.batch_size: expected int, not "true"'),
        (["--checkpoints.mode", "mim"], "did you mean min?"),
        (["--trainer.callbacks+", "EarlyStopping"], "did you mean lightning.pytorch.callbacks.EarlyStopping?"),
        (
            ["--trainer.callbacks+", "lightning.pytorch.callbacks.EarlyStopping"],
            "lightning.pytorch.callbacks.EarlyStopping needs monitor -> add it to its init_args",
        ),
        (["--model", "src.models.base.Model"], "needs network -> give --model.network"),
        (["--model.network", "torch.optim.Adam"], "torch.optim.Adam is not derived from torch.nn.modules.module.Mod"),
        (
            ["--model.optimizer", "src.data.cache.FileLock"],
            "there is no src.data.cache.FileLock",
        ),  # only imported there
        (["--trainer.limit_val_batches", "all"], '--trainer.limit_val_batches: expected int or float, not "all"'),
    ],
)
def test_what_is_refused_before_torch_is_loaded(flags, message, tmp_path, monkeypatch):
    refused([*SMALL, *flags], re.escape(message), tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--trainer.accelerator", "tpu"],
            "no tpu is here that torch can use (torch_xla's newest",
        ),
        (
            ["--trainer.accelerator", "mps"],
            "no mps is here that torch can use -> take cpu or auto",
        ),
        (["--trainer.accelerator", "nope"], "nope"),
        (
            ["--trainer.precision", "16-mixed", "--trainer.accelerator", "cpu"],
            "16-mixed becomes bf16-mixed on a cpu -> ",
        ),
        (
            ["--model.network", "torchvision.models.nope.Nope"],
            "--model.network: No module named 'torchvision.models.no",
        ),
        (["--trainer.strategy", "deepspeed"], "-> --config configs/trainer/fsdp.yaml"),
        (["--trainer.strategy", "fsdp"], "trainer.strategy: no fsdp of Lightning's, see docs/sharding.md -> --config"),
        (["--trainer.strategy", "xla"], "trainer: Requirement 'torch_xla"),
        (
            ["--trainer.strategy", "ddp_notebook", *TWO],
            "trainer.strategy: DDPStrategy would fork in the midst of",
        ),
        (["--trainer.strategy", "ddp_spawn", *TWO], "trainer.strategy: DDPStrategy would fork in the midst of"),
        (["--trainer.strategy", "ddp", *TWO, "--trainer.num_nodes", "2"], "trainer.num_nodes: 2, but this process was"),
        (["--trainer.precision", "16-true", "--trainer.accelerator", "cpu"], "16-true, which this cpu has to emulate"),
        (["--trainer.precision", "transformer-engine", "--trainer.accelerator", "cpu"], "transformer_engine"),
        (
            ["--trainer.precision", "32-true", "--trainer.plugins", "[lightning.pytorch.plugins.DoublePrecision]"],
            "trainer: Received both `precision=32-true` and `plugins=",
        ),
    ],
)
def test_what_is_refused_when_the_objects_are_made(flags, message, run, tmp_path):
    output = run([*SMALL, *flags, "--run_dir", tmp_path / "run"], code=2)
    line = output.splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert "Traceback" not in output
    assert len(line) < 500


# kind: images
@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--data.dataset", "nope", "dataset"),
        ("--data.val_frac", "2", "val_frac"),
        ("--data.data_dir", "mine", "error: data.data_dir: mine is not read by the digits -> "),
        (
            "--data.augment",
            "[src.networks.cnn.CNN]",
            "data.augment.0: src.networks.cnn.CNN is not derived from src.data.images.augment.Augmentation",
        ),
    ],
)
def test_a_wrong_value_of_images(flag, value, message, run, tmp_path):
    output = run([*DIGITS, flag, value, "--run_dir", tmp_path / "run"], code=2)
    line = output.splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert "Traceback" not in output
    assert len(line) < 500


# end


def test_a_module_of_ours_that_is_not_python_is_named(tmp_path, monkeypatch):
    (tmp_path / "src/networks").mkdir(parents=True)
    (tmp_path / "src/networks/broken.py").write_text("import torch\nclass Broken(:\n")
    monkeypatch.setattr(source, "ROOT", tmp_path)
    with pytest.raises(ConfigError, match=r"src/networks/broken.py:2: not Python: .* -> mend it"):
        source.body("src.networks.broken")
