import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, SMALL

from src import runs, train
from src.loggers.curves import read_curves, whole_rows
from src.run.command import run_command


@pytest.fixture
def trained(copied, tmp_path):
    for name, flags in {"a": [], "b": ["--seed_everything", 1], "c": ["--data.batch_size", 32]}.items():
        copied([*SMALL, *flags, "--trainer.max_epochs", 1], f"logs/{name}")
    return tmp_path / "logs"


def row(output: str, name: str) -> list[str]:
    return next(line for line in output.splitlines() if line.startswith(name)).split()


def test_side_by_side(trained, run):
    output = run([trained / "a", trained / "c", "--output", trained / "c.png"], command=runs.main)
    assert row(output, "data.batch_size") == ["data.batch_size", "64", "32"]
    a, c = (json.loads((trained / name / "summary.json").read_text()) for name in "ac")
    assert row(output, "test/acc") == ["test/acc", f"{a['test/acc']:.4g}", f"{c['test/acc']:.4g}"]
    assert (trained / "c.png").read_bytes().startswith(b"\x89PNG")


def test_runs_that_differ_in_their_seed_are_one_column(trained, run):
    output = run([trained / "a", trained / "b"], command=runs.main)
    assert "data.seed" not in output
    accs = [json.loads((trained / name / "summary.json").read_text())["test/acc"] for name in "ab"]
    shown = row(output, "test/acc")
    assert float(shown[1]) == pytest.approx(np.mean(accs), rel=1e-3)
    assert float(shown[3]) == pytest.approx(np.std(accs, ddof=1), rel=0.05, abs=1e-12)
    assert shown[4] == "(n=2)"
    assert (trained / "b/compare.png").exists()


def test_found_by_config_and_metrics(trained, run):
    def listed(*flags):
        lines = run([trained, "--csv", trained.parent / "all.csv", *flags], command=runs.main).splitlines()
        return [line.split("/")[-1][0] for line in lines[1:] if line.startswith(str(trained))]

    loss = {name: json.loads((trained / name / "summary.json").read_text())["test/loss"] for name in "abc"}
    by_loss = sorted("abc", key=loss.get)
    assert listed("--sort", "test/loss") == by_loss
    assert listed("--sort", "-test/loss") == by_loss[::-1]
    assert listed("--filter", "data.batch_size=64") == ["a", "b"]
    assert listed("--filter", "data.batch_size!=64", "--filter", "status=finished") == ["c"]
    assert listed("--filter", f"test/loss<{loss[by_loss[1]]}") == by_loss[:1]
    assert listed("--filter", "model.network=*MLP", "--filter", "seed_everything>0") == ["b"]
    assert listed("--filter", "model.network.widths=[32, 16]", "--filter", "model.init_from=null") == ["a", "b", "c"]
    with open(trained.parent / "all.csv", newline="") as f:
        first = next(csv.DictReader(f))
    assert first["run"] == str(trained / "a")
    assert float(first["test/loss"]) == loss["a"]
    assert {"status", "data.batch_size", "seed_everything", "val/loss"} <= first.keys()
    assert "model.network.dropout" not in first  # in which no two differ


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--sort", "acc"], "--sort acc: no run has such a key or metric; did you mean test/acc?"),
        (
            ["--filter", "data.batchsize=1"],
            "--filter data.batchsize: no run has such a key or metric; did you mean data.b",
        ),
        (["--best", "val/los"], "did you mean val/loss?"),
        (["--best", "data.batch_size"], "not a number of which more or less is better -> --sort"),
        (["--group", "data.nope"], "--group data.nope: no run has such a key"),
        (["--filter", "test/acc"], "not a condition -> NAME=VALUE"),
        (["--filter", "test/acc>high"], "not a condition -> NAME=VALUE"),
        (["--x", "nope"], "invalid choice: 'nope'"),
    ],
)
def test_a_name_that_no_run_knows(flags, says, trained, run):
    output = run([trained, *flags], command=runs.main, code=2)
    assert says in output
    assert output.count("\n") == 1


def test_no_run_is_left(trained, run):
    output = run([trained, "--filter", "status=nope", "--best", "test/acc"], command=runs.main, code=4)
    assert output == "error: --filter status=nope: no run is left -> name another value\n"


def test_the_best_is_a_path_alone(trained, run):
    summaries = {name: json.loads((trained / name / "summary.json").read_text()) for name in "abc"}
    least = min("abc", key=lambda name: summaries[name]["best"]["val/loss"])
    assert run([trained, "--best", "val/loss"], command=runs.main) == f"{trained / least}\n"
    most = max("abc", key=lambda name: summaries[name]["test/acc"])
    best = run([trained, "--best", "test/acc"], command=runs.main).strip()
    assert summaries[best[-1]]["test/acc"] == summaries[most]["test/acc"]
    for name in "abc":  # a metric of which nobody knows which is better, but the config does
        summary = summaries[name] | {"test/glow": {"a": 1.0, "b": 3.0, "c": 2.0}[name]}
        (trained / name / "summary.json").write_text(json.dumps(summary))
        config = (trained / name / "config.yaml").read_text()
        changed = config.replace("monitor: val/loss", "monitor: val/glow").replace("mode: min", "mode: max")
        (trained / name / "config.yaml").write_text(changed)
    assert run([trained, "--best", "test/glow"], command=runs.main) == f"{trained / 'b'}\n"


def test_groups_of_a_key(trained, run):
    output = run([trained, "--group", "data.batch_size", "--x", "samples"], command=runs.main)
    accs = {name: json.loads((trained / name / "summary.json").read_text())["test/acc"] for name in "abc"}
    shown = row(output, "test/acc")
    assert [float(shown[1]), float(shown[-1])] == pytest.approx([(accs["a"] + accs["b"]) / 2, accs["c"]], rel=1e-3)
    assert "(n=2)" in shown


def test_a_report_of_groups_prints_their_mean_too(trained, run):
    output = run([trained, "--group", "data.batch_size", "--html", trained / "r.html"], command=runs.main)
    assert "(n=2)" in row(output, "test/acc")


def test_many_runs_are_drawn_in_part_and_numbers_are_short(trained, run):
    for i in range(14):
        shutil.copytree(trained / "a", trained / f"many/{i:02}")
        config = trained / f"many/{i:02}/config.yaml"
        lr = f"lr: 0.00{i + 11}622776601683794"
        config.write_text(re.sub(r"lr: \S+", lr, config.read_text(), count=1))
    output = run([trained / "many"], command=runs.main)
    assert "Of 14 groups the first 12 are drawn" in output
    assert row(output, "model.optimizer.lr")[1] == "0.001162"
    assert "Warning" not in output
    output = run([trained / "many", "--group", "model.optimizer.lr"], command=runs.main)
    assert row(output, "metric")[1] == "0.001162"


def test_what_curves_are_drawn_over(trained, run):
    rows = whole_rows(trained / "c/metrics.csv")
    assert [float(row["perf/samples"]) for row in rows[:2]] == [20 * 32, 40 * 32]
    assert float(rows[0]["perf/flops"]) == 3 * 20 * 32 * 2 * (64 * 32 + 32 * 16 + 16 * 10)
    assert 0 < float(rows[0]["perf/seconds"]) < float(rows[-1]["perf/seconds"]) < 60
    for axis in ("step", "samples", "time", "flops"):
        run([trained / "a", trained / "c", "--x", axis], command=runs.main)
    for name in "ac":
        text = (trained / name / "metrics.csv").read_text()
        (trained / name / "metrics.csv").write_text(text.replace("perf/seconds", "perf/other"))
    output = run([trained / "a", trained / "c", "--x", "time"], command=runs.main, code=2)
    assert "--x time: no run has recorded that -> --x step" in output


def test_a_damaged_run_breaks_no_list(trained, run):
    (trained / "a/config.yaml").write_bytes(b"\xff{")
    (trained / "a/metrics.csv").write_text("step,train/loss,val/loss\n1,x,y\n")
    (trained / "b/summary.json").write_text("[1, 2")
    (trained / "c/run.json").write_text("[]")
    output = run([trained], command=runs.main)
    assert row(output, str(trained / "b"))[1:3] == ["cut", "short"]
    assert run([trained, "--sort", "val/loss", "--csv", trained / "t.csv"], command=runs.main).count("finished") == 2
    assert run([trained, "--filter", "data.batch_size=32"], command=runs.main).count("finished") == 1
    run([trained, "--html", trained / "t.html"], command=runs.main)


def test_the_time_of_a_run_that_went_on_names_its_first_step(start, run, tmp_path):
    args = [*SMALL, "--trainer.max_epochs", 1000, "--run_dir", tmp_path / "run"]
    child = start(args)
    child.wait_for(tmp_path / "run/checkpoints/last.ckpt")
    child.kill(signal.SIGTERM)
    assert child.wait() == 143
    steps = json.loads((tmp_path / "run/summary.json").read_text())["steps"]
    before = float(whole_rows(tmp_path / "run/metrics.csv")[-1]["perf/seconds"])
    child = start(args)
    while int(whole_rows(tmp_path / "run/metrics.csv")[-1]["step"]) < steps + 40:
        time.sleep(0.05)
    child.kill(signal.SIGTERM)
    assert child.wait() == 143
    assert f" s from step {steps}" in run([tmp_path / "run"], command=runs.main)
    rows = whole_rows(tmp_path / "run/metrics.csv")
    seconds = [float(row["perf/seconds"]) for row in rows]
    assert seconds == sorted(seconds)
    assert before < seconds[-1]
    assert [float(row["perf/samples"]) for row in rows] == [(int(row["step"]) + 1) * 64 for row in rows]


def other_code(folder):
    state = json.loads((folder / "run.json").read_text())
    state["code"]["src_sha256"] = "0" * 64
    (folder / "run.json").write_text(json.dumps(state))


def test_runs_of_one_seed_or_of_other_code_are_not_other_seeds(trained, run):
    for name in ("again", "edited"):
        shutil.copytree(trained / "a", trained / name)
    output = run([trained / "a", trained / "again"], command=runs.main)
    assert "the same config and code" in output
    assert row(output, "B:") == ["B:", str(trained / "again")]
    other_code(trained / "edited")
    output = run([trained / "a", trained / "edited"], command=runs.main)
    own = json.loads((trained / "a/run.json").read_text())["code"]["src_sha256"]
    assert row(output, "code") == ["code", "(src_sha256)", own[:8], "00000000"]
    assert "the same config" not in output
    assert "(n=2)" not in output
    output = run([trained / name for name in ("a", "edited", "b", "again")], command=runs.main)
    assert row(output, "A:")[2:] == ["and", "1", "more"]
    assert row(output, "seed_everything") == ["seed_everything", "0,1", "0", "0"]
    other_code(trained / "b")
    output = run([trained / "a", trained / "b"], command=runs.main)
    assert row(output, "seed_everything") == ["seed_everything", "0", "1"]
    assert "(n=2)" not in output


def leave():
    """As `head` does: whoever reads standard output is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_reads_any_more_ends_quietly(trained, unbuffered):
    command = [sys.executable, "-m", "src.runs", trained / "a", trained / "c"]
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, cwd=ROOT, env=env, preexec_fn=leave, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("flag", ["--dry_run", "--help"])
def test_plans_that_nobody_reads_end_quietly(run, flag):
    assert run([*SMALL, flag], command=train.main, first=leave, code=141) == ""


def test_another_pipe_that_breaks_is_told(run):
    def broken(args):
        raise BrokenPipeError(32, "Broken pipe")

    assert "Traceback" in run([], command=lambda args: run_command(broken, args), code=1)


def test_why_a_run_stopped(start, run, tmp_path):
    child = start([*SMALL, "--trainer.max_epochs", 1000, "--run_dir", tmp_path / "run"])
    while not (tmp_path / "run/metrics.csv").exists():
        time.sleep(0.05)
    assert row(run([tmp_path / "run"], command=runs.main), str(tmp_path))[1] == "training"
    child.kill(signal.SIGTERM)
    assert child.wait() == 143
    output = run([tmp_path / "run"], command=runs.main)
    assert row(output, str(tmp_path))[1] == "stopped"
    assert "exit code 143: after" in output
    assert "SIGTERM" in output


def test_a_run_that_was_killed_is_cut_short(start, run, tmp_path):
    child = start([*SMALL, "--trainer.max_epochs", 1000, "--run_dir", tmp_path / "run"])
    child.wait_for(tmp_path / "run/checkpoints/last.ckpt")
    child.kill()
    child.wait()
    steps = int((tmp_path / "run/checkpoints/last.ckpt").resolve().stem.removeprefix("step-"))
    output = run([tmp_path / "run"], command=runs.main)
    assert row(output, str(tmp_path))[1:] == f"cut short {steps} the same command goes on".split()
    assert [line for line in output.splitlines() if line != line.rstrip()] == []
    shutil.rmtree(tmp_path / "run/checkpoints")
    assert "the same command begins again" in run([tmp_path / "run"], command=runs.main)


def test_no_run_is_one_line(run, tmp_path):
    assert run([tmp_path], command=runs.main, code=4).startswith(f"error: {tmp_path}: no run is here")
    assert "must end in .png" in run([tmp_path, "--output", "x.jpg"], command=runs.main, code=2)


def test_curves_are_read_from_metrics(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,epoch,train/loss,val/loss\n0,0,2.5,\n1,0,1.5,3.0\n2,0,")
    curves = read_curves(tmp_path, ("train/", "val/"))
    assert {name: (s.tolist(), v.tolist()) for name, (s, v) in curves.items()} == {
        "train/loss": ([0, 1], [2.5, 1.5]),
        "val/loss": ([1], [3.0]),
    }


def test_the_viewer_names_the_runs(tmp_path):
    """wandb's viewer lists folders run-TIME-NAME, and finds run-NAME.wandb in each; this one prints what it gets."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / "requirements.lock").touch()
    (tmp_path / ".venv/ready").touch()
    viewer = tmp_path / ".venv/bin/wandb"
    viewer.write_text(
        '#!/bin/sh\nfor f in "$2"/*/*.wandb; do echo "$1 ${f#"$2"/} $(cat "$f")"; done; cat "$2"/*/files/*\n'
    )
    viewer.chmod(0o755)
    view = ["make", "-s", "-C", tmp_path, "view"]
    assert subprocess.run(view, capture_output=True, text=True).stderr.startswith("error: no run is in logs/ yet")
    records = {
        "mlp/first": "20260131_120000-a",
        "mlp/2026-02-28_12-00-00_2": "20260228_120000-b",
        "gpt/x/seed-0": "20260101_120000-c",
    }
    for run, record in records.items():
        folder = tmp_path / f"logs/{run}/wandb/offline-run-{record}"
        (folder / "files").mkdir(parents=True)
        (folder / f"run-{record[-1]}.wandb").write_text(f"record {record[-1]}")
        (folder / "files/picture.png").write_text(f"picture {record[-1]}\n")
    for _ in range(2):  # the second time the folder is there already
        done = subprocess.run(view, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [
            "leet run-20260101_120000-gpt.x.seed-0/run-gpt.x.seed-0.wandb record c",
            "leet run-20260131_120000-mlp.first/run-mlp.first.wandb record a",
            "leet run-20260228_120000-mlp/run-mlp.wandb record b",
            *(f"picture {name}" for name in "cab"),
        ]


def test_make_seeds_trains_with_each_seed_then_compares_them(tmp_path):
    """This Python prints what it gets, and fails where that has a word that it is told."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / "requirements.lock").touch()
    (tmp_path / ".venv/ready").touch()
    python = tmp_path / ".venv/bin/python"
    python.write_text('#!/bin/sh\necho "$@"\ncase "$*" in *$BAD*) exit 143;; esac\n')
    python.chmod(0o755)
    seeds = ["make", "-s", "-C", tmp_path, "seeds", "CONFIG=configs/experiment/x.yaml", "SEEDS=0 5", "ARGS=--a 1"]
    done = subprocess.run(seeds, env={**os.environ, "BAD": "none"}, capture_output=True, text=True)
    train = "-m src.train --config configs/experiment/x.yaml --a 1 --seed_everything"
    trained = [f"{train} {seed} --run_dir logs/x/seed-{seed}" for seed in (0, 5)]
    assert done.stdout.splitlines() == [*trained, "-m src.runs logs/x/seed-0 logs/x/seed-5"]
    done = subprocess.run(seeds, env={**os.environ, "BAD": "seed-0"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()) == (2, trained[:1])
    assert "Error 143" in done.stderr


def test_brackets_in_an_error_are_shown(run, tmp_path):
    run([*SMALL, "--trainer.max_steps", 2, "--run_dir", tmp_path / "runs/one"])
    summary = tmp_path / "runs/one/summary.json"
    ended = json.loads(summary.read_text()) | {"status": "failed", "exit_code": 3, "error": "-> data.drop: [net], or"}
    summary.write_text(json.dumps(ended))
    assert "-> data.drop: [net], or" in run([tmp_path / "runs"], command=runs.main)
