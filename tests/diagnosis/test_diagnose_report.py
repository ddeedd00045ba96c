"""What a diagnosis tells, from diagnose.json on: the terminal, overlays, the page as a browser shows it, W&B."""

import html
import json
import math
import re
import shlex
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from conftest import DIGITS, SMALL

from src.config.request import command_parser, merge, read_request
from src.diagnosis import report
from src.diagnosis.examine import Diagnosis, Examination
from src.diagnosis.finding import BADLY, SLOW, Finding
from src.diagnosis.subject import ConfigSubject
from src.run.page import filled_in

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = "<script>window.fired=1</script><img src=x onerror=window.fired=2>"
LOOK = """<script>addEventListener("load", () => document.body.dataset.seen = JSON.stringify({
widths: [...document.images].map(i => i.naturalWidth), fits: document.documentElement.scrollWidth <= innerWidth,
bars: [...document.querySelectorAll(".bar")].map(bar => [...bar.children].reduce((a, i) => a + i.offsetWidth, 0) /
bar.offsetWidth), fired: window.fired || 0}))</script>"""
RATE = {"model": {"init_args": {"optimizer": {"init_args": {"lr": 0.001}}}}}
STEPS = np.arange(1, 101, 3)


def diagnosis() -> Diagnosis:
    """All that a diagnosis may hold, also texts that would be scripts, and numbers that are none."""
    evidence = {"now": 1e-05, "before": [1.9, math.inf, 1.8], "name": EVIL}
    first = Finding("lr_too_low", BADLY, f"too low {EVIL}", evidence, 0.62, 0.9, RATE, tried=True, source="Smith, 2017")
    waits = Finding(
        "data_bound", SLOW, "it waits", {"share": 0.5}, 0.4, 0.8, {"data": {"init_args": {"num_workers": 2}}}
    )
    leaks = Finding("leakage", BADLY, "val is in train", {"share": np.float32(0.25)}, 0.0, 0.9, todo="split it anew")
    trial = {"check": "lr_too_low", "change": RATE, "before": [1.9, 1.8, 1.9], "after": [0.4, math.inf, 0.5]}
    falling = 2 * np.exp(-STEPS / 40)
    measured = {
        "curves": {"train/loss": (STEPS, falling), "val/loss": (STEPS[::4], 1 + (STEPS[::4] / 100 - 0.5) ** 2)},
        "marks": {"best": 50.0, "overfits": 61.0},
        "rates": {"rates": [1e-5, 1e-4, 1e-3, 1e-2], "losses": [2.3, 2.2, 1.2, 1.9], "config": 1e-5, "suggested": 1e-3},
        "ledger": {"start": 2.0, "forward": 3.0, "backward": 4.5, "validation": 0.4, EVIL: 0.1},
        "layers": {"blocks.0": {"gradient": 0.125, "update": 0.0625}},
        "parts": {"weights": 4 * 2**20, "activations": 9 * 2**20},
        "trials": [trial],
    }  # fmt: skip
    return Diagnosis("findings", [first, waits, leaks], [("shift", f"no time {EVIL}")], measured, 23)


@pytest.fixture
def request_of_small(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return read_request(command_parser("diagnose", None), SMALL)


@pytest.fixture
def written(tmp_path, request_of_small):
    examination = Examination(ConfigSubject(request_of_small), tmp_path, 60)
    for name in ("fix-9.yaml", "fixed.yaml", "receipt.json"):  # of a diagnosis before
        (tmp_path / name).touch()
    told = report.told(diagnosis(), "python -m src.diagnose", SMALL, 12.3)
    return told, report.tell(told, tmp_path, "waves", examination), tmp_path


def test_json_is_plain_finite_and_whole(written):
    told, figures, folder = written
    found = json.loads((folder / "diagnose.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert found == told
    assert (found["verdict"], found["trainings"], found["seconds"]) == ("findings", 23, 12.3)
    assert found["unknown"] == [{"check": "shift", "why": f"no time {EVIL}"}]
    assert found["findings"][0]["evidence"]["before"] == [1.9, None, 1.8]
    assert found["findings"][2]["evidence"]["share"] == 0.25
    assert found["measured"]["curves"]["train/loss"][0][:2] == [1, 4]
    assert set(figures) == {"learning curves", "learning rates", "changes that were tried"}
    assert not list(folder.glob("*.tmp"))


def test_overlays_and_flags_say_the_same(written, request_of_small):
    told, _, folder = written
    assert sorted(path.name for path in folder.glob("fix*")) == ["fix-1.yaml", "fix-2.yaml"]
    assert not (folder / "receipt.json").exists()
    for number, one in enumerate(told["findings"][:2], 1):
        changed = merge(request_of_small.config, one["change"])
        by_file = read_request(command_parser("x", None), [*SMALL, "--config", str(folder / f"fix-{number}.yaml")])
        by_flags = read_request(command_parser("x", None), shlex.split(one["command"])[3:])
        assert by_file.config == by_flags.config == changed
    assert "--model.optimizer.lr 0.001" in told["findings"][0]["command"]
    assert told["findings"][2]["command"] == ""


def test_secrets_stay_out():
    told = report.told(diagnosis(), "x", [*SMALL, "--data.api_key", "verysecretvalue"], 1.0)
    assert "--data.api_key '***' --model.optimizer.lr 0.001" in told["findings"][0]["command"]


@pytest.mark.parametrize(
    "change",
    [
        {"threads": None},
        {"trainer": {"gradient_clip_val": 1.0, "strategy": {"class_path": "src.strategies.fsdp.FSDP"}}},
        {"model": {"init_args": {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e-5}}}}},
        {"model": {"init_args": {"network": {"init_args": {"widths": [8, 8]}}, "freeze": ["a.*", "b: c"]}}},
        {"data": {"init_args": {"batch_size": 32, "micro_batch_size": None}}, "checkpoints": {"mode": "max"}},
    ],
)  # fmt: skip
def test_any_change_is_the_same_as_flags(change, tmp_path):
    (tmp_path / "change.yaml").write_text(yaml.safe_dump(change))
    by_file = read_request(command_parser("x", None), [*SMALL, "--config", str(tmp_path / "change.yaml")])
    by_flags = read_request(command_parser("x", None), [*SMALL, *report.flags_of(change)])
    assert by_flags.config == by_file.config != read_request(command_parser("x", None), SMALL).config


def test_a_value_that_is_a_mapping_is_one_flag():
    change = {"model": {"init_args": {"swap": {"layers.3": {"class_path": "torch.nn.Identity"}}}}}
    flag, value = report.flags_of(change)
    assert (flag, yaml.safe_load(value)) == ("--model.swap", change["model"]["init_args"]["swap"])


def test_terminal(capsys, written):
    told, _, folder = written
    shown = capsys.readouterr().out
    for line in (
        "took      12 s",
        f"verdict   3 findings by 23 short trainings; not examined: shift: no time {EVIL}",
        f"1         does badly: too low {EVIL}",
        f"evidence  now 1e-05, before 1.9, None, 1.8, name {EVIL}",
        "gain      62 % of the loss that can be learned, measured by trials; confidence 90 %",
        "try       python -m src.train --config tests/small.yaml --model.optimizer.lr 0.001",
        f"or        --config {folder}/fix-1.yaml",
        "gain      40 % of the time, estimated; confidence 80 %",
        "gain      confidence 90 %",
        "to do     split it anew",
    ):
        assert f"{line}\n" in shown
    for verdict, said in (
        ("healthy", "healthy: nothing found by 23 short trainings; not examined: shift: no time"),
        ("unknown", "unknown: shift: no time"),
    ):
        assert said in filled_in("diagnose.txt", told={**told, "verdict": verdict, "findings": []})


def test_the_page_holds_all_escaped(written):
    page = (written[2] / "diagnose.html").read_text()
    assert {address.partition(":")[0] for address in re.findall(r'(?:src|href)="([^"]*)', page)} == {"data"}
    assert "<script" not in page
    assert page.count(html.escape(EVIL)) >= 4
    texts = ["62 %</b>", "the loss that can be learned, measured", "gain not known", "split it anew", "lr: 0.001"]
    for words in (
        *texts,
        "Smith, 2017",
        "--model.optimizer.lr 0.001",
        "45.0 %",
        "69.2 %",
        "<th>blocks.0<td>0.125<td>0.0625",
    ):
        assert words in page


def test_a_picture_without_numbers_is_left_out(tmp_path, request_of_small):
    told = report.told(Diagnosis(), "python -m src.diagnose", SMALL, 1.0)
    assert report.tell(told, tmp_path, "waves", SimpleNamespace()) == {}
    page = (tmp_path / "diagnose.html").read_text()
    assert "What was measured" not in page
    assert "healthy: nothing found by 0 short trainings" in page


@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on the PATH")
@pytest.mark.parametrize("width", [400, 1200])
def test_in_a_browser(width, written):
    folder = written[2]
    policy = "default-src 'none';"
    page = (folder / "diagnose.html").read_text()
    assert policy in page  # so that the browser itself refuses, and tells, what is asked of a network
    seen = page.replace(policy, f"{policy} script-src 'unsafe-inline';").replace("</h1>", f"</h1>{LOOK}", 1)
    (folder / "seen.html").write_text(seen)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={width},900"]
    command = [BROWSER, *flags, f"--user-data-dir={folder}/profile", "--dump-dom", f"file://{folder}/seen.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    looked = json.loads(html.unescape(re.search(r'data-seen="([^"]*)"', done.stdout)[1]))
    assert len(looked["widths"]) == 3
    assert min(looked["widths"]) > 300
    assert [round(share, 1) for share in looked["bars"]] == [1.0, 1.0]  # of time, and of memory
    assert (looked["fits"], looked["fired"]) == (True, 0)


# kind: images
def test_samples_whose_label_looks_wrong_are_shown(run, tmp_path):
    noise = Finding("label_noise", BADLY, "labels look wrong", {"suspicious": [*range(40)]}, todo="look at them")

    def command(args) -> None:
        examination = Examination(ConfigSubject(read_request(command_parser("diagnose", None), args)), tmp_path, 0.0)
        told = report.told(Diagnosis("findings", [noise]), "python -m src.diagnose", args, 1.0)
        print([*report.tell(told, tmp_path, "digits", examination)])

    assert run(DIGITS, command=command).endswith("\n['samples whose label looks wrong']\n")
    assert "data:image/svg+xml" in (tmp_path / "diagnose.html").read_text()


# end
