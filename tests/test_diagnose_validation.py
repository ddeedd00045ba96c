"""The validation of src.diagnose: what counts as right, what a fault costs, what comes back, and that it goes on."""

import json
import math

import pytest
from conftest import ROOT

from benchmarks.diagnose import __main__ as command
from benchmarks.diagnose import costs, report, rules, utility
from benchmarks.diagnose.cases import Case, config_of, flat, is_right, written
from benchmarks.diagnose.runs import Lines, carry_out

ALL = [case for cases in command.GROUPS.values() for case in cases]
SHORT = {"trainer.max_epochs": 1, "trainer.limit_train_batches": 4}
HERE = "benchmarks.diagnose.faulty"


def finding(question="does badly", check="a_check", **change):
    return {"check": check, "question": question, "change": change}


def lr(value):
    return {"init_args": {"optimizer": {"init_args": {"lr": value}}}}


def test_keys_of_a_change_are_those_of_flags():
    swap = {"head.1": {"class_path": "torch.nn.Identity"}}
    change = {"model": {"init_args": {"optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.1}}}}}
    change["model"]["init_args"]["swap"] = swap
    found = {"model.optimizer": "torch.optim.Adam", "model.optimizer.lr": 0.1, "model.swap.head.1": "torch.nn.Identity"}
    assert dict(flat(change)) == found


@pytest.mark.parametrize(
    ("found", "right"),
    [
        (finding(model=lr(0.01)), True),
        (finding(model=lr(0.05)), False),  # not far enough
        (finding("is slow", model=lr(0.01)), False),  # to another question
        (finding(model={"init_args": {"swap": {"softmax": {"class_path": "torch.nn.Identity"}}}}), True),
        (finding(model={"init_args": {"swaps": 1}}), False),
        (finding(data={"init_args": {"batch_size": 4}}), False),
        (finding(model={"init_args": {"outputs": "probabilities"}}), True),
        (finding(model={"init_args": {"outputs": "logits"}}), False),
        (finding(trainer={"detect_anomaly": False}), False),
        (finding(check="leak"), True),
    ],
)
def test_acceptable_answers(found, right):
    truth = ("BADLY model.optimizer.lr < 0.03", "BADLY model.swap", "BADLY model.outputs = probabilities")
    assert is_right(found, (*truth, "BADLY check leak|other")) == right


def test_every_case_has_a_config_and_a_truth():
    assert len({case.name for case in ALL}) == len(ALL)
    for case in ALL:
        config = config_of(case)
        assert config["pictures"] == {"enabled": False}
        for answer in case.truth:
            question, key, *rest = answer.split(" ", 2)
            assert question in ("BADLY", "SLOW", "SPACE")
            assert key == "check" or not rest or rest[0][:2] in ("< ", "> ", "= "), answer


def test_another_class_keeps_the_arguments_that_it_takes():
    case = Case("x", "waves", {"model.network": f"{HERE}.DeepSigmoid", "model.network.depth": 3})
    assert config_of(case)["model"]["init_args"]["network"]["init_args"] == {"depth": 3}
    case = Case("x", "waves", {"model.network": f"{HERE}.SoftmaxMLP"})
    assert config_of(case)["model"]["init_args"]["network"]["init_args"] == {"widths": [32, 16], "dropout": 0.2}


def line(loss=0.1, val=0.1, fit_sec=1.0, exit_code=0, **more):
    return {"metrics": {"test/loss": loss, "val/loss": val}, "fit_sec": fit_sec, "exit_code": exit_code, **more}


def known(folder, case, healthy, faulty, fixed=(), found=None):
    """Lines as if these had been trained, with seeds 0, 1, ..."""
    lines = Lines(folder / "lines.jsonl")
    for one, figures in ((costs.base_of(case), healthy), (case, faulty)):
        file = written(one, folder / "configs")
        for seed, figure in enumerate(figures):
            lines.known[costs.key_of(one, file, seed)] = figure
    for seed, figure in enumerate(fixed):
        change, file = utility.change_of(found), written(case, folder / "configs")
        lines.known[utility.key_of(file, case, change, seed)] = figure
    return lines


def test_what_a_fault_costs(tmp_path):
    case = Case("a_fault", "waves", {"seed_everything": 1}, "family", ("BADLY model.swap",))
    noisy = [line(0.10), line(0.14), line(0.12)]
    assert not costs.cost(case, tmp_path, known(tmp_path, case, noisy, [line(0.15)] * 3))["counts"]  # 1.5 deviations
    assert costs.cost(case, tmp_path, known(tmp_path, case, noisy, [line(0.18)] * 3))["counts"]
    lines = known(tmp_path, case, [line(0.1)] * 3, [line(0.1005)] * 3)
    assert not costs.cost(case, tmp_path, lines)["counts"]  # less than a hundredth
    assert costs.cost(case, tmp_path, known(tmp_path, case, noisy, [line(exit_code=5)] * 3))["counts"]  # not finite
    slow = Case("slow", "waves", {"trainer.max_epochs": 6}, "family", ("SLOW threads",), costs="speed")
    for seconds, counts in ((0.54, False), (0.6, True)):  # of half as many epochs as the base
        lines = known(tmp_path, slow, [line(fit_sec=1.0), line(fit_sec=3.0)], [line(fit_sec=seconds), line(fit_sec=9)])
        assert costs.cost(slow, tmp_path, lines)["counts"] == counts
    leak = Case("leak", "waves", {}, "leak", ("BADLY check leak",), costs="trust")
    lines = known(tmp_path, leak, [line(0.11, 0.1), line(0.1, 0.1), line(0.1, 0.12)], [line(0.1, 0.01)] * 3)
    assert costs.cost(leak, tmp_path, lines)["counts"]


def test_what_comes_back(tmp_path):
    case = Case("a_fault", "waves", {"seed_everything": 1}, "family", ("BADLY model.optimizer.lr < 0.03",))
    found = {"findings": [finding(model=lr(0.01))], "verdict": "findings"}
    lines = known(tmp_path, case, [line(0.1)], [line(1.1)], [line(0.35)], found)
    assert utility.come_back(case, found, tmp_path, lines, [0]) == pytest.approx(0.75)
    lines = known(tmp_path, case, [line(0.1)], [line(900.0)], [line(2.303)], found)
    assert utility.come_back(case, found, tmp_path, lines, [0]) == pytest.approx(0)  # as if nothing were learned
    lines = known(tmp_path, case, [line(0.1)], [line(exit_code=5)], [line(exit_code=5)], found)
    assert utility.come_back(case, found, tmp_path, lines, [0]) == -1
    assert utility.come_back(case, {"findings": [finding(check="leak")]}, tmp_path, lines, [0]) is None
    healthy = Case("fine", "waves")
    for after, harm in ((0.1, False), (0.13, True)):
        lines = known(tmp_path, healthy, [], [line(0.1), line(0.104)], [line(after)] * 2, found)
        assert utility.harms(healthy, found, tmp_path, lines, [0, 1]) == harm


def test_a_page_of_figures(tmp_path):
    case = Case("a_fault", "waves", {}, "family", ("BADLY model.optimizer.lr < 0.03",))
    told = [
        {"findings": [finding(model=lr(v)) for v in values], "seconds": 10.0} for values in ([0.01], [9, 0.01], [9])
    ]
    lines = Lines(tmp_path / "none")
    answers = [report.answer(case, one, tmp_path, lines, [0]) for one in told]
    found = report.figures(answers)
    assert (found["right fault first"], found["right among three"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    quiet = report.answer(
        Case("fine", "waves"), {"findings": [], "verdict": "healthy", "seconds": 20.0}, tmp_path, lines, [0]
    )
    loud = report.answer(Case("loud", "waves"), told[0], tmp_path, lines, [0])
    text = report.page({"faults": answers, "healthy": [quiet, loud]}, ["cheap"], "", "the command")
    assert "false alarms 50.0%" in text
    assert "- `loud`, healthy: a_check: model.optimizer.lr 0.01" in text
    assert "- `a_fault` (family): second or third; first a_check: model.optimizer.lr 9" in text
    assert "Left out: cheap." in text
    report.draw({"faults": answers, "healthy": [quiet, loud]}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_what_is_trained_is_not_trained_again(loaded, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    case = Case("a_fault", "waves", SHORT | {"model.network": f"{HERE}.SoftmaxMLP"}, "family", ("BADLY model.swap",))
    jobs = [*costs.jobs([case], tmp_path, [0], with_base=False)]
    file = tmp_path / "lines.jsonl"
    carry_out(jobs, Lines(file))
    [found] = map(json.loads, file.read_text().splitlines())
    assert found["exit_code"] == 0
    assert 1 < found["metrics"]["test/loss"] < 2.5
    assert found["fit_sec"] > 0
    with file.open("a") as f:
        f.write('{"key": "cut sho')
    carry_out(jobs, Lines(file))
    assert len(file.read_text().splitlines()) == 1  # and the line that was cut short is gone
    assert capsys.readouterr().err.count("a_fault") == 1


def test_advice_is_applied_blindly(loaded, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    flags = {"trainer.max_epochs": 3, "model.optimizer.lr": 3e-7}
    case = Case("a_fault", "waves", flags, "rate too low", ("BADLY model.optimizer.lr > 1e-6",))
    line, lines = {"findings": [finding(model=lr(6e-3))], "verdict": "findings", "seconds": 1.0}, Lines(tmp_path / "l")
    carry_out(costs.jobs([case], tmp_path, [0]), lines)
    carry_out(utility.jobs([(case, line)], tmp_path, [0]), lines)
    found = report.answer(case, line, tmp_path, lines, [0])
    assert found.first
    assert 0.6 < found.back <= 1


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({"model.network": f"{HERE}.SaturatedTanh"}, {"deeplocalize saturated", "sagemaker saturated"}),
        ({"model.optimizer.lr": 3.0}, {"umlaut rate high", "deeplocalize rate"}),
        ({"model.network": f"{HERE}.ReluMLP"}, {"umlaut last activation"}),
        ({"model.freeze": ["blocks.*"], "model.optimizer.lr": 1e-7}, {"sagemaker unchanged", "umlaut rate low"}),
    ],
)
def test_rules_of_others(run, tmp_path, flags, names):
    healthy = {"sagemaker saturated", "umlaut rate high", "umlaut last activation", "sagemaker unchanged"}
    out = tmp_path / "fired.json"
    run([written(Case("x", "waves", {"trainer.max_epochs": 2} | flags), tmp_path), out], command=rules.main)
    found = json.loads(out.read_text())
    assert found["error"] == ""
    assert names <= {*found["fired"]}
    assert not ((healthy - names) & {*found["fired"]})
    assert {*found["fired"]} <= rules.RIGHT.keys()


def test_the_command_goes_on(run, tmp_path):
    args = ["--only", "healthy", "--healthy", "1", "--minutes", "0.05", "--rules", "--out", tmp_path]
    text = run(args, command=command.main)
    assert "**healthy**: cases 1; false alarms" in text
    assert "| **umlaut, any** | 1 of 1 | 0 of 0 | 0 |" in text  # standardized inputs are beyond 1
    pages = [(tmp_path / name).read_bytes() for name in ("answers.jsonl", "trainings.jsonl", "page.md")]
    assert (tmp_path / "diagnose.png").exists()
    run(args, command=command.main)
    assert pages == [(tmp_path / name).read_bytes() for name in ("answers.jsonl", "trainings.jsonl", "page.md")]
    assert "there is no mlp_lr" in run(["--faults", "mlp_lr", "--out", tmp_path], code=2, command=command.main)


def test_nothing_of_it_runs_while_a_model_is_trained():
    """So there is no overhead to measure."""
    others = [path for path in (ROOT / "src").rglob("*.py") if "diagnos" not in path.relative_to(ROOT).as_posix()]
    assert len(others) > 50
    assert [path for path in others if "src.diagnos" in path.read_text()] == []


def test_a_figure_of_nothing_is_none():
    assert math.isnan(report.share([]))
    assert report.figures([]) == {"cases": 0}
