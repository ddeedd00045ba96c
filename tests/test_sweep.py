import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import yaml
from conftest import SMALL
from processes import exit_code, write_to

import src.sweep

RATES = "model.optimizer.lr: {low: 3.0e-4, high: 3.0e-2, log: true}"


class Forked:
    """In place of `subprocess.Popen`: the command in a process that is forked from this one, which has loaded torch."""

    def __init__(self, command, stdout, env, preexec_fn, **_):
        self.returncode = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                preexec_fn()
                write_to(Path(stdout.name))
                os.environ.clear()
                os.environ.update(env)
                os._exit(exit_code(import_module(command[2]).main, command[3:]))
            finally:
                os._exit(1)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout=240):
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("forked", timeout)
            time.sleep(0.01)
        return self.returncode

    def terminate(self, signum=signal.SIGTERM):
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self):
        self.terminate(signal.SIGKILL)


def hasten() -> None:
    src.sweep.POLL_SEC = 0.02
    how = {name: getattr(subprocess, name) for name in ("DEVNULL", "STDOUT", "TimeoutExpired", "getstatusoutput")}
    src.sweep.subprocess = SimpleNamespace(Popen=Forked, **how)


@pytest.fixture
def sweep(tmp_path):
    """sweep(text, *flags) -> arguments of a sweep with this file."""

    def arguments(text, *flags):
        file = tmp_path / "sweep.yaml"
        file.write_text(text)
        return [*SMALL, "--sweep", file, "--run_dir", tmp_path / "found", *flags]

    return arguments


HOW = {"command": src.sweep.main, "first": hasten}


def trials(folder: Path) -> list:
    study = optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder}/study.db")
    return src.sweep.counted(study)


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(condition, timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_trial_out_of_memory_is_on_record_and_the_best_trains(run, sweep, tmp_path):
    text = "num_trials: 9\nsampler: {name: BruteForceSampler, seed: 0}\nspace: {model.network.widths: {choices: %s}}\n"
    args = sweep(text % "[[8], [16, 8], [4000000000]]")
    output = run(args, **HOW)
    found = trials(tmp_path / "found")
    assert sorted(one.state.name for one in found) == ["COMPLETE", "COMPLETE", "FAIL"]  # through all there is, not 9
    (failed,) = [one for one in found if one.state.name == "FAIL"]
    assert failed.params == {"model.network.widths": "[4000000000]"}
    assert failed.user_attrs["why"].startswith("exit code 75: out of memory")
    assert failed.user_attrs["why"] in output
    assert "Traceback" not in output
    best = min((one for one in found if one.value is not None), key=lambda one: one.value)
    first = next(line for line in output.splitlines() if line.startswith("trial-"))
    assert first.split()[:4] == [f"trial-{best.number:04d}", "complete", "val/loss", f"{best.value:.4g}"]
    for name in ("optimization_history", "parallel_coordinate"):
        assert (tmp_path / "found" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    config = yaml.safe_load((tmp_path / "found/best.yaml").read_text())
    assert config["model"]["init_args"]["network"]["init_args"]["widths"] == yaml.safe_load(
        best.params["model.network.widths"]
    )
    run(["--config", tmp_path / "found/best.yaml", "--trainer.max_steps", "2", "--run_dir", tmp_path / "run"])
    again = run(args, **HOW)
    assert "of 9" not in again
    assert first in again
    assert max(map(len, again.splitlines())) < 250  # reasons are cut
    other = run(sweep(text % "[[8], [16, 8]]"), code=2, **HOW)
    assert "holds another sweep (space.model.network.widths was CategoricalDistribution(choices=('[8]'," in other
    other = run(sweep(text % "[[8], [16, 8], [4000000000]]", "--data.batch_size", "32"), code=2, **HOW)
    assert "data.batch_size was 64, now 32" in other


def test_a_trial_that_is_killed_is_survived(start, sweep, tmp_path):
    child = start(sweep(f"num_trials: 2\nspace: {{{RATES}}}\n", "--trainer.max_epochs", "8"), **HOW)
    child.wait_for(tmp_path / "found/trial-0000/metrics.csv")
    (trial,) = children(child.pid)
    os.kill(trial, signal.SIGKILL)
    assert child.wait() == 0, child.output
    assert [one.state.name for one in trials(tmp_path / "found")] == ["FAIL", "COMPLETE"]
    assert "killed by SIGKILL" in child.output


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_a_sweep_that_is_stopped_goes_on_as_if_it_was_not(start, run, sweep, tmp_path, signum):
    args = sweep(f"num_trials: 3\nsampler: {{name: RandomSampler}}\nspace: {{{RATES}}}\n", "--trainer.max_epochs", "8")
    child = start(args, **HOW)
    child.wait_for(tmp_path / "found/trial-0001/metrics.csv")
    (trial,) = children(child.pid)
    child.kill(signum)
    assert child.wait() == (-signum if signum == signal.SIGKILL else 130)
    assert ("-> same command again" in child.output) == (signum == signal.SIGINT)
    wait_until(lambda: not alive(trial), timeout=5)  # nothing is orphaned
    run(args, **HOW)
    whole = [*args[:-4], "--run_dir", tmp_path / "whole", *args[-2:]]
    run(whole, **HOW)
    one, other = trials(tmp_path / "found"), trials(tmp_path / "whole")
    assert [t.state.name for t in one] == [t.state.name for t in other] == ["COMPLETE"] * 3
    key = "model.optimizer.lr"
    assert [(t.params[key], t.value) for t in one] == [(t.params[key], t.value) for t in other]
    assert len(list((tmp_path / "found").glob("trial-*/"))) == 3  # what was cut short went on in its folder


def test_pruned_and_not_finite(run, sweep, tmp_path):
    text = "num_trials: 3\nsampler: {name: BruteForceSampler}\npruner: {name: ThresholdPruner, upper: 2.2, "
    text += "n_warmup_steps: 4}\nspace: {model.optimizer.lr: {choices: [1.0e-2, 1.0e-9, 1.0e+30]}}\n"
    output = run(sweep(text, "--trainer.max_epochs", "60"), **HOW)
    found = {one.params["model.optimizer.lr"]: one for one in trials(tmp_path / "found")}
    assert {rate: one.state.name for rate, one in found.items()} == {1e-2: "COMPLETE", 1e-9: "PRUNED", 1e30: "FAIL"}
    assert found[1e30].user_attrs["why"].startswith("exit code 5: ")
    assert "1 complete" in output
    steps = len(found[1e-9].intermediate_values)
    assert 4 < steps < 60
    summary = yaml.safe_load((tmp_path / f"found/trial-{found[1e-9].number:04d}/summary.json").read_text())
    assert summary["status"] == "stopped"
    assert summary["steps"] < 60 * 20


def test_two_workers_and_a_second_command_share_a_study(start, sweep, tmp_path):
    text = f"num_trials: 6\nsampler: {{name: RandomSampler}}\nspace: {{{RATES}}}\n"
    args = sweep(text, "--trainer.max_epochs", "20")
    both = [start([*args, "--workers", "2"], **HOW), start(args, **HOW)]
    for child in both:
        assert child.wait() == 0, child.output
    found = trials(tmp_path / "found")
    assert [one.state.name for one in found] == ["COMPLETE"] * 6
    assert len({one.params["model.optimizer.lr"] for one in found}) == 6
    at_once = [sum(a.datetime_start <= b.datetime_start < a.datetime_complete for a in found) for b in found]
    assert max(at_once) == 3
    log = (tmp_path / "found/worker-1.log").read_text()
    assert " of 6  trial-" in log


def test_what_a_lost_helper_had_begun_is_done_by_the_others(start, sweep, tmp_path):
    text = f"num_trials: 2\nspace: {{{RATES}}}\n"
    child = start(sweep(text, "--workers", "2", "--trainer.max_epochs", "20"), **HOW)
    child.wait_for(tmp_path / "found/trial-0000/metrics.csv")
    child.wait_for(tmp_path / "found/trial-0001/metrics.csv")
    (helper,) = [pid for pid in children(child.pid) if children(pid)]
    os.kill(helper, signal.SIGSTOP)
    wait_until(lambda: " of 2  trial-" in child.output)  # from now on it waits for the helper
    os.kill(helper, signal.SIGKILL)
    assert child.wait() == 0, child.output
    assert "worker-1.log: killed by SIGKILL" in child.output
    assert [one.state.name for one in trials(tmp_path / "found")] == ["COMPLETE"] * 2


def test_a_trial_that_another_process_has_ended_is_left_to_it(start, sweep, tmp_path):
    child = start(sweep(f"num_trials: 1\nspace: {{{RATES}}}\n", "--trainer.max_epochs", "80"), **HOW)
    child.wait_for(tmp_path / "found/trial-0000/metrics.csv")
    study = optuna.load_study(study_name="found", storage=f"sqlite:///{tmp_path}/found/study.db")
    study.tell(0, state=optuna.trial.TrialState.FAIL)
    assert child.wait() == 0, child.output
    assert "taken over by another process" in child.output
    assert [one.state.name for one in study.trials] == ["FAIL", "COMPLETE"]


def loading_ranks(sweep: int) -> list[int]:
    """Processes that Lightning has started for the trial of a sweep, and that load torch."""
    found = []
    for pid in [child for trial in children(sweep) for child in children(trial)]:
        with suppress(OSError):  # a short one, such as git
            folder = Path(f"/proc/{pid}")
            if b"LOCAL_RANK=1" in (folder / "environ").read_bytes() and "libtorch" in (folder / "maps").read_text():
                found.append(pid)
    return found


def test_ranks_of_a_trial_end_with_the_sweep_before_they_have_met(sweep):
    flags = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
    args = [str(one) for one in sweep(f"num_trials: 1\nspace: {{{RATES}}}\n", *flags)]
    with subprocess.Popen([sys.executable, "-m", "src.sweep", *args]) as process:
        found: list[int] = []
        wait_until(lambda: found.extend(loading_ranks(process.pid)) or found)
        process.kill()
    wait_until(lambda: not alive(found[0]), timeout=5)


def test_a_sampler_or_pruner_may_be_named_alone(run, sweep):
    assert "1 complete" in run(sweep(f"{GOOD}sampler: RandomSampler\npruner: MedianPruner\n"), **HOW)


GOOD = f"num_trials: 1\nspace: {{{RATES}}}\n"


@pytest.mark.parametrize(
    ("text", "flags", "line"),
    [
        ("num_trials: 1\nspace: {model.network.width: {choices: [1]}}", "", "width: unknown key; did you mean widths?"),
        ("num_trials: 1\nspace: {modle.lr: {choices: [1]}}", "", "unknown key modle; did you mean model?"),
        ("num_trials: 1\nspace: {model.network.dropout: {}}", "", "'low' and 'high' -> {low: A, high: B}"),
        ("num_trials: 1\nspace: {model.network.dropout: {choices: []}}", "", "one or more elements. -> {low"),
        ("num_trials: 1\nspace: {model.network.dropout: {low: 0.5, high: 0.1}}", "", "`low <= high` must hold"),
        ("num_trials: 1\nspace: {data.batch_size: {low: 0.5, high: 0.7}}", "", "batch_size: expected int, not 0.5"),
        ("num_trials: 1\nspace: {model: {choices: [no.Such]}}", "", "sweep.yaml:2: model: no.Such is not among"),
        ("spce: {}", "", "unknown key spce; did you mean space?"),
        ("space: {model.optimizer: {choices: [torch.optim.AdamWW]}}", "", "optimizer: module 'torch.optim' has no att"),
        (f"{GOOD}sampler: BruteForceSampler", "", "sampler: BruteForceSampler: FloatDistribution.step must be given"),
        (f"{GOOD}sampler: {{name: TPESample}}", "", "did you mean TPESampler?"),
        (
            f"{GOOD}sampler: {{name: TPESampler, sed: 1}}",
            "",
            "TPESampler.__init__() got an unexpected keyword",
        ),
        (f"{GOOD}pruner: {{name: MedianPrunr}}", "", "did you mean MedianPruner?"),
        (f"{GOOD}pruner: {{name: PercentilePruner, percentile: 300}}", "", "pruner: PercentilePruner: Percentile"),
        (f"{GOOD}tries: 3", "", "unknown key tries"),
        (f"{GOOD}mode: least", "", "sweep.yaml:3: mode: 'least' cannot stand here"),
        ("num_trials: 1", "", "space is missing"),
        (GOOD, "--model.optimizer.lr 0.1", "a flag sets it, too"),
        (GOOD, "--model.optimizer.lrr 0.1", "did you mean lr?"),
        (GOOD, "--sweep nowhere.yaml", "nowhere.yaml: no such file"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_begins(run, sweep, tmp_path, text, flags, line):
    output = run(sweep(text, *shlex.split(flags)), code=2, **HOW)
    assert line in output
    assert len(output.splitlines()) == 1
    assert not (tmp_path / "found").exists()


def test_a_metric_that_is_not_logged_ends_the_sweep_at_the_first_validation(run, sweep, tmp_path):
    output = run(sweep(f"{GOOD}metric: val/los\n", "--trainer.max_epochs", "100"), code=2, **HOW)
    assert "metric: no val/los is logged; did you mean val/loss?" in output
    assert len((tmp_path / "found/trial-0000/metrics.csv").read_text().splitlines()) < 60


def test_trials_that_all_fail_end_the_sweep(run, sweep, tmp_path):
    args = sweep("num_trials: 100\nspace: {model.optimizer.lr: {low: 1.0e+29, high: 1.0e+30}}\n")
    output = run(args, code=75, **HOW)
    assert len(trials(tmp_path / "found")) == 10
    assert "no trial has come to its end" in output


def test_torch_is_not_loaded_before_the_first_trial():
    code = "import sys, src.sweep; assert 'torch' not in sys.modules and 'optuna' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
