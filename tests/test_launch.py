"""Runs that torchrun or SLURM starts: real processes on one host, and on two that are made of network namespaces."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL

from src.models.classification import Classification

TINY = [*SMALL, "--model.network.dropout", "0", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "5"]
TINY += ["--trainer.max_epochs", "2"]
DDP = ["--config", "configs/trainer/ddp.yaml", "--trainer.devices", "2"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def losses(folder: Path) -> dict[str, list[float]]:
    with open(folder / "metrics.csv") as f:
        rows = list(csv.DictReader(f))
    return {name: [float(r[name]) for r in rows if r[name]] for name in ("train/loss", "val/loss")}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def assert_same(one: Path, other: Path) -> None:
    a, b = losses(one), losses(other)
    assert a["val/loss"]
    assert {name: pytest.approx(values, rel=1e-5) for name, values in a.items()} == b


def errors(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("error: ")]


# SLURM: its environment variables, on real processes.


def slurm(rank: int, port: str, world_size: int = 2, address: str = "127.0.0.1", join_sec: float = 30):
    """A hook: the environment of one task that srun has started."""
    variables = {
        "SLURM_JOB_ID": "4242", "SLURM_JOB_NAME": "leyden", "SLURM_NTASKS": world_size, "SLURM_PROCID": rank,
        "SLURM_LOCALID": rank, "SLURM_NODEID": 0, "SLURM_NNODES": 1, "SLURM_NTASKS_PER_NODE": world_size,
        "SLURM_NODELIST": "localhost", "MASTER_ADDR": address, "MASTER_PORT": port, "JOIN_TIMEOUT_SEC": join_sec,
    }  # fmt: skip

    return lambda: os.environ.update({name: str(value) for name, value in variables.items()})


def test_two_tasks_of_slurm_do_what_one_process_does(run, start, tmp_path):
    run([*TINY, "--run_dir", tmp_path / "one"])
    port = free_port()
    tasks = [start([*TINY, *DDP, "--run_dir", tmp_path / "two"], first=slurm(rank, port)) for rank in (0, 1)]
    assert [task.wait() for task in tasks] == [0, 0], tasks[0].output + tasks[1].output
    assert_same(tmp_path / "one", tmp_path / "two")
    assert "steps" not in tasks[1].output  # only the first one speaks


def test_tasks_must_agree_on_a_folder(run):
    output = run([*TINY, *DDP], code=2, first=slurm(0, free_port()))
    assert errors(output) == ["error: several processes were started: they must agree on a folder -> give --run_dir"]


def elastic(rank: int):
    """A hook: the environment of one of two processes that torchrun has started."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RUN_ID")
    return lambda: os.environ.update(dict(zip(names, [str(rank), str(rank), "2", "2", "0", "none"], strict=True)))


@pytest.mark.parametrize("flags", [["--trainer.devices", 1], [*DDP, "--trainer.num_nodes", 2]])
@pytest.mark.parametrize("first", [slurm(0, "1"), elastic(0)], ids=["SLURM", "torchrun"])
def test_as_many_processes_as_the_config_says(run, tmp_path, flags, first):
    output = run([*TINY, *flags, "--run_dir", tmp_path / "run"], code=2, first=first)
    (line,) = errors(output)
    assert "num_nodes" in line
    assert "devices" in line
    assert not (tmp_path / "run").exists()


def test_a_batch_job_without_srun_is_told(run, tmp_path):
    """Of four tasks only one is there, because srun did not start them."""

    first = slurm(0, free_port(), 4, join_sec=1)
    t0 = time.monotonic()
    output = run([*TINY, *DDP, "--trainer.devices", 4, "--run_dir", tmp_path / "run"], code=75, first=first)
    (line,) = errors(output)
    assert "of 4 processes rank 1, 2, 3 did not come -> " in line
    assert "JOIN_TIMEOUT_SEC (1 s)" in line
    assert "Traceback" not in output
    assert time.monotonic() - t0 < 20


def test_all_that_are_there_name_the_one_that_is_not(start, tmp_path):
    port = free_port()
    flags = [*TINY, *DDP, "--trainer.devices", 3, "--data.batch_size", 63, "--run_dir", tmp_path / "run"]
    tasks = [start(flags, first=slurm(rank, port, 3, join_sec=4)) for rank in (0, 2)]
    assert [task.wait(60) for task in tasks] == [75, 75]
    for task in tasks:
        (line,) = errors(task.output)
        assert "of 3 processes rank 1 did not come -> " in line
    assert json.loads((tmp_path / "run/summary.json").read_text())["exit_code"] == 75


def test_a_port_in_use_is_named(run, tmp_path):
    with socket.socket() as s:
        s.bind(("0.0.0.0", 0))
        s.listen()
        port = s.getsockname()[1]
        output = run([*TINY, *DDP, "--run_dir", tmp_path / "run"], code=75, first=slurm(0, str(port)))
    assert errors(output) == [
        f"error: port {port} of this host is in use -> set MASTER_PORT to another, the same for all processes"
    ]


def test_another_launcher_is_refused(run, tmp_path):
    first = lambda: os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"})  # noqa: E731
    output = run([*TINY, *DDP, "--run_dir", tmp_path / "run"], code=2, first=first)
    assert errors(output)[0].startswith("error: RANK is set, but it is not torchrun nor SLURM")


def test_what_accepts_and_says_nothing_is_named(run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        first = slurm(1, str(silent.getsockname()[1]), join_sec=2)
        output = run([*TINY, *DDP, "--run_dir", tmp_path / "run"], code=75, first=first)
    assert "gives no answer -> set MASTER_PORT to another" in errors(output)[-1]


def test_a_wrong_address_is_named(run, tmp_path):
    first = slurm(1, free_port(), address="no-such-host.invalid", join_sec=1)
    output = run([*TINY, *DDP, "--run_dir", tmp_path / "run"], code=75, first=first)
    (line,) = errors(output)
    assert line.startswith("error: rank 0 is not at no-such-host.invalid:")
    assert "check MASTER_ADDR and MASTER_PORT" in line


def test_a_signal_ends_the_waiting(start, tmp_path):
    task = start([*TINY, *DDP, "--run_dir", tmp_path / "run"], first=slurm(0, free_port()))
    task.wait_for(tmp_path / "run/run.json")
    time.sleep(1)
    task.kill(signal.SIGTERM)
    assert task.wait(15) == 143


def test_what_is_no_time_is_refused(run, tmp_path):
    output = run([*TINY, *DDP, "--run_dir", tmp_path / "run"], code=2, first=slurm(0, free_port(), join_sec=-1))
    assert errors(output) == ["error: JOIN_TIMEOUT_SEC: -1 -> give seconds, such as 300"]


# Who writes.


def noting_writes(file: Path):
    """A hook: write down which rank opens which file for writing, and who begins a run of W&B."""

    def first():
        def audit(event, args):
            if event == "open" and isinstance(args[0], str) and args[2] & (os.O_WRONLY | os.O_RDWR):
                note = f"{os.environ.get('LOCAL_RANK', '0')} {args[0]}\n".encode()
                os.write(notes, note)

        notes = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.environ["WANDB_MODE"] = "offline"
        sys.addaudithook(audit)

    return first


def test_the_first_rank_alone_writes_files_and_to_wandb(run, tmp_path):
    flags = [*TINY, *DDP, "--pictures.enabled", "true", "--checkpoints.every_n_steps", 10]
    run([*flags, "--run_dir", tmp_path / "run"], first=noting_writes(tmp_path / "notes"), twins=1)
    notes = [line.split(" ", 1) for line in (tmp_path / "notes").read_text().splitlines()]
    written = {rank: {p for r, p in notes if r == rank and str(tmp_path / "run") in p} for rank in "01"}
    assert len(written["0"]) > 5
    assert {Path(path).name for path in written["1"]} == {".lock1"}
    assert len(list((tmp_path / "run/wandb").glob("offline-run-*"))) == 1


# torchrun

SCRIPT = """
import os, sys
sys.path[:0] = [{root!r}, {tests!r}]
from test_launch import dies_once
from src.train import main
dies_once({rank}, {step}, {mark!r})
sys.exit(main())
"""


def dies_once(rank: int, step: int, mark: str) -> None:
    """One rank is killed in one step, the first time that it comes there."""
    training_step = Classification.training_step

    def dying(self, batch, batch_idx):
        if self.trainer.global_step == step and os.environ["RANK"] == str(rank) and not Path(mark).exists():
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return training_step(self, batch, batch_idx)

    Classification.training_step = dying


def script(tmp_path: Path, rank: int, step: int) -> Path:
    file = tmp_path / "train.py"
    names = {"root": str(ROOT), "tests": str(ROOT / "tests"), "mark": str(tmp_path / "died")}
    file.write_text(SCRIPT.format(**names, rank=rank, step=step))
    return file


@pytest.mark.long
def test_torchrun_starts_again_what_was_killed_and_it_ends_as_a_whole_run(run, tmp_path):
    flags = [*TINY, *DDP, "--checkpoints.every_n_steps", 7]
    run([*flags, "--run_dir", tmp_path / "whole"], twins=1)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "--max_restarts", 2]
    command = [sys.executable, *launcher, script(tmp_path, 1, 23), *flags, "--run_dir", tmp_path / "cut"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "died").exists()
    assert "going on after 21 steps" in done.stdout
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    a, b = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def hosts():
    """Two hosts: network namespaces that a cable connects. Gives how to start a command on each."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and `ip`")
    names = [f"leyden{os.getpid()}{end}" for end in "ab"]
    cables = [f"v{os.getpid()}{end}" for end in "ab"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        except subprocess.CalledProcessError as e:
            pytest.skip(f"network namespaces cannot be made here: {e.stderr.decode().strip()}")
        for i, (name, cable) in enumerate(zip(names, cables, strict=True), 1):
            ip("link", "set", cable, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{i}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield [(["ip", "netns", "exec", n], {"GLOO_SOCKET_IFNAME": c}) for n, c in zip(names, cables, strict=True)]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def on_two_hosts(hosts, tmp_path: Path, what: list, *launcher: str) -> list[subprocess.Popen]:
    started = []
    for i, (prefix, env) in enumerate(hosts):
        own = [f"--nnodes=2 --nproc_per_node=1 --node_rank={i} --master_addr=10.77.0.1 --master_port=29555", *launcher]
        command = [*prefix, sys.executable, "-m", "torch.distributed.run", *" ".join(own).split(), *map(str, what)]
        log = open(tmp_path / f"host{i}.txt", "w")  # noqa: SIM115
        started.append(subprocess.Popen(command, cwd=ROOT, env={**ENV, **env}, stdout=log, stderr=log))
    return started


TWO_HOSTS = ["--config", "configs/trainer/multi_node.yaml", "--trainer.devices", "1"]


def test_two_hosts_do_what_one_process_does(run, hosts, tmp_path):
    run([*TINY, "--run_dir", tmp_path / "one"])
    both = on_two_hosts(hosts, tmp_path, ["-m", "src.train", *TINY, *TWO_HOSTS, "--run_dir", tmp_path / "two"])
    assert [host.wait(120) for host in both] == [0, 0], (tmp_path / "host0.txt").read_text()
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.long
def test_a_rank_that_is_killed_on_another_host_is_named_soon(hosts, tmp_path):
    flags = [script(tmp_path, 1, 5), *TINY, *TWO_HOSTS, "--run_dir", tmp_path / "run"]
    both = on_two_hosts(hosts, tmp_path, flags)
    t0 = time.monotonic()
    assert [host.wait(90) != 0 for host in both] == [True, True]
    assert time.monotonic() - t0 < 60
    output = (tmp_path / "host0.txt").read_text()
    assert errors(output) == ["error: another process of this run was killed: rank 1 -> the same command goes on"]


# scripts/slurm.sh: our part of it, with stand-ins for SLURM's own programs.

STANDINS = {
    "scontrol": '#!/bin/bash\n[ "$1 $2" = "show hostnames" ] && printf "node7\\nnode8\\n"\n',
    "srun": '#!/bin/bash\nenv | grep -E "^MASTER_" | sort\nprintf "%s\\n" "$@"\n',
}


def test_the_slurm_script_hands_on_what_srun_needs(tmp_path):
    file = ROOT / "scripts/slurm.sh"
    subprocess.run(["bash", "-n", file], check=True)
    for name, text in STANDINS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = {**ENV, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "123456"}
    env |= {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NAME": "digits"}
    env |= {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4"}
    command = ["bash", file, "--config", "configs/experiment/NAME.yaml"]
    shown = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    assert shown[:2] == ["MASTER_ADDR=node7", "MASTER_PORT=23456"]
    assert "--kill-on-bad-exit=1" in shown
    pairs = dict(pairwise(shown))
    assert pairs["--config"] == "configs/experiment/NAME.yaml"
    assert pairs["--run_dir"] == "logs/digits/123456"
    assert (pairs["--trainer.num_nodes"], pairs["--trainer.devices"]) == ("2", "4")
    assert "configs/trainer/multi_node.yaml" in shown
    assert "#SBATCH --requeue" in file.read_text()
