import csv
import json
import resource  # kind: text
import time  # kind: text

import torch
from conftest import DIGITS, SMALL

import src.train  # kind: text


def test_a_run_leaves_a_whole_folder(run, tmp_path):
    output = run([*SMALL, "--run_dir", tmp_path / "run"])
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["steps"] == 60
    assert summary["test/acc"] > 0.5
    assert f"acc {summary['test/acc']:.4f}" in output
    assert summary["best"]["step"] <= 60
    assert f"best      step {summary['best']['step']}, val/loss {summary['best']['val/loss']:.4g}" in output
    with open(tmp_path / "run/metrics.csv") as f:
        rows = list(csv.DictReader(f))
    assert [row["step"] for row in rows if row["val/acc"]] == ["19", "39", "59"]
    for name in ("best", "last"):
        assert "state_dict" in torch.load(tmp_path / f"run/checkpoints/{name}.ckpt", weights_only=True)


def test_a_finished_run_is_left_alone(run, tmp_path, copied):
    copied(SMALL)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    assert "finished" in run([*SMALL, "--run_dir", tmp_path / "run"])
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


def test_another_config_is_refused(run, tmp_path, copied):
    copied(SMALL)
    output = run([*SMALL, "--run_dir", tmp_path / "run", "--data.batch_size", "32"], code=2)
    assert "data.batch_size was 64, now 32" in output


# kind: text
def test_seven_billion_parameters_are_counted_in_seconds_and_little_memory(run, tmp_path):
    def dry_run(args):
        code = src.train.main(args)
        print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # KiB
        return code

    files = ["--config", "configs/experiment/text_gpt.yaml", "--config", "configs/network/gpt_7b.yaml"]
    t0 = time.monotonic()
    output = run([*files, "--dry_run", "--run_dir", tmp_path / "run"], command=dry_run)
    assert time.monotonic() - t0 < 60
    assert int(output.split("peak ")[1]) < 2 * 1024**2
    dim, depth, vocab_size = 4096, 34, 256
    # The embedding, which is the last layer too; in each block 12 dim^2 and two norms; a norm at the end.
    by_hand = vocab_size * dim + depth * (12 * dim**2 + 2 * dim) + dim
    assert f"GPT, {by_hand:,} parameters" in output
    assert 6.5e9 < by_hand < 7.5e9
    for name in ("data", "steps", "compute", "device"):
        assert f"\n{name} " in output
    assert not (tmp_path / "run").exists()


# end


def test_a_dry_run_counts_what_a_run_counts_and_leaves_nothing(run, tmp_path):
    output = run([*SMALL, "--dry_run", "--run_dir", tmp_path / "run"])
    assert not (tmp_path / "run").exists()
    *plan, memory = output.splitlines()
    assert memory.startswith("memory    ")  # so short a run does not wait for it
    assert plan == run([*SMALL, "--run_dir", tmp_path / "run"]).splitlines()[1 : len(plan) + 1]


def test_a_dry_run_shares_the_states_under_fsdp(run):
    two = ["--model.network.widths", "[512,512]", "--trainer.accelerator", "cpu", "--trainer.devices", "2", "--dry_run"]
    assert ", weights 1.1 MiB" in run([*SMALL, *two])
    output = run([*SMALL, *two, "--trainer.strategy", "src.strategies.fsdp.FSDP"])
    assert ", weights 0.6 MiB" in output
    assert "gathered " in output


# kind: images
def test_a_dry_run_makes_a_network_that_cannot_be_made_without_numbers(run):
    network = ["--data.channels", "3", "--model.network", "torchvision.models.regnet_y_400mf"]
    assert "network   RegNet, 3,907,554 parameters" in run([*DIGITS, *network, "--dry_run"])


def test_a_dry_run_of_a_wrong_network_says_what_is_wrong(run):
    network = ["--data.channels", "3", "--model.network", "torchvision.models.regnet_y_400mf"]
    wrong = [*network, "--model.network.num_classes", "7", "--dry_run"]
    assert "model.network.num_classes: 7 in the config, 10 in the data" in run([*DIGITS, *wrong], code=2)


# end
