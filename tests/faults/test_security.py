"""Nothing that came with data runs code; secrets appear in nothing that a run leaves."""

import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from harness import EVERY_STEP, TINY, rows

from src import load_run
from src.run.checkpoint import load, read_manifest
from src.run.errors import CheckpointError
from src.run.redact import hide, redact, secrets_in

ARGS = [*TINY, *EVERY_STEP]


class Malice:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def origin(copied):
    return copied(ARGS, "origin")


def test_a_sharded_checkpoint_is_never_read(run, tmp_path, origin):
    folder = tmp_path / "sharded"
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(Malice(tmp_path / "was here")))
    for path in (folder, folder / ".metadata"):
        run([*ARGS, "--resume", path, "--run_dir", tmp_path / "new"], code=4)
    best = origin / "checkpoints/best.ckpt"
    best.unlink()
    best.symlink_to(folder)
    with pytest.raises(CheckpointError, match="never read"):
        load_run(origin)
    assert not (tmp_path / "was here").exists()


def test_what_a_checkpoint_says_of_its_model_is_not_called(run, tmp_path, origin):
    saved = torch.load(origin / "checkpoints/last.ckpt", weights_only=True)
    calls = {"_instantiator": "os.mkdir", "path": str(tmp_path / "was here"), "class_path": "os.mkdir"}
    torch.save({**saved, "hyper_parameters": calls, "hparams_name": "os.mkdir"}, tmp_path / "step.ckpt")
    run([*ARGS, "--resume", tmp_path / "step.ckpt", "--run_dir", tmp_path / "new"])
    assert not (tmp_path / "was here").exists()


def test_any_damage_is_a_checkpoint_error(tmp_path, origin):
    data = (origin / "checkpoints/last.ckpt").read_bytes()
    generator, copy = torch.Generator().manual_seed(0), tmp_path / "copy.ckpt"
    refused = []
    for _ in range(150):
        at = int(torch.randint(len(data), (), generator=generator))
        size = int(torch.randint(1, 200, (), generator=generator))
        copy.write_bytes(
            data[:at] + bytes(torch.randint(256, (size,), generator=generator).tolist()) + data[at:][size:]
        )
        try:
            load(copy)
        except CheckpointError as e:
            refused.append(str(e))
    assert len(refused) > 30
    assert not any("weights_only" in line for line in refused)  # torch advises to switch the protection off


ALIASES = [
    "torch.nn.functional.os.mkdir",
    "torch.nn.modules.module.os.mkdir",
    "torch.optim.optimizer.functools.partial",
    "torchvision.models.alexnet.torch.os.mkdir",
    "torchvision.models._api.sys.exit",
    "torchvision.models.resnet.load_state_dict_from_url",
    "lightning.pytorch.loggers.csv_logs.os.mkdir",
    "lightning.pytorch.callbacks.model_checkpoint.os.mkdir",
    "src.models.base.torch.os.mkdir",
    "src.models.base.partial",
    "src.callbacks.checkpoints.signal.raise_signal",
    "src.data.module.torch.hub.load",
]
PLACES = ["model", "data", "model.network", "model.optimizer", "model.schedule", "trainer.callbacks", "trainer.logger"]


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_behind_an_allowed_name_is_refused(run, tmp_path, alias):
    index = ALIASES.index(alias)
    for place in (PLACES[index % len(PLACES)], "model.network"):
        spec = json.dumps({"class_path": alias, "init_args": {"path": str(tmp_path / "was here")}})
        value = f"[{spec}]" if place == "trainer.callbacks" else spec
        output = run([*ARGS, f"--{place}", value, "--run_dir", tmp_path / "new"], code=2)
        assert "Traceback" not in output
        assert output.splitlines()[-1].startswith("error: ")
        assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize("function", ["os.mkdir", "builtins.exec", "torch.optim.lr_scheduler.math.exp"])
def test_a_function_as_an_argument_is_refused(run, tmp_path, function):
    flags = ["--model.schedule", "torch.optim.lr_scheduler.LambdaLR", "--model.schedule.lr_lambda", function]
    run([*ARGS, *flags, "--run_dir", tmp_path / "new"], code=2)


SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_AbCdEfGhIjKlMnOp",
    "AWS_SECRET_ACCESS_KEY": "wJalr/XUtn+FEMI'K7MD",
}


def assert_no_secret(folder, output, more=()):
    for value in (*SECRETS.values(), *more):
        assert value not in output
        files = [p for p in folder.rglob("*") if p.is_file()]
        assert [p for p in files if value.encode() in p.read_bytes()] == []


@pytest.fixture
def secrets(monkeypatch, tmp_path):
    for name, value in {**SECRETS, "WANDB_MODE": "offline", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)


def test_secrets_of_the_environment_are_left_nowhere(run, tmp_path, secrets):
    args = [*map(str, ARGS), "--run_dir", str(tmp_path / "run")]
    args += ["--wandb.notes", f"with {SECRETS['HF_TOKEN']}", "--wandb.tags", f"[{SECRETS['WANDB_API_KEY']}]"]
    command = [sys.executable, "-m", "src.train", *args]  # not forked, because W&B records its command line
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert (tmp_path / "run/wandb").is_dir()
    assert "with ***" in (tmp_path / "run/config.yaml").read_text()
    assert_no_secret(tmp_path / "run", output)
    assert "finished" in run(args)


def test_secrets_in_configs_that_git_does_not_know_are_left_nowhere(run, tmp_path):
    def another_project():
        from src.run import folder as run

        run.ROOT = tmp_path / "project"

    configs = tmp_path / "project/configs"
    configs.mkdir(parents=True)
    git = ["git", "-C", tmp_path / "project", "-c", "user.name=x", "-c", "user.email=x"]
    subprocess.run([*git, "init", "-q"], check=True)
    (configs / "old.yaml").write_text("lr: 1\n")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    (configs / "old.yaml").write_text("lr: 2\nservice: {token: s3cr3t-v1, a: 1}\n")
    block = "a:\n  - api_key: |\n      s3cr3t-v2\n\n      s3cr3t-v3\n  - b\n"
    (configs / "new.yaml").write_text(f"{block}'password': s3cr3t-v4 with spaces\ntokenizer: bytes\n")
    (tmp_path / "project/src").mkdir()
    (tmp_path / "project/src/new.py").write_text("token = next_token(key=lambda p: p)\n")
    run([*ARGS, "--run_dir", tmp_path / "run"], first=another_project)
    diff = (tmp_path / "run/code.diff").read_text()
    assert "s3cr3t" not in diff
    assert "spaces" not in diff
    assert "+token = next_token(key=lambda p: p)" in diff
    assert ".yaml" not in diff  # the whole config of the run is beside it, without secrets


def test_secrets_in_flags_are_left_nowhere(start, run, tmp_path, secrets):
    value, args = "s3cr3t-v4lu3", [*ARGS, "--run_dir", tmp_path / "run"]
    for flag in ("--x.token", "--model.password", "--trainer.logger.api_key"):
        for flags in ([flag, value], [f"{flag}={value}"]):
            assert value not in run([*args, *flags], code=2)
    network = {"class_path": "torch.nn.Flatten", "dict_kwargs": {"access_token": value}}
    child = start([*args, "--model.network", json.dumps(network)])
    assert child.wait() != 0
    assert_no_secret(tmp_path, child.output, [value])


def test_a_secret_in_an_error_is_hidden(run, tmp_path, monkeypatch):
    def fails():
        from src.models.classification import Classification

        def broken(self, batch, batch_idx):
            raise RuntimeError(f"cannot log in with {SECRETS['HF_TOKEN']}")

        Classification.training_step = broken

    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    monkeypatch.setenv("WANDB_MODE", "offline")
    output = run([*ARGS, "--run_dir", tmp_path / "run"], code=1, first=fails)
    assert "cannot log in with ***" in output
    assert json.loads((tmp_path / "run/summary.json").read_text())["error"] == "cannot log in with ***"
    assert_no_secret(tmp_path / "run", output)


def test_secrets_that_look_like_numbers_or_names_spoil_no_file(run, tmp_path, trained_once, monkeypatch):
    whole = trained_once(ARGS)
    for name, value in {"A_KEY": "00000012", "B_TOKEN": "global_step", "C_SECRET": "train/loss"}.items():
        monkeypatch.setenv(name, value)
    run([*ARGS, "--run_dir", tmp_path / "run"])
    assert rows(tmp_path / "run") == rows(whole)
    assert read_manifest(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 12


def test_a_secret_that_needs_quotes_is_hidden_in_files_too(run, tmp_path, monkeypatch):
    secret = 'pass"word\\and\tmore'
    monkeypatch.setenv("A_PASSWORD", secret)
    args = [*ARGS, "--run_dir", tmp_path / "run", "--wandb.notes", json.dumps(f"with {secret}")]
    run(args)
    for name in ("run.json", "config.yaml"):
        assert "word" not in (tmp_path / "run" / name).read_text().replace("password", "")


def test_of_two_secrets_the_longer_is_hidden_whole(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "abcd1234")
    monkeypatch.setenv("B_TOKEN", "abcd1234-and-more")
    assert hide("x abcd1234-and-more y") == "x *** y"


def test_what_looks_secret_and_what_does_not():
    numbers = {"api_key": 8675309867530, "db.password": 1234.5, "secret": [12345678]}
    assert redact(numbers) == {"api_key": "***", "db.password": "***", "secret": ["***"]}
    innocent = {"pad_token": 0, "secret": True, "keys": 5, "password": None}
    assert redact(innocent) == innocent
    config = {"api_key": "a", "token": "b", "my_token": "c", "secret": ["d"], "db.password": "e", "key": "f"}
    assert set(map(str, redact(config).values())) == {"***", "['***']"}
    plain = {
        "tokenizer": "bytes",
        "num_tokens": 3,
        "monkey": "x",
        "keys": "y",
        "primary_key": "id",
        "token": None,
        "cls_token": "mean",
        "types": {"key": "category", "password": "text"},
    }
    assert redact(plain) == plain
    args = [
        "--a.token",
        "one",
        "--b.api_key=two",
        "--c",
        "{password: three, token: 'four'}",
        "--data.tokenizer",
        "bytes",
    ]
    assert secrets_in(args) == ["one", "two", "three", "four"]
    assert hide("one and two", ["one"]) == "*** and two"
