"""The validation of src.diagnose: what counts as right, what a fault costs, what comes back, and that it goes on."""

import json
import math

import pytest
from conftest import ROOT

from benchmarks.diagnose import __main__ as command
from benchmarks.diagnose import costs, programs, report, rules, slips, utility
from benchmarks.diagnose.cases import BASES, Case, answers, config_of, flat, is_right, rate, rows, written
from benchmarks.diagnose.runs import Job, Lines, carry_out

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
        assert BASES[case.base].is_module or config_of(case)["pictures"] == {"enabled": False}
        for answer in case.truth + case.wide:
            question, key, *rest = answer.split(" ", 2)
            assert question in ("BADLY", "SLOW", "SPACE")
            assert key == "check" or not rest or rest[0].split()[0] in ("<", ">", "=", "in"), answer


def test_rows_of_faults():
    text = "a | mlp | end | net=SoftmaxMLP opt=SGD lr=1e-3 seed=2 | NO_HEAD | lr > 0.1; opt = Adam"
    slow = "b | mlp | data | data=SlowImages data.seconds=0.1 | SLOW check data_bound"
    one, two = rows(f"{text}\n{slow}")
    assert one.flags == {
        "model.network": f"{HERE}.SoftmaxMLP",
        "model.optimizer": "torch.optim.SGD",
        "model.optimizer.lr": 0.001,
        "seed_everything": 2,
    }
    assert one.truth == ("BADLY model.outputs = probabilities", "BADLY model.swap")
    assert one.wide == ("BADLY model.optimizer.lr > 0.1", "BADLY model.optimizer = torch.optim.Adam")
    assert (one.costs, two.costs) == ("metric", "speed")
    assert answers("SLOW threads = null; check a|b") == ("SLOW threads = null", "BADLY check a|b")


@pytest.mark.parametrize(
    ("factor", "value", "strict", "wide"),
    [
        (100, 0.01, True, True),
        (100, 0.09, False, True),
        (100, 0.2, False, False),
        (100, 1e-5, False, True),
        (10, 0.003, True, True),
        (1 / 30, 0.003, True, True),
        (1 / 30, 1.5e-4, False, False),
        (1 / 30, 3.0, False, True),
    ],
)
def test_strict_is_nearer_to_what_was_changed(factor, value, strict, wide):
    case, found = rate("waves", 0.003, factor), finding(model=lr(value))
    assert (is_right(found, case.truth), is_right(found, case.truth + case.wide)) == (strict, wide)


def test_modules_are_two_kinds_and_each_fault_has_a_twin():
    healthy, faulty = ({c.name for c in slips.MODULES if c.healthy == kind} for kind in (True, False))
    assert min(len(healthy), len(faulty)) >= 16
    assert all(case.base in healthy and slips.PROGRAMS[case.name] for case in slips.MODULES)


def test_a_module_is_trained_as_it_is_and_as_a_change_says(loaded, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    case = next(c for c in slips.MODULES if c.name == "moons_no_activation")
    fixed = [
        costs.job(case, tmp_path, 0, "fix", {"lr_times": times, "trainer": {"max_epochs": 1}}) for times in (1, 1e-6)
    ]
    broken = costs.job(case, tmp_path, 0, "fix", {"what": 1})
    lines = Lines(tmp_path / "lines")
    carry_out([*costs.jobs([case], tmp_path, [0]), *fixed, broken], lines)
    found = costs.cost(case, tmp_path, lines, [0])
    assert found["counts"]
    assert 0 <= found["healthy"] < 0.05 < found["faulty"]
    assert lines.known[fixed[0].key]["metrics"]["test/loss"] < 0.5 < lines.known[fixed[1].key]["metrics"]["test/loss"]
    assert lines.known[broken.key]["exit_code"] == 1


def test_a_crash_is_an_answer(tmp_path):
    lines, log = Lines(tmp_path / "lines"), tmp_path / "lines"
    job = Job("a", "benchmarks.diagnose.programs", ["nothing"], tmp_path / "run", programs.trained)
    for again, count in ((False, 1), (False, 1), (True, 2)):
        carry_out([job], lines, again=again)
        assert len(log.read_text().splitlines()) == count
    assert lines.known["a"]["exit_code"] == 1


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
    beside = f"beside_{case.name}" if case.costs == "speed" else "train"
    for one, figures, what in (
        (costs.base_of(case), healthy, beside),
        (case, faulty, "train"),
        (case, faulty, "again"),
    ):
        for seed, figure in enumerate(figures):
            lines.known[costs.job(one, folder, seed, what).key] = figure
    for seed, figure in enumerate(fixed):
        lines.known[costs.job(case, folder, seed, "fix", utility.change_of(found)).key] = figure
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
    bases = [line(fit_sec=1.0), line(fit_sec=3.0), line(fit_sec=1.0)]  # the machine was slow for a while
    for ratio, counts in ((0.54, False), (0.6, True)):  # of half as many epochs as the base
        slower = [line(fit_sec=one["fit_sec"] * ratio) for one in bases[:2]]
        lines = known(tmp_path, slow, bases, [*slower, line(fit_sec=99)])
        found = costs.cost(slow, tmp_path, lines)
        assert (found["counts"], found["healthy"]) == (counts, 0.5)
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
    slow = Case("slow", "waves", {}, "family", ("SLOW threads",), costs="speed")
    lines = known(tmp_path, slow, [line(fit_sec=2)], [line(fit_sec=4)], [line(fit_sec=2.5)], found)
    assert utility.come_back(slow, found, tmp_path, lines, [0]) == pytest.approx(0.75)
    healthy = Case("fine", "waves")
    for after, harm in ((0.1, False), (0.13, True)):
        lines = known(tmp_path, healthy, [], [line(0.1), line(0.104)], [line(after)] * 2, found)
        found["findings"][0]["question"] = "does badly"
        assert utility.harms(healthy, found, tmp_path, lines, [0, 1]) == harm
    for after, harm in ((1.2, False), (1.9, True)):  # what is worse than the fault
        lines = known(tmp_path, case, [], [line(1.1), line(1.3), line(1.2)], [line(after)] * 2, found)
        assert utility.harms(case, found, tmp_path, lines, [0, 1]) == harm


def test_a_page_of_figures(tmp_path):
    wide = ("BADLY model.optimizer.lr < 0.1",)
    case = Case("a_fault", "waves", {}, "family", ("BADLY model.optimizer.lr < 0.03",), wide=wide)
    about = {"seconds": 10.0, "exit_code": 0, "verdict": "findings"}
    told = [{"findings": [finding(model=lr(v)) for v in values]} | about for values in ([0.01], [0.05], [9, 0.01])]
    lines = Lines(tmp_path / "none")
    answers = [report.answer(case, one, tmp_path, lines, [0]) for one in told]
    found = report.figures(answers)
    assert (found["right first"], found["wide"], found["wide among three"]) == tuple(
        map(pytest.approx, (1 / 3, 2 / 3, 1))
    )
    assert (found["fixed"], found["of"], found["crashes"]) == (0, 3, 0)  # without a training of the change
    said = [("fine", told[0] | {"findings": [], "verdict": "healthy"}), ("loud", told[0])]
    said += [("unsure", said[0][1] | {"verdict": "unknown"}), ("broken", said[0][1] | {"exit_code": 1})]
    healthy = [report.answer(Case(name, "waves"), one, tmp_path, lines, [0]) for name, one in said]
    text = report.page({"faults": answers, "healthy": healthy}, ["cheap"], "", "the command")
    assert "right 25.0%; false alarms 25.0%; unknown 1; crashes 1; harmed 0; seconds (rough), median 10" in text
    assert "- `unsure` (healthy): unknown\n- `broken` (healthy): exit code 1" in text
    assert "- `loud` (healthy): a_check: model.optimizer.lr 0.01" in text
    assert "- `a_fault` (family): second or third; first a_check: model.optimizer.lr 9" in text
    assert "- `a_fault` (family): right in the wide sense; a_check: model.optimizer.lr 0.05" in text
    assert "Left out: cheap." in text
    report.draw({"faults": answers, "healthy": healthy}, tmp_path / "picture.png")
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
    line = {"findings": [finding(model=lr(6e-3))], "verdict": "findings", "seconds": 1.0, "exit_code": 0}
    lines = Lines(tmp_path / "l")
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
    assert "**healthy**: cases 1; right" in text
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
