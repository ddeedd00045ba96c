"""A run that is killed, however often, ends as one that was not."""

import json
import random
import re
import shutil
import time

import pytest
import torch
from harness import (
    EVERY_STEP,
    IMAGES,  # kind: images
    SELDOM,
    SERIES,  # kind: series
    SETTINGS,
    STEPS,
    TINY,
    assert_same_end,
    assert_sound,
    before_call,
    before_change,
    die,
    differences,
    in_write,
    noting_samples,
    plain,
    rows,
    samples,
    together,
)
from lightning.pytorch.strategies import Strategy

from src.models.base import Model
from src.models.classification import Classification
from src.run import resume


def early_stopping(patience):
    arguments = f"{{monitor: val/acc, mode: max, patience: {patience}, min_delta: 2.0}}"
    return f"[{{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {arguments}}}]"


OPERATIONS = ("Flip", "Crop", "Color", "Erasing")  # kind: images
KINDS = {
    "plain": [],
    "accumulation and validation in mid-epoch": [
        *["--data.micro_batch_size", 16, "--trainer.limit_train_batches", 8],
        *["--trainer.val_check_interval", 4],
    ],
    # kind: images
    "augmented, mixed": [
        *IMAGES,
        *["--data.augment", f"[{', '.join(f'src.data.images.augment.{name}' for name in OPERATIONS)}]"],
        *["--data.mix", "torchvision.transforms.v2.CutMix", "--model.class_weights", "balanced"],
    ],
    # end
    # kind: tables
    "table": [
        *["--data", "src.data.tables.module.TableDataModule", "--data.dataset", "wine", "--data.batch_size", 16],
        *["--model.network", "src.networks.table_mlp.TableMLP", "--model.network.dim", 16],
    ],
    # end
    "windows, moved and augmented": [*SERIES],  # kind: series
    "two workers": ["--data.num_workers", 2],
    "on the device": ["--data.on_device", "true"],
    "plateau": [
        *["--model.schedule", "torch.optim.lr_scheduler.ReduceLROnPlateau"],
        *["--model.schedule.patience", 0, "--model.schedule.threshold", 0.5],
    ],
    "average": ["--ema.decay", 0.9, "--trainer.val_check_interval", 2],
    # kind: images
    "average, Muon, one cycle": [
        *[
            *IMAGES,
            "--model.network",
            "src.networks.cnn.CNN",
            "--model.network.widths",
            "[4,4]",
            "--model.network.hidden",
            8,
        ],
        *["--model.network.batch_norm", "true", "--model.network.padding", 1, "--ema.decay", 0.9],
        *["--model.optimizer", "src.optim.muon.Muon", "--model.optimizer.adam_lr", 0.02],
        *["--model.schedule", "torch.optim.lr_scheduler.OneCycleLR", "--model.schedule.max_lr", 0.02],
    ],
    # end
    "bfloat16": ["--trainer.precision", "auto"],
    "early stopping": ["--trainer.max_epochs", 9, "--trainer.callbacks", early_stopping(patience=2)],  # after 12 steps
}
SLOW = (
    *["two workers", "on the device", "plateau", "average, Muon, one cycle", "augmented, mixed", "bfloat16"],
    "early stopping",
)


def at_step(step):
    """A hook: die in the last micro-batch of an optimizer step."""

    def first():
        training_step = Strategy.training_step  # of whatever model

        def dying(self, batch, batch_idx):
            loss, trainer = training_step(self, batch, batch_idx), self.lightning_module.trainer
            if trainer.global_step == step and not (batch_idx + 1) % trainer.accumulate_grad_batches:
                die()
            return loss

        Strategy.training_step = dying

    return first


SLOW = [kind for kind in SLOW if kind in KINDS]
CASES = [
    pytest.param(kind, saving, marks=pytest.mark.long if kind in SLOW else ())
    for kind in KINDS
    for saving in ("every step", "seldom")
]


@pytest.mark.parametrize(("kind", "saving"), CASES)
def test_killed_at_each_step_in_turn(start, run, tmp_path, kind, saving):
    args = [*TINY, *KINDS[kind], *(EVERY_STEP if saving == "every step" else SELDOM)]
    run([*args, "--run_dir", tmp_path / "whole"], first=noting_samples(tmp_path / "whole.txt"))
    args, noting = [*args, "--run_dir", tmp_path / "killed"], noting_samples(tmp_path / "killed.txt")
    for step in range(STEPS):
        child = start(args, first=together(noting, at_step(step)))
        assert child.wait() == -9, child.output
        assert_sound(tmp_path / "killed")
    run(args, first=noting)
    assert_same_end(tmp_path / "killed", tmp_path / "whole")
    assert samples(tmp_path / "killed.txt") == samples(tmp_path / "whole.txt")


ON_DEVICE = ["mlp", "images", "gpt", "table_mlp", "series"]


@pytest.mark.parametrize("name", [name for name in ON_DEVICE if name in SETTINGS])
def test_where_the_data_lies_changes_nothing(start, run, tmp_path, name):
    """Nor does it where a run that was killed goes on with its data on the host."""
    args = [*SETTINGS[name], "--run_dir"]
    run([*args, tmp_path / "whole", "--data.on_device", "false"], first=noting_samples(tmp_path / "whole.txt"))
    noting = noting_samples(tmp_path / "moved.txt")
    child = start([*args, tmp_path / "moved", "--data.on_device", "true"], first=together(noting, at_step(5)))
    assert child.wait() == -9, child.output
    run([*args, tmp_path / "moved"], first=noting)
    assert_same_end(tmp_path / "moved", tmp_path / "whole")
    assert samples(tmp_path / "moved.txt") == samples(tmp_path / "whole.txt")


@pytest.mark.parametrize("kind", SLOW[1:])
def test_killed_twice_in_one_step_and_once_in_the_next(start, run, tmp_path, trained_once, kind):
    args = [*TINY, *KINDS[kind], *SELDOM, "--checkpoints.every_n_steps", 3]
    for step in (7, 7, 8):
        assert start([*args, "--run_dir", tmp_path / "killed"], first=at_step(step)).wait() == -9
    run([*args, "--run_dir", tmp_path / "killed"])
    assert_same_end(tmp_path / "killed", trained_once(args))


@pytest.fixture
def whole(trained_once):
    return trained_once([*TINY, *EVERY_STEP])


def sweep(start, run, tmp_path, whole, hooks):
    """Kill a run once with each hook, each time where the life before it left off, then let it end."""
    args, killed = [*TINY, *EVERY_STEP, "--run_dir", tmp_path / "killed"], 0
    for hook in hooks:
        code = start(args, first=hook).wait()
        assert code in (-9, 0)
        killed += code == -9
        assert_sound(tmp_path / "killed")
    run(args)
    assert_same_end(tmp_path / "killed", whole)
    return killed


def test_killed_while_it_saves(start, run, tmp_path, whole):
    shares = (0, 0.001, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999, 1)
    hooks = [in_write(1 + i % 2, share) for i, share in enumerate(shares)]
    assert sweep(start, run, tmp_path, whole, hooks) == len(shares)


def test_killed_before_any_change_to_files(start, run, tmp_path, whole):
    assert sweep(start, run, tmp_path, whole, [before_change(n) for n in range(1, 40, 3)]) >= 10


@pytest.mark.parametrize("hook", ["on_validation_epoch_end", "on_test_epoch_end", "configure_optimizers"])
def test_killed_in_validation_test_and_while_it_resumes(start, run, tmp_path, whole, hook):
    number = 3 if hook == "on_validation_epoch_end" else 1
    hooks = [before_call(Classification, hook, number), before_call(Classification, hook, 1)]
    assert sweep(start, run, tmp_path, whole, hooks) == 2


@pytest.mark.parametrize("name", SETTINGS)
def test_killed_in_the_test_of_each_network(start, run, tmp_path, trained_once, name):
    args = SETTINGS[name]
    hook = before_call(Model, "on_test_epoch_end", 1)
    for _ in range(2):
        assert start([*args, "--run_dir", tmp_path / "killed"], first=hook).wait() == -9
    run([*args, "--run_dir", tmp_path / "killed"])
    assert_same_end(tmp_path / "killed", trained_once(args))


def test_early_stop_is_not_forgotten(start, run, tmp_path):
    args = [*TINY, *SELDOM, "--trainer.max_epochs", 9, "--trainer.callbacks", early_stopping(patience=1)]
    run([*args, "--run_dir", tmp_path / "whole"])
    args += ["--run_dir", tmp_path / "killed"]
    assert start(args, first=before_call(Classification, "on_test_epoch_end", 1)).wait() == -9
    run(args)
    assert_same_end(tmp_path / "killed", tmp_path / "whole")


def test_a_callback_that_comes_first_counts_right_after_a_resume(start, run, tmp_path):
    monitor = "[{class_path: lightning.pytorch.callbacks.LearningRateMonitor, init_args: {logging_interval: step}}]"
    args = [*TINY, *EVERY_STEP, "--trainer.callbacks", monitor]
    run([*args, "--run_dir", tmp_path / "whole"])
    for step in (2, 3, 6, 9):
        assert start([*args, "--run_dir", tmp_path / "killed"], first=at_step(step)).wait() == -9
    run([*args, "--run_dir", tmp_path / "killed"])
    assert sum(bool(row["lr-AdamW/pg1"]) for row in rows(tmp_path / "whole")) == 4
    assert_same_end(tmp_path / "killed", tmp_path / "whole")


def random_kills(start, run, tmp_path, args, kills):
    """Kill a run at random instants of its life, time and again; begin a new one where one came to its end."""
    rng, folder, t0 = random.Random(0), tmp_path / "killed", time.monotonic()
    run([*args, "--run_dir", tmp_path / "whole"])
    seconds, done, files = time.monotonic() - t0, 0, 0
    while done < kills:
        child = start([*args, "--run_dir", folder])
        time.sleep(rng.uniform(0, seconds))
        child.kill()
        if child.wait() == 0:
            assert_same_end(folder, tmp_path / "whole")
            shutil.rmtree(folder)
            continue
        assert child.code == -9, child.output
        done += 1
        if (folder / "checkpoints").exists():
            assert_sound(folder)
            files = max(files, len(list(folder.rglob("*"))))
    run([*args, "--run_dir", folder])
    assert_same_end(folder, tmp_path / "whole")
    assert files <= 30  # what killed processes leave does not pile up


def test_killed_at_random_instants(start, run, tmp_path):
    random_kills(start, run, tmp_path, [*TINY, *EVERY_STEP], kills=8)


@pytest.mark.long
@pytest.mark.parametrize("name", SETTINGS)
def test_killed_at_fifty_random_instants(start, run, tmp_path, name):
    random_kills(start, run, tmp_path, SETTINGS[name], kills=50)


# Forks


FORK = [*TINY, *EVERY_STEP, "--checkpoints.keep_last", 100]


@pytest.fixture
def origin(copied):
    return copied(FORK, "origin")


def test_a_fork_ends_like_the_run_it_is_from(start, run, tmp_path, origin):
    file, args = origin / "checkpoints/step-00000005.ckpt", [*FORK, "--run_dir", tmp_path / "fork"]
    fork = [*args, "--resume", file]
    child = start(fork, first=before_call(Classification, "training_step", 4))
    assert child.wait() == -9
    assert f"forked from {file}, going on after 5 steps" in child.output
    file.unlink()  # the fork does not need it any more
    output = run(fork)
    assert "going on after 7 steps" in output
    assert_same_end(tmp_path / "fork", origin)
    states = [json.loads((folder / "run.json").read_text()) for folder in (tmp_path / "fork", origin)]
    assert states[0]["origin"] == str(file)
    assert states[0]["wandb_id"] != states[1]["wandb_id"]
    assert "resume" not in (tmp_path / "fork/config.yaml").read_text()


@pytest.mark.parametrize("number", range(1, 6))
def test_a_fork_that_is_killed_while_it_copies_begins_anew(start, run, tmp_path, origin, number):
    """The best checkpoint of the origin is older than the one that is forked."""
    manifest = json.loads((origin / "checkpoints/step-00000006.json").read_text())
    assert manifest["best"] == "step-00000004.ckpt"
    fork = [*FORK, "--run_dir", tmp_path / "fork", "--resume", origin / "checkpoints/step-00000006.ckpt"]
    assert start(fork, first=dying_copy(number)).wait() == -9
    assert "after 6 steps" in run(fork)
    assert_same_end(tmp_path / "fork", origin)


def dying_copy(number):
    """A hook: die before the `number`-th change to files from when the fork begins to copy."""

    def first():
        fork = resume.fork

        def dying(file, folder):
            before_change(number)()
            return fork(file, folder)

        resume.fork = dying

    return first


def test_a_fork_by_another_metric_forgets_the_best_by_the_old_one(run, tmp_path, origin):
    by = ["--checkpoints.monitor", "val/acc", "--checkpoints.mode", "min", "--trainer.max_epochs", 4]
    run([*FORK, *by, "--resume", origin, "--run_dir", tmp_path / "fork"])
    best = json.loads((tmp_path / "fork/summary.json").read_text())["best"]
    assert best["step"] == 16  # val/loss is 2 and more, so no val/acc would be below
    assert 0 <= best["val/acc"] <= 1


def test_a_fork_of_a_finished_run_trains_on(run, tmp_path, origin):
    longer = [*FORK, "--trainer.max_epochs", 5]
    output = run([*longer, "--resume", origin, "--run_dir", tmp_path / "fork"])
    assert "trainer.max_epochs was 3, now 5" in output
    summary = json.loads((tmp_path / "fork/summary.json").read_text())
    assert (summary["steps"], summary["epochs"]) == (20, 5)
    rates = [row["optim/lr"] for row in rows(tmp_path / "fork") if row["optim/lr"]]
    assert float(rates[-2]) > 1e-4  # the schedule has the new length
    constant = [*FORK, "--model.schedule", "null"]
    run([*constant, "--run_dir", tmp_path / "short"])
    run([*constant, "--trainer.max_epochs", 5, "--run_dir", tmp_path / "whole"])
    on = ["--trainer.max_epochs", 5, "--resume", tmp_path / "short"]
    run([*constant, *on, "--run_dir", tmp_path / "on"])
    assert_same_end(tmp_path / "on", tmp_path / "whole")


def test_a_fork_with_more_patience_trains_longer(run, tmp_path):
    args = [*TINY, *SELDOM, "--trainer.max_epochs", 9, "--trainer.callbacks"]
    run([*args, early_stopping(patience=1), "--run_dir", tmp_path / "origin"])
    longer = [*args, early_stopping(patience=3)]
    run([*longer, "--run_dir", tmp_path / "whole"])
    run([*longer, "--resume", tmp_path / "origin", "--run_dir", tmp_path / "fork"])
    ends = [plain(torch.load(tmp_path / name / "checkpoints/last.ckpt")["state_dict"]) for name in ("fork", "whole")]
    assert not differences(*ends)
    again = run([*longer, "--resume", tmp_path / "fork", "--run_dir", tmp_path / "again"])  # nothing is left to do
    assert "going on after 16 steps" in again
    assert json.loads((tmp_path / "again/summary.json").read_text())["steps"] == 16


def test_a_fork_finds_a_run_whose_checkpoints_are_on_another_disk(run, tmp_path, origin):
    (origin / "checkpoints").rename(tmp_path / "scratch")
    (origin / "checkpoints").symlink_to(tmp_path / "scratch")
    output = run([*FORK, "--trainer.max_epochs", 4, "--resume", origin, "--run_dir", tmp_path / "fork"])
    assert "trainer.max_epochs was 3, now 4" in output
    assert len(rows(tmp_path / "fork")) > len(rows(origin))
    named = origin / "checkpoints/best.ckpt"
    assert "model.optimizer.lr was 0.01" in run([*FORK, "--resume", named, "--model.optimizer.lr", "0.1"], code=2)
    (tmp_path / "mine.ckpt").symlink_to(origin / "checkpoints/last.ckpt")
    assert "trainer.max_epochs was 3" in run(
        [*FORK, "--trainer.max_epochs", 4, "--resume", tmp_path / "mine.ckpt", "--run_dir", tmp_path / "linked"]
    )


def test_a_lone_checkpoint_can_be_forked(run, tmp_path, origin):
    shutil.copy(origin / "checkpoints/step-00000007.ckpt", tmp_path / "lone.ckpt")
    output = run([*FORK, "--resume", tmp_path / "lone.ckpt", "--run_dir", tmp_path / "fork"])
    assert "going on after 7 steps" in output
    ends = [torch.load(f / "checkpoints/last.ckpt", weights_only=True) for f in (tmp_path / "fork", origin)]
    assert not differences(plain(ends[0]["state_dict"]), plain(ends[1]["state_dict"]))
    shutil.copy(origin / "checkpoints/step-00000012.ckpt", tmp_path / "end.ckpt")
    run([*FORK, "--resume", tmp_path / "end.ckpt", "--run_dir", tmp_path / "end"])  # nothing is left to train


def test_resume_names_the_run_itself(start, run, tmp_path, origin):
    args = [*FORK, "--run_dir", tmp_path / "run"]
    assert start(args, first=before_call(Classification, "training_step", 7)).wait() == -9
    for named in (tmp_path / "run", tmp_path / "run/checkpoints/step-00000002.ckpt"):
        assert "holds a run already -> leave --resume out" in run([*args, "--resume", named], code=2)
    assert "going on after" in run(args)
    assert_same_end(tmp_path / "run", origin)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_resume_that_cannot_be(run, tmp_path, origin):
    to = ["--run_dir", tmp_path / "new"]
    assert "holds a run already" in run([*FORK, "--resume", "none", "--run_dir", origin], code=2)
    file = origin / "checkpoints/step-00000005.ckpt"
    another = [*FORK, "--run_dir", tmp_path / "another", "--resume", file]
    run(another)
    assert "holds a run already" in run([*another[:-1], origin], code=2)
    assert "no such checkpoint" in run([*FORK, *to, "--resume", tmp_path / "nowhere"], code=4)
    assert "neither a run folder" in run([*FORK, *to, "--resume", tmp_path], code=4)
    output = run([*FORK, *to, "--resume", file, "--model.optimizer.lr", "0.1"], code=2)
    assert "model.optimizer.lr was 0.01, now 0.1" in output
    flip(file)
    output = run([*FORK, *to, "--resume", file], code=4)
    assert f"checkpoint {file}: its bytes are not those that were written" in output
    for name in ("metrics.csv", "config.yaml"):
        assert "not a file that can be read safely" in run([*FORK, *to, "--resume", origin / name], code=4)
    assert not (tmp_path / "new").exists()
    output = run([*FORK, *to, "--resume", origin, "--model.network.widths", "[17,8,8]"], code=4)
    line = output.splitlines()[-1]
    sizes = r"torch\.Size\(\[16, 64\]\) from checkpoint, the shape in current model is torch\.Size\(\[17, 64\]\)"
    assert re.search(rf"size mismatch for network\.\S+weight: copying a param with shape {sizes}\.; ", line), line
    assert "Missing key(s) in state_dict: " in line
    assert line.endswith(" -> take its config, or another checkpoint")
    assert len(line) < 1200


def test_a_checkpoint_of_another_schema(run, tmp_path, origin):
    saved = torch.load(origin / "checkpoints/last.ckpt", weights_only=True)
    for name, change in (("other", {"schema": 99}), ("foreign", {"schema": None})):
        torch.save({**saved, **change}, tmp_path / f"{name}.ckpt")
        output = run([*FORK, "--resume", tmp_path / f"{name}.ckpt", "--run_dir", tmp_path / "new"], code=4)
        assert f"schema {change['schema']}, not" in output


def test_auto_says_that_it_starts_from_scratch(run, tmp_path):
    assert "starting from scratch" in run([*TINY, "--run_dir", tmp_path / "run"]).splitlines()[0]


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("ModelCheckpoint", "the section checkpoints"),
        ("OnExceptionCheckpoint", "the section checkpoints"),
        ("StochasticWeightAveraging", "the section ema"),
        ("GradientAccumulationScheduler", "data.micro_batch_size"),
    ],
)
def test_callbacks_that_could_not_go_on_are_refused(run, tmp_path, name, instead):
    needs = {"OnExceptionCheckpoint": {"dirpath": "x"}, "StochasticWeightAveraging": {"swa_lrs": 0.1}}
    needs["GradientAccumulationScheduler"] = {"scheduling": {0: 2}}
    callback = json.dumps(
        [{"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": needs.get(name, {})}]
    ).replace('"0"', "0")
    output = run([*TINY, "--trainer.callbacks", callback, "--run_dir", tmp_path / "run"], code=2)
    assert output.splitlines()[-1] == f"error: trainer.callbacks: {name} -> use {instead} instead"
