"""FSDP2 on two gloo processes of this machine does what one process does."""

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL
from faults.harness import assert_sound, before_call, before_change, plain
from lightning.pytorch.strategies import Strategy
from processes import in_fork
from torch import nn

from src import consolidate, evaluate, predict
from src.config.trained import load_run
from src.networks.mlp import MLP
from src.run import checkpoint
from src.run.errors import ConfigError
from src.strategies import fsdp as strategy

FSDP = ["--config", "configs/trainer/fsdp.yaml", "--trainer.devices", 2, "--trainer.accelerator", "cpu"]
SHORT = ["--trainer.accelerator", "cpu", "--pictures.enabled", "false", "--trainer.max_epochs", 2]
SHORT += ["--trainer.limit_train_batches", 4, "--trainer.limit_test_batches", 2, "--trainer.log_every_n_steps", 4]
SHORT += ["--checkpoints.every_n_steps", 3]
# No dropout and no batch norm, which see each device's samples apart.
TINY = [*SMALL, *SHORT, "--model.network.dropout", 0, "--model.network.widths", "[33,33]"]
NETWORKS = {
    "mlp, clipped": [*TINY, "--trainer.gradient_clip_val", 0.1],
    "accumulated": TINY,
    "frozen": [*TINY, "--model.freeze", "[blocks.0.*]"],
    "recomputed": [*TINY, "--model.activation_checkpointing", "true"],
    "muon": [*TINY, "--model.optimizer", "src.optim.muon.Muon"],
    # kind: images
    "cnn": [
        *["--config", "configs/experiment/digits_cnn.yaml", *SHORT, "--model.network.widths", "[5,8]"],
        *["--model.network.dropout", 0, "--model.network.batch_norm", "false"],
    ],
    "lstm": [
        *["--config", "configs/experiment/digits_lstm.yaml", *SHORT, "--model.network.dropout", 0],
        *["--model.network.dim", 9],
    ],
    "vit": [
        *["--config", "configs/experiment/digits_vit.yaml", *SHORT, "--model.network.dim", 24],
        *["--model.network.depth", 2, "--model.network.dropout", 0],
    ],
    "foreign": [
        *["--config", "configs/experiment/digits_vit.yaml", *SHORT, "--data.channels", 3],
        *[
            "--model.network",
            "torchvision.models.vision_transformer.VisionTransformer",
            "--model.network.patch_size",
            4,
        ],
        *["--model.network.num_layers", 2, "--model.network.num_heads", 2, "--model.network.hidden_dim", 12],
        *["--model.network.mlp_dim", 20, "--model.blocks", "[encoder.layers.*]"],
        *["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", 0.1],  # Adam makes noise of zero gradients
    ],
    # end
    # kind: text
    "gpt": [
        *["--config", "configs/experiment/text_gpt.yaml", *SHORT, "--trainer.max_steps", 8, "--data.seq_len", 16],
        *["--trainer.val_check_interval", 4, "--trainer.limit_val_batches", 2],
        *["--model.network.dim", 24, "--model.network.depth", 2],
    ],
    # end
    # kind: tables
    "table": [
        *["--config", "configs/experiment/diabetes_mlp.yaml", *SHORT, "--model.network.dropout", 0],
        *["--trainer.limit_train_batches", 4],
    ],
    # end
    # kind: series
    "series": ["--config", "configs/experiment/seasons_linear.yaml", *SHORT],
    # end
}
if "gpt" in NETWORKS:
    NETWORKS["gpt, not tied"] = [*NETWORKS["gpt"], "--model.network.tie_embeddings", "false"]
    NETWORKS["gpt, chunked"] = [*NETWORKS["gpt"], "--model.loss_chunks", 3]


def rows(folder: Path) -> list[dict[str, float]]:
    """Of the log, what does not depend on the clock."""
    with open(folder / "metrics.csv") as f:
        return [
            {name: float(v) for name, v in row.items() if v and not name.startswith("perf/")}
            for row in csv.DictReader(f)
        ]


def saved(folder: Path) -> dict:
    return checkpoint.load(folder / "checkpoints/last.ckpt")


def assert_close(one: Path, other: Path, rel: float = 1e-4) -> None:
    a, b = rows(one), rows(other)
    assert len(a) == len(b) > 1
    assert any("optim/grad_norm" in row for row in a)
    for x, y in zip(a, b, strict=True):
        for kinds, tolerance in (("loss", rel / 10), ("optim/", rel)):
            exact = {name: v for name, v in x.items() if kinds in name}
            assert {name: y[name] for name in exact} == pytest.approx(exact, rel=tolerance)
    assert_same_weights(saved(one), saved(other), rel)
    ends = [json.loads((folder / "summary.json").read_text()) for folder in (one, other)]
    assert ends[0]["test/loss"] == pytest.approx(ends[1]["test/loss"], rel=rel)


def assert_same_weights(a: dict, b: dict, tolerance: float) -> None:
    a, b = a["state_dict"], b["state_dict"]
    assert list(a) == list(b)
    for name in a:
        assert torch.allclose(a[name].float(), b[name].float(), rtol=tolerance, atol=tolerance), name


DIVIDED = {"accumulated": ["--data.micro_batch_size", 16, "--trainer.limit_train_batches", 8]}
DIVIDED["accumulated"] += ["--trainer.limit_test_batches", 4]


@pytest.mark.parametrize("name", NETWORKS)
def test_two_devices_give_what_one_gives(run, tmp_path, name):
    run([*NETWORKS[name], "--run_dir", tmp_path / "one"])
    run([*NETWORKS[name], *FSDP, *DIVIDED.get(name, []), "--run_dir", tmp_path / "two"], twins=1)
    assert_close(tmp_path / "one", tmp_path / "two", 5e-3 if name == "muon" else 1e-4)  # Muon computes in bfloat16


SHARDED = ["--trainer.strategy.sharded_checkpoints", "true"]
# The first two epochs of three on two devices, the last on others; plain is one process without FSDP.
OTHERS = {"two": (FSDP, 1), "three": ([*FSDP, "--trainer.devices", 3], 2), "one": ([*FSDP, "--trainer.devices", 1], 0)}
OTHERS["plain"] = ([], 0)
BATCH = ["--data.batch_size", 60]


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_goes_on_with_another_number_of_devices(run, tmp_path, sharded):
    flags = [*TINY, *BATCH]
    run([*flags, "--run_dir", tmp_path / "begun"])
    run([*flags, "--trainer.max_epochs", 3, "--resume", tmp_path / "begun", "--run_dir", tmp_path / "reference"])
    run([*flags, *FSDP, *(SHARDED if sharded else []), "--run_dir", tmp_path / "divided"], twins=1)
    assert list((tmp_path / "divided/checkpoints").glob("*.shards")) != [] or not sharded
    for name, (how, twins) in OTHERS.items():
        more = [*how, *(SHARDED if sharded and how else []), "--trainer.max_epochs", 3]
        again = [*flags, *more, "--resume", tmp_path / "divided", "--run_dir", tmp_path / name]
        # One device in a process of its own: as a fork it hung, late in one run of all tests.
        if name == "one":
            subprocess.run([sys.executable, "-m", "src.train", *map(str, again)], cwd=ROOT, check=True, timeout=120)
        else:
            run(again, twins=twins)
        assert_close(tmp_path / "reference", tmp_path / name)


# kind: images
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_kernels_go_on_with_and_without_it(run, tmp_path, sharded):
    """They and their optimizer states lie in memory otherwise where they are divided."""
    run([*NETWORKS["cnn"], "--run_dir", tmp_path / "one"])
    run([*NETWORKS["cnn"], *FSDP, *(SHARDED if sharded else []), "--run_dir", tmp_path / "two"], twins=1)
    longer = [*NETWORKS["cnn"], "--trainer.max_epochs", 3]
    run([*longer, "--resume", tmp_path / "one", "--run_dir", tmp_path / "one and one"])
    run([*longer, "--resume", tmp_path / "two", "--run_dir", tmp_path / "two and one"])
    run([*longer, *FSDP, "--resume", tmp_path / "one", "--run_dir", tmp_path / "one and two"], twins=1)
    for name in ("two and one", "one and two"):
        assert_close(tmp_path / "one and one", tmp_path / name, 3e-4)


# end
def on_rank(rank: int, hook: Callable[[], None]) -> Callable[[], None]:
    """A hook: the same, in one of the processes. Both begin with it, before they know which they are."""

    def first() -> None:
        setup = Strategy.setup_environment

        def begun(self) -> None:
            setup(self)
            if self.global_rank == rank:
                Strategy.setup_environment = setup
                hook()

        Strategy.setup_environment = begun

    return first


def bits(folder: Path) -> list:
    return plain([rows(folder), saved(folder)["state_dict"], saved(folder)["optimizer_states"]])


KILLED = [*SMALL, *SHORT, *FSDP, *SHARDED, "--checkpoints.every_n_steps", 1]  # with dropout


@pytest.fixture(scope="session")
def trained_twice(trained_once):
    return trained_once(KILLED, twins=1)


SHORT_ONES = {(0, 5), (0, 13), (1, 2), (1, 9)}
MOMENTS = [*((0, n) for n in range(1, 41)), *((1, n) for n in range(1, 21))]  # a save changes 14 or 3 things
MOMENTS = [m if m in SHORT_ONES else pytest.param(*m, marks=pytest.mark.long) for m in MOMENTS]


@pytest.mark.parametrize(("rank", "number"), MOMENTS)
def test_killed_at_any_change_of_files_it_goes_on_bit_for_bit(start, run, trained_twice, tmp_path, rank, number):
    child = start([*KILLED, "--run_dir", tmp_path / "run"], first=on_rank(rank, before_change(number)), twins=1)
    assert child.wait() == (-9 if rank == 0 else 75)
    child.wait_for_all()
    assert_sound(tmp_path / "run")
    run([*KILLED, "--run_dir", tmp_path / "run"], twins=1)
    assert bits(tmp_path / "run") == bits(trained_twice)
    assert not list(tmp_path.glob("run/checkpoints/*.tmp"))
    names = {kind: {p.stem for p in tmp_path.glob(f"run/checkpoints/step-*.{kind}")} for kind in ("ckpt", "shards")}
    assert names["ckpt"] == names["shards"]


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_killed_it_goes_on_bit_for_bit(start, run, tmp_path, sharded):
    flags = [*SMALL, *SHORT, *FSDP, *(SHARDED if sharded else [])]
    run([*flags, "--run_dir", tmp_path / "whole"], twins=1)
    child = start([*flags, "--run_dir", tmp_path / "cut"], first=before_call(Strategy, "training_step", 6), twins=1)
    assert child.wait() == -9
    child.wait_for_all()
    assert "going on after" in run([*flags, "--run_dir", tmp_path / "cut"], twins=1)
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")


# kind: images
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_batch_norms_go_on_bit_for_bit_and_are_those_measured(start, run, tmp_path, sharded):
    flags = [*NETWORKS["cnn"], "--model.network.batch_norm", "true", *FSDP, *(SHARDED if sharded else [])]
    run([*flags, "--run_dir", tmp_path / "whole"], twins=1)
    child = start([*flags, "--run_dir", tmp_path / "cut"], first=before_call(Strategy, "training_step", 6), twins=1)
    assert child.wait() == -9
    child.wait_for_all()
    told = run([*flags, "--run_dir", tmp_path / "cut"], twins=1)
    assert re.search("going on after [34] steps", told)  # where the disk is slow, the fourth was not saved yet
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")
    best = json.loads((tmp_path / "whole/summary.json").read_text())["best"]["val/loss"]
    run(["--run_dir", tmp_path / "whole", "--split", "val"], command=evaluate.main)
    measured = json.loads((tmp_path / "whole/evaluate_val.json").read_text())["val/loss"]
    assert measured == pytest.approx(best, rel=1e-5)


# end
def damaged(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)


@pytest.mark.parametrize("harm", [damaged, Path.unlink, lambda shard: shard.write_bytes(b"")])
def test_a_damaged_shard_is_found(run, tmp_path, harm, trained_twice):
    folder = Path(shutil.copytree(trained_twice, tmp_path / "run", symlinks=True))
    last = (folder / "checkpoints/last.ckpt").resolve()
    harm(last.with_suffix(".shards") / "00001.safetensors")
    output = run(["--run_dir", folder, "--checkpoint", "last"], command=evaluate.main, code=4)
    assert f"{folder}/checkpoints/last.ckpt" in output
    assert "shard 00001.safetensors" in output
    (folder / "summary.json").unlink()
    output = run([*KILLED, "--run_dir", folder], twins=1)
    assert "Not used" in output
    assert "shard 00001.safetensors" in output
    assert bits(folder) == bits(trained_twice)


def test_one_process_measures_predicts_loads_and_consolidates(run, tmp_path, trained_twice):
    folder = Path(shutil.copytree(trained_twice, tmp_path / "run", symlinks=True))
    summary = json.loads((folder / "summary.json").read_text())
    run(["--run_dir", folder], command=evaluate.main)
    found = json.loads((folder / "evaluate_test.json").read_text())
    assert found["samples"] == 360
    run(["--run_dir", folder, "--trainer.limit_test_batches", 4], command=evaluate.main)
    assert json.loads((folder / "evaluate_test.json").read_text())["test/loss"] > 0
    assert "360 predictions" in run(["--run_dir", folder], command=predict.main)
    output = run(["--run_dir", folder], command=consolidate.main)
    one = folder / f"step-{summary['best']['step']:08d}.ckpt"
    assert str(one) in output
    whole = torch.load(one, weights_only=True)
    assert plain(whole["state_dict"]) == plain(checkpoint.load(folder / "checkpoints/best.ckpt")["state_dict"])
    run([*SMALL, *SHORT, "--resume", one, "--trainer.max_epochs", 3, "--run_dir", tmp_path / "one"])
    in_fork(lambda: loads(folder, whole))


def loads(folder: Path, whole: dict) -> None:
    weights = load_run(folder).state_dict()
    assert all(torch.equal(weights[name], whole["state_dict"][name]) for name in weights)


def test_what_does_not_go_with_it_is_refused(run, tmp_path):
    refused = {
        ("--ema.decay", "0.9"): "ema.decay: FSDP",
        ("--trainer.precision", "16-mixed"): "precision='16-mixed'",
        ("--trainer.strategy", "null", "--trainer.strategy", "fsdp"): "-> --config configs/trainer/fsdp.yaml",
        ("--model.optimizer", "torchao.optim.AdamW8bit"): "has states that FSDP cannot divide",
        ("--model.optimizer", "torch.optim.Adafactor"): "Adafactor has states that FSDP cannot divide",
        ("--trainer.sync_batchnorm", "true"): "trainer.sync_batchnorm: FSDP changes no batch norms",
        ("--trainer.strategy.replicas", "3"): "replicas: 3 of 2 devices -> one of [1, 2]",
        ("--trainer.strategy", "lightning.pytorch.strategies.ModelParallelStrategy"): "configs/trainer/fsdp.yaml",
    }
    for flags, said in refused.items():
        output = run([*TINY, *FSDP, *flags, "--run_dir", tmp_path / "run"], code=2)
        assert said in output
        assert "Traceback" not in output
        assert not (tmp_path / "run").exists()


def test_weights_tied_across_blocks_are_refused():
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    strategy.check_tied(tied, [tied[2]])
    for blocks in ([tied[0]], [tied[0], tied[1]]):
        with pytest.raises(ConfigError, match=r"weight of Linear \[4, 4\] is tied across blocks"):
            strategy.check_tied(tied, blocks)


def test_a_container_is_no_block(run, tmp_path):
    output = run([*TINY, *FSDP, "--model.blocks", "[blocks]", "--run_dir", tmp_path / "run"], code=2, twins=1)
    assert "error: model.blocks: fully_shard does not support containers" in output


@pytest.mark.parametrize(
    "how", [["offload", "true"], ["replicas", 2], ["reshard_after_forward", "false"], ["build_on", "host"]]
)
def test_arguments_change_no_weights(run, tmp_path, how):
    flags = [*TINY, *FSDP, f"--trainer.strategy.{how[0]}", how[1]]
    run([*TINY, "--run_dir", tmp_path / "one"])
    run([*flags, "--run_dir", tmp_path / "two"], twins=1)
    assert_close(tmp_path / "one", tmp_path / "two")


def test_a_loss_that_is_not_finite_is_found_by_all(start, tmp_path):
    child = start([*TINY, *FSDP, "--model.optimizer.lr", 1e30, "--run_dir", tmp_path / "run"], twins=1)
    assert child.wait() == 5, child.output
    assert "is not finite; samples" in child.output
    assert "Traceback" not in child.output
    child.wait_for_all()


def awkward(looks: bool) -> Callable[[], None]:
    """A hook: a network whose constructor looks at numbers, or keeps a tensor that is no buffer, with odd buffers."""

    def first() -> None:
        init, forward = MLP.__init__, MLP.forward

        @wraps(init)
        def made(self, *args, **kwargs) -> None:
            init(self, *args, **kwargs)
            self.scale = torch.linspace(1, 1.5, 3)
            if looks:
                self.scale = self.scale.tolist()
            self.register_buffer("mask", torch.arange(64) % 7 > 0, persistent=False)
            self.register_buffer("turn", torch.polar(torch.ones(2), torch.ones(2)), persistent=False)

        MLP.__init__ = made
        MLP.forward = lambda self, x: self.scale[1] * forward(self, x * self.mask * self.turn.abs()[0])

    return first


@pytest.mark.parametrize("looks", [False, True])
def test_a_network_that_cannot_be_made_without_memory_is_made_whole(run, tmp_path, looks):
    run([*TINY, "--run_dir", tmp_path / "one"], first=awkward(looks))
    output = run([*TINY, *FSDP, "--run_dir", tmp_path / "two"], first=awkward(looks), twins=1)
    assert output.count("Each process makes MLP whole") == 1
    assert_close(tmp_path / "one", tmp_path / "two")


def noting_memory(file: Path) -> Callable[[], None]:
    """A hook: write down, of each process, whether its network has memory before it is divided, and its share then."""

    def first() -> None:
        divide = strategy.FSDP.divide

        def noted(self, network, blocks) -> None:
            empty = {p.is_meta for p in network.parameters()}
            divide(self, network, blocks)
            own = sum(strategy.local(p).numel() for p in network.parameters())
            file.with_name(f"rank{self.global_rank}").write_text(json.dumps([*empty, own]))

        strategy.FSDP.divide = noted

    return first


def test_only_the_first_process_ever_holds_all_of_it(run, tmp_path):
    run([*TINY, *FSDP, "--run_dir", tmp_path / "run"], first=noting_memory(tmp_path / "rank"), twins=1)
    (first, own), (second, others) = (json.loads((tmp_path / f"rank{n}").read_text()) for n in (0, 1))
    assert (first, second) == (False, True)
    assert own + others == 3607
    assert abs(own - others) < 3607 // 10


# kind: images
def test_bfloat16_with_batch_norms(run, tmp_path):
    flags = ["--config", "configs/experiment/digits_cnn.yaml", *SHORT, "--trainer.precision", "bf16-mixed"]
    flags += ["--model.network.widths", "[8,8]", "--trainer.devices", 2]
    run([*flags, "--trainer.strategy", "ddp", "--run_dir", tmp_path / "ddp"], twins=1)
    run([*flags, *FSDP, "--run_dir", tmp_path / "fsdp"], twins=1)
    ddp, fsdp = ([row["val/loss"] for row in rows(tmp_path / name) if "val/loss" in row] for name in ("ddp", "fsdp"))
    assert fsdp == pytest.approx(ddp, rel=0.02)
    assert {t.dtype for t in saved(tmp_path / "fsdp")["state_dict"].values()} == {torch.float32, torch.int64}


# end
# kind: series
def test_bfloat16_does_not_round_the_data(run, tmp_path):
    flags = [*NETWORKS["series"], "--trainer.precision", "bf16-mixed", "--trainer.devices", 2]
    run([*flags, "--trainer.strategy", "ddp", "--run_dir", tmp_path / "ddp"], twins=1)
    run([*flags, *FSDP, "--run_dir", tmp_path / "fsdp"], twins=1)
    ddp, fsdp = ([row["val/loss"] for row in rows(tmp_path / name) if "val/loss" in row] for name in ("ddp", "fsdp"))
    assert fsdp == pytest.approx(ddp, rel=1e-6)


# end
