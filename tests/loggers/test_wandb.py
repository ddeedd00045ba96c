"""What W&B records is read back from its file; servers that fail are real ones, on this machine."""

import csv
import http.server
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import ROOT, SMALL
from wandb.proto import wandb_internal_pb2 as pb

from src.loggers.wandb import WAITING, RunLogger, WandbOptions
from src.run.folder import RunFolder

KEY = "0123456789abcdef0123456789abcdef01234567"


def records(run_dir: Path) -> list:
    """All records of a run's .wandb files: LevelDB's log format, blocks of 32 KiB with checked pieces of records."""
    out = []
    for file in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        data, place, whole = file.read_bytes(), 7, b""
        assert data[:4] == b":W&B"
        while place + 7 <= len(data):
            if 32768 - place % 32768 < 7:
                place += 32768 - place % 32768
                continue
            _, size, kind = struct.unpack("<IHB", data[place : place + 7])
            whole += data[place + 7 : place + 7 + size]
            place += 7 + size
            if kind in (1, 4):  # a whole record, or its last piece
                record = pb.Record()
                record.ParseFromString(whole)
                out.append(record)
                whole = b""
    return out


def history(run_dir: Path) -> list[dict]:
    rows = [r.history for r in records(run_dir) if r.WhichOneof("record_type") == "history"]
    return [{item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in h.item} for h in rows]


def config(run_dir: Path) -> dict:
    run = next(r.run for r in records(run_dir) if r.WhichOneof("record_type") == "run")
    return {item.key: json.loads(item.value_json) for item in run.config.update}


def summary(run_dir: Path) -> dict:
    out = {}
    for record in records(run_dir):
        for item in record.summary.update:
            out[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    return out


def exit_codes(run_dir: Path) -> list[int]:
    return [r.exit.exit_code for r in records(run_dir) if r.WhichOneof("record_type") == "exit"]


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """Nothing of this machine's account leaks in."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_everything_is_recorded_offline(run, tmp_path):
    folder = tmp_path / "run"
    output = run([*SMALL, "--run_dir", folder])
    assert "recorded offline (no key" in output
    rows = history(folder)
    with open(folder / "metrics.csv") as f:
        logged = [row for row in csv.DictReader(f) if row["train/loss"]]
    losses = {row["trainer/global_step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert losses == pytest.approx({int(row["step"]): float(row["train/loss"]) for row in logged})
    recorded, saved = config(folder), yaml.safe_load((folder / "config.yaml").read_text())
    assert recorded["model"] == saved["model"]
    assert recorded["trainer"]["max_epochs"] == 3
    assert recorded["code"]["src_sha256"]
    assert recorded["command"].startswith("python -m src.train --config tests/small.yaml")
    assert recorded["hardware"]["cores"] == os.cpu_count()
    result = json.loads((folder / "summary.json").read_text())
    assert summary(folder)["test/acc"] == pytest.approx(result["test/acc"])
    assert exit_codes(folder) == [0]


def test_group_tags_and_notes_are_keys(run, tmp_path):
    named = ["--wandb.group", "g", "--wandb.tags", "[a, b]", "--wandb.notes", "what was tried"]
    run([*SMALL, *named, "--trainer.max_steps", 2, "--run_dir", tmp_path / "run"])
    recorded = next(r.run for r in records(tmp_path / "run") if r.WhichOneof("record_type") == "run")
    assert (recorded.run_group, list(recorded.tags), recorded.notes) == ("g", ["a", "b"], "what was tried")


@pytest.mark.parametrize("flags", [["--wandb", "null"], ["--wandb", "false"], ["--config", "off.yaml"]])
def test_how_to_turn_it_off_is_said_where_it_is_tried(flags, run, tmp_path):
    (tmp_path / "off.yaml").write_text("wandb: null\n")
    flags = [tmp_path / flag if flag == "off.yaml" else flag for flag in flags]
    assert "-> --wandb.mode disabled turns W&B off" in run([*SMALL, *flags, "--run_dir", tmp_path / "run"], code=2)
    assert "--wandb.mode disabled turns W&B off" in run(["--help"])


def test_the_printed_command_would_send_the_run(run, tmp_path):
    output = run([*SMALL, "--run_dir", tmp_path / "run"])
    program, *words = next(line for line in output.splitlines() if "send the run:" in line).split()[-3:]
    assert Path(program).name == "wandb"
    command = f"{sys.executable} -m wandb {' '.join(words)} --dry-run"  # a shell fills in the star
    env = {**os.environ, "WANDB_API_KEY": KEY}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr


def fails() -> None:
    from src.models.classification import Classification

    def broken(self, batch, batch_idx):
        raise RuntimeError("broken on purpose")

    Classification.training_step = broken


def test_a_run_that_fails_is_marked_failed(run, tmp_path):
    output = run([*SMALL, "--run_dir", tmp_path / "run"], code=1, first=fails)
    assert "broken on purpose" in output
    assert exit_codes(tmp_path / "run") == [1]
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "failed"


def test_one_run_across_resumes_and_the_same_weights_without(start, run, tmp_path, monkeypatch):
    def dies() -> None:
        from src.models.classification import Classification

        step = Classification.training_step

        def dying(self, batch, batch_idx):
            if self.trainer.global_step == 45:
                os.kill(os.getpid(), 9)
            return step(self, batch, batch_idx)

        Classification.training_step = dying

    folder = tmp_path / "run"
    args = [*SMALL, "--checkpoints.every_n_steps", "10", "--run_dir", folder]
    assert start(args, first=dies).wait() == -9
    run(args)
    assert {r.run.run_id for r in records(folder) if r.WhichOneof("record_type") == "run"} == {
        json.loads((folder / "run.json").read_text())["wandb_id"]
    }
    assert [row["trainer/global_step"] for row in history(folder) if "val/acc" in row][-1] == 59
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run([*args[:-1], tmp_path / "other"])
    assert not (tmp_path / "other/wandb").exists()
    lasts = [f / "checkpoints/last.ckpt" for f in (folder, tmp_path / "other")]
    weights = [torch.load(last, weights_only=True)["state_dict"] for last in lasts]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


@pytest.mark.parametrize(
    ("environment", "mode", "holds"),
    [
        ("offline", "disabled", "disabled"),
        ("online", "disabled", "disabled"),
        ("disabled", "online", "disabled"),
        ("online", "offline", "offline"),
        ("dryrun", "online", "offline"),
        ("", "online", "online"),
    ],
)
def test_of_flag_and_environment_that_holds_which_records_less(environment, mode, holds, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", environment)
    assert WandbOptions(mode=mode).mode == holds


def test_a_run_that_is_not_to_be_recorded_is_not(run, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "W&B" not in run([*SMALL, "--wandb.mode", "disabled", "--run_dir", tmp_path / "run"])
    assert not (tmp_path / "run/wandb").exists()


def test_no_step_is_missing_after_kills_and_repeated_ones_are_equal(start, run, tmp_path):
    def dies(step) -> Callable[[], None]:
        def first() -> None:
            from src.models.classification import Classification

            training_step = Classification.training_step

            def dying(self, batch, batch_idx):
                if self.trainer.global_step == step:
                    os.killpg(os.getpid(), 9)  # W&B's recorder, too
                return training_step(self, batch, batch_idx)

            Classification.training_step = dying

        return first

    folder = tmp_path / "run"
    args = [*SMALL, "--checkpoints.every_n_steps", "10", "--trainer.log_every_n_steps", "1", "--run_dir", folder]
    for step in (25, 27, 45):
        assert start(args, first=dies(step)).wait() == -9
    run(args)
    recorded: dict[tuple[int, str], float] = {}
    for row in history(folder):
        for name, value in row.items():
            if name.startswith(("train/", "val/", "test/", "optim/")):
                key = (row["trainer/global_step"], name)
                assert recorded.setdefault(key, value) == pytest.approx(value, rel=1e-12), key
    with open(folder / "metrics.csv") as f:
        rows = list(csv.DictReader(f))
    for name in ("train/loss", "val/loss"):
        logged = {int(row["step"]) for row in rows if row[name]}
        assert {step for step, key in recorded if key == name} == logged
    assert len({step for step, name in recorded if name == "train/loss"}) == 60


class Server(http.server.ThreadingHTTPServer):
    """Answers every request with one status, or not at all."""

    def __init__(self, status: int | None) -> None:
        self.status = status
        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        if self.server.status is None:
            time.sleep(30)
            return
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST

    def log_message(self, *args):
        pass


@pytest.mark.parametrize("kind", ["refuses", "hangs", "401", "500", "no such name"])
def test_a_server_that_fails_costs_a_few_seconds_and_nothing_else(kind, run, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    server = None if kind in ("refuses", "no such name") else Server(None if kind == "hangs" else int(kind))
    if server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
    if kind == "no such name":
        url = "http://no-such-name.invalid"
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    folder = tmp_path / "run"
    output = run([*SMALL, "--run_dir", folder])
    assert "recorded offline" in output
    assert len([line for line in output.splitlines() if line.startswith("W&B")]) <= 2
    assert exit_codes(folder) == [0]
    assert len([row for row in history(folder) if "val/acc" in row]) == 3
    if server:
        server.shutdown()
    found = [p for p in folder.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]
    assert found == []


class FailsLater(Server):
    """Knows the key at first; then it is gone, hangs, or fails."""

    def __init__(self, later: str) -> None:
        self.later, self.asked = later, 0
        super().__init__(200)
        self.RequestHandlerClass = AnswerAtFirst


class AnswerAtFirst(Answer):
    def do_POST(self):
        self.server.asked += 1
        if self.server.asked == 1:
            self.answer(200, b'{"data": {"viewer": {"entity": "someone"}}}')
            if self.server.later == "goes away":
                self.server.socket.close()
        elif self.server.later == "hangs":
            time.sleep(30)
        else:
            self.answer(500, b"")

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST


@pytest.mark.parametrize("later", ["goes away", "hangs", "fails"])
def test_a_server_that_fails_in_mid_run(later, run, tmp_path, monkeypatch):
    server = FailsLater(later)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    folder, t0 = tmp_path / "run", time.monotonic()
    output = run([*SMALL, "--run_dir", folder])
    assert time.monotonic() - t0 < 60
    assert server.asked >= 1
    assert "W&B: run " in output
    assert "wandb sync" in output
    assert exit_codes(folder) == [0]
    assert len([row for row in history(folder) if "val/acc" in row]) == 3
    assert list(folder.glob("wandb/logs/debug-sync.*.log"))  # of the process that sends, not beside src


def test_a_key_that_is_wrong(run, tmp_path, monkeypatch):
    class Refuses(Answer):
        def do_POST(self):
            AnswerAtFirst.answer(self, 200, b'{"data": {"viewer": null}}')

    server = Server(200)
    server.RequestHandlerClass = Refuses
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    output = run([*SMALL, "--run_dir", tmp_path / "run"])
    assert "recorded offline (Failed to verify credentials" in output
    assert "did not recognize an account" in output


def test_a_full_disk_under_its_records(run, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    (folder / "wandb").mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", folder / "wandb"]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {done.stderr.strip()}")
    try:
        run([*SMALL, "--trainer.log_every_n_steps", "1", "--run_dir", folder])
    finally:
        subprocess.run(["umount", "-l", folder / "wandb"], check=True)
    with open(folder / "metrics.csv") as f:
        assert len([row for row in csv.DictReader(f) if row["train/loss"]]) == 60
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"


def test_a_recorder_that_does_not_answer_holds_up_nothing(monkeypatch, tmp_path):
    class Hangs(SimpleNamespace):
        def log(self, *args, **kwargs):
            time.sleep(1000)

        define_metric = log

    said, at_exit = [], []
    monkeypatch.setattr("src.loggers.wandb.FINISH_SEC", 0.2)
    monkeypatch.setattr("src.loggers.wandb.atexit", SimpleNamespace(register=lambda *args: at_exit.append(args)))
    run = Hangs(settings=SimpleNamespace(sync_dir=tmp_path), summary={})
    logger, t0 = RunLogger(run, None, said.append), time.monotonic()
    for step in range(WAITING + 10):
        logger.log_metrics({"a": 1.0}, step)
    assert logger.close({}, 0) is False
    assert time.monotonic() - t0 < 3
    assert said == ["W&B: its recorder does not answer; nothing more is recorded there. metrics.csv has all metrics."]
    assert at_exit == [(os._exit, 0)]


def test_a_picture_is_logged_before_the_end_that_follows_it(monkeypatch, tmp_path):
    logged = []

    class Keeps(SimpleNamespace):
        def log(self, metrics, **kwargs):
            logged.append(metrics)

        def define_metric(self, *args, **kwargs):
            pass

        def finish(self, exit_code):
            logged.append("end")

    def slow(image):
        time.sleep(0.3)  # until the end is in the queue
        return image

    monkeypatch.setattr("wandb.Image", slow)
    logger = RunLogger(Keeps(settings=SimpleNamespace(sync_dir=tmp_path), summary={}), None, pytest.fail)
    logger.log_image("picture", ["a.png"])
    logger.close({}, 0)
    assert [row if row == "end" else row["picture"] for row in logged] == [["a.png"], "end"]


def test_a_slow_recorder_is_waited_for(monkeypatch, tmp_path):
    logged, at_exit = [], []

    class Slow(SimpleNamespace):
        def log(self, metrics, **kwargs):
            time.sleep(0.1)
            logged.append(metrics)

        def define_metric(self, *args, **kwargs):
            pass

        def finish(self, exit_code):
            logged.append(exit_code)

    monkeypatch.setattr("src.loggers.wandb.FINISH_SEC", 0.4)
    monkeypatch.setattr("src.loggers.wandb.atexit", SimpleNamespace(register=lambda *args: at_exit.append(args)))
    logger = RunLogger(Slow(settings=SimpleNamespace(sync_dir=tmp_path), summary={}), None, pytest.fail)
    for step in range(12):
        logger.log_metrics({"a": float(step)}, step)
    logger.close({}, 5)
    assert [row["a"] for row in logged[:-1]] == [float(step) for step in range(12)]
    assert (logged[-1], at_exit) == (5, [])


# kind: images
def test_the_agent_of_a_sweep_runs_the_train_command(monkeypatch, tmp_path):
    """W&B's own code makes the command of what its server sends, and starts it."""
    from wandb.wandb_agent import Agent

    sweep = yaml.safe_load((ROOT / "configs/sweep/wandb.yaml").read_text())
    extra = ["--config", "configs/trainer/smoke.yaml", "--pictures.enabled", "false"]
    extra += ["--run_dir", str(tmp_path / "run")]
    monkeypatch.chdir(ROOT)
    names = {"WANDB_MODE": "offline", "WANDB_SWEEP_ID": "mysweep", "WANDB_DIR": str(tmp_path), "WANDB_RUN_ID": ""}
    for name, value in (names | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", "")
    agent = Agent(api=None, queue=None)
    agent._sweep_command = [*sweep["command"], *extra]
    values = {"model.optimizer.lr": 0.004, "model.optimizer.weight_decay": 0.05}
    assert values.keys() == sweep["parameters"].keys()
    order = {"type": "run", "run_id": "myrun", "program": sweep["program"]}
    agent._command_run(order | {"args": {name: {"value": value} for name, value in values.items()}})
    assert agent._run_processes["myrun"]._popen.wait(120) == 0
    trained = RunFolder(tmp_path / "run").config()["model"]["init_args"]
    assert trained["optimizer"]["init_args"]["lr"] == 0.004
    assert trained["optimizer"]["init_args"]["weight_decay"] == 0.05
    (begun,) = [record.run for record in records(tmp_path / "run") if record.WhichOneof("record_type") == "run"]
    assert (begun.sweep_id, begun.run_id) == ("mysweep", "myrun")


# end
