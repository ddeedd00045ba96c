"""Training, loading and predicting from Python, as in a notebook."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from conftest import SMALL
from processes import ROOT

pytestmark = pytest.mark.in_fork
FLAGS = {"wandb.mode": "disabled", "pictures.enabled": False}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def at_root(loaded, monkeypatch):
    monkeypatch.chdir(ROOT)


def test_train_gives_what_the_command_gives(tmp_path, trained_once):
    import torch

    from src import load_run, train

    before = [signal.getsignal(signum) for signum in SIGNALS]
    model = train(SMALL[1], FLAGS, run_dir=tmp_path / "run")
    other = load_run(trained_once(SMALL))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert model.summary["status"] == "finished"
    assert model.summary["test/acc"] == other.summary["test/acc"]
    assert model.run_dir == str(tmp_path / "run")
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def marks():
    import random

    import numpy as np
    import torch

    numbers = (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())
    return numbers, torch.get_num_threads(), dict(os.environ)


def test_train_leaves_no_trace_also_where_it_fails(tmp_path):
    from src import train
    from src.run.errors import ConfigError

    before = marks()
    train(SMALL[1], {**FLAGS, "threads": 2, "trainer.max_epochs": 1}, run_dir=tmp_path / "run")
    assert marks() == before
    with pytest.raises(ConfigError):
        train(SMALL[1], {**FLAGS, "threads": 2, "trainer.max_epochs": 1, "trainer.accelerator": "tpu"})
    assert marks() == before


def test_train_in_another_thread(tmp_path):
    from src import train

    done = []
    thread = threading.Thread(target=lambda: done.append(train(SMALL[1], FLAGS, run_dir=tmp_path / "run")))
    thread.start()
    thread.join()
    assert done[0].summary["status"] == "finished"


def test_dicts_overrides_and_lists_are_configs(tmp_path):
    import yaml

    from src import train

    config = yaml.safe_load((ROOT / SMALL[1]).read_text())
    first = train(config, {**FLAGS, "trainer.max_epochs": 1}, run_dir=tmp_path / "a")
    second = train([SMALL[1], {"trainer": {"max_epochs": 1}}], FLAGS, run_dir=tmp_path / "b")
    assert first.summary["steps"] == second.summary["steps"] == 20
    again = train(config, {**FLAGS, "trainer.max_epochs": 1}, run_dir=tmp_path / "a")  # finished: left alone
    assert again.summary == first.summary


@pytest.mark.parametrize(
    ("config", "overrides", "words"),
    [
        (SMALL[1], {"trainer.max_epoch": 2}, "did you mean max_epochs"),
        ([SMALL[1], {"trainer": {"max_epochz": 2}}], {}, "max_epochz"),
        (SMALL[1], {"trainer.max_epochs": object()}, "max_epochs"),
        ("nowhere.yaml", {}, "no such file"),
    ],
)
def test_what_is_wrong_is_an_error_of_one_line(config, overrides, words, tmp_path):
    from src import train
    from src.run.errors import ConfigError

    with pytest.raises(ConfigError, match=words) as e:
        train(config, overrides, run_dir=tmp_path / "run")
    assert len(str(e.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_an_interrupt_stops_with_a_checkpoint_and_the_same_call_goes_on(tmp_path):
    code = f"""
        import _thread, threading, time, sys
        from pathlib import Path
        from src import train
        from src.run.errors import KnownError
        run = Path({str(tmp_path / "run")!r})
        def interrupt():
            while not (run / "metrics.csv").exists(): time.sleep(0.02)
            _thread.interrupt_main()
        threading.Thread(target=interrupt, daemon=True).start()
        config = ["{SMALL[1]}", {{"trainer": {{"max_epochs": 400}}, **{{"wandb": {{"mode": "disabled"}}}}}}]
        try:
            train(config, {{"pictures.enabled": False}}, run_dir=run)
        except KnownError as e:
            print("stopped", e.code)
        before = {{p.name for p in (run / "checkpoints").glob("step-*.ckpt")}}
        print("checkpoints", len(before) > 0)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True)
    assert "stopped 130" in done.stdout, done.stdout + done.stderr
    assert "checkpoints True" in done.stdout


# kind: images
def test_the_notebook_runs():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    book = nbformat.read(ROOT / "docs/notebook.ipynb", as_version=4)
    began = time.monotonic()
    nbclient.NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 3  # live curves of two runs, and the results
    assert any("done" in o.get("text", "") for o in outputs)
    assert time.monotonic() - began < 300


# end
