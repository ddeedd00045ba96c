"""The HTML report, as a real browser shows it."""

import html
import json
import re
import shutil
import subprocess

import pytest
from conftest import SMALL

from src import runs

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# What the browser made of the page: the width of each picture, whether all fits into the window, which scripts ran.
LOOK = """<script>addEventListener("load", () => document.body.dataset.seen = JSON.stringify({
widths: [...document.images].map(i => i.naturalWidth), fits: document.documentElement.scrollWidth <= innerWidth,
fired: window.fired || 0}))</script>"""
EVIL = "<script>window.fired=1</script><img src=x onerror=window.fired=2>"


@pytest.fixture
def written(copied, run, tmp_path):
    """Reports of one run and of three, one of which has a tag, a name and an error that would be scripts."""
    for name, flags in {"a": [], "b": ["--seed_everything", 1], "c": ["--data.batch_size", 32]}.items():
        copied([*SMALL, *flags, "--trainer.max_epochs", 1], f"logs/{name}")
    evil = tmp_path / "logs/<b onclick=window.fired=3>c"
    (tmp_path / "logs/c").rename(evil)
    config = (evil / "config.yaml").read_text()
    (evil / "config.yaml").write_text(config.replace("tags: null", f"tags: ['{EVIL}']"))
    (evil / "data_report.json").write_text(json.dumps({"train": {"samples": 1293}}))
    summary = json.loads((evil / "summary.json").read_text())
    (evil / "summary.json").write_text(json.dumps(summary | {"status": "failed", "exit_code": 1, "error": EVIL}))
    run([tmp_path / "logs", "--html", tmp_path / "all.html"], command=runs.main)
    run([evil, "--html", tmp_path / "one.html", "--x", "time"], command=runs.main)
    return tmp_path


def test_all_of_it_is_in_the_file_and_escaped(written):
    for name in ("one", "all"):
        page = (written / f"{name}.html").read_text()
        assert {address.partition(":")[0] for address in re.findall(r'(?:src|href)="([^"]*)', page)} == {"data"}
        assert "<script" not in page
        assert html.escape(EVIL) in page
    one, several = ((written / f"{name}.html").read_text() for name in ("one", "all"))
    for words in (
        "Where the time went",
        "train.samples",
        "data.batch_size",
        "cores",
        "src_sha256",
        "python -m src.train",
    ):
        assert words in one
    assert "What differs" in several
    assert "What differs" not in one
    assert "(n=2)" in several


def test_secrets_stay_out(written, run, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "verysecretvalue")
    state = json.loads((written / "logs/a/run.json").read_text())
    (written / "logs/a/run.json").write_text(json.dumps(state | {"command": "train --x verysecretvalue"}))
    run([written / "logs/a", "--html", written / "a.html"], command=runs.main)
    assert "train --x ***" in (written / "a.html").read_text()


@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on the PATH")
@pytest.mark.parametrize("name", ["one", "all"])
@pytest.mark.parametrize("width", [400, 1200])
def test_in_a_browser(name, width, written):
    page = (written / f"{name}.html").read_text()
    policy = "default-src 'none';"
    assert policy in page  # so that the browser itself refuses, and tells, what is asked of a network
    seen = page.replace(policy, f"{policy} script-src 'unsafe-inline';").replace("</h1>", f"</h1>{LOOK}", 1)
    (written / "seen.html").write_text(seen)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={width},900"]
    flags += [f"--user-data-dir={written}/profile", "--dump-dom"]
    command = [BROWSER, *flags, f"file://{written}/seen.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    looked = json.loads(html.unescape(re.search(r'data-seen="([^"]*)"', done.stdout)[1]))
    assert len(looked["widths"]) == 4  # loss, acc, auroc, f1
    assert min(looked["widths"]) > 300
    assert (looked["fits"], looked["fired"]) == (True, 0)
    shot = written / "shot.png"
    subprocess.run([*command[:-2], f"--screenshot={shot}", command[-1]], capture_output=True, timeout=120)
    assert len(shot.read_bytes()) > 10_000
