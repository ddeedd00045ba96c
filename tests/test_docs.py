"""In a scratch fork: every file that README and docs show is written, every command in them is run."""

import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from processes import ROOT, python

DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SMOKE = "--config configs/trainer/smoke.yaml"
# What cannot run here, and why; all else must.
ELSEWHERE = {
    "pre-commit install": "changes the checkout that it is run in",
    "make view": "needs a terminal: test_view_shows_the_runs",
    "make test-long": "is as long as it says",
    "make check": "test_habits.py",
    "pytest tests/test_experiments.py tests/test_habits.py tests/config/test_schema.py": "these run as they are",
    # kind: images
    "python -m src.train --config configs/experiment/cifar10_resnet.yaml --data.data_dir DIR/cifar10 "
    "--trainer.accelerator cpu --trainer.devices 2": "unpacked in test_experiments.py",
    # end
}
ELSEWHERE |= {f"make remove KIND={path.parent.name}": "test_remove.py" for path in ROOT.glob("src/data/*/__init__.py")}
EXPERIMENT = re.search(r"^CONFIG \?= configs/experiment/(\w+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def parts(path: Path) -> list[str]:
    """The page whole: its commands build on each other. The sections of the results do not, and take long."""
    text = path.read_text()
    return re.split(r"^(?=## )", text, flags=re.MULTILINE) if path.name == "results.md" else [text]


def commands(text: str) -> list[str]:
    lines = [line.split(" #")[0].strip() for block in blocks(text, "bash") for line in block.splitlines()]
    inline = re.findall(r"`((?:python -m|make seeds) [^`]+)`", text)
    return [line for line in [*lines, *inline] if line]


def shortened(command: str) -> str:
    """The same command with fewer steps, and placeholders filled in."""
    for word, value in (("DIR", os.environ.get("LEYDEN_DATA_DIR", "")), ("seed_everything N", "seed_everything 1")):
        command = re.sub(rf"\b{word}\b", value, command)
    command = re.sub(r"--repeats \d+ --steps \d+", "--repeats 1 --steps 3", command)
    command = re.sub(r"(benchmarks.plan .*)--limit \d+", r"\1--limit 1", command)
    command = re.sub(r" --\w+ (PYTHON|PATH|CHECKOUT)\b", "", command)  # of peers, which are not here
    command = re.sub(r"--rows \d+", "--rows 20000", command)
    command = re.sub(r"(src\.tune [^`]*)", r"\1 --only threads --minutes 0.02", command)
    command = re.sub(r"(src\.diagnose [^`]*)", r"\1 --minutes 0.05", command)
    if "src.sweep" in command:
        return f"{command} --num_trials 2 {SMOKE} --pictures.enabled false"
    command = re.sub(r"precision --repeats \d+", "precision --repeats 1 --batch_size 4", command)
    # kind: images
    if "benchmarks.cifar_90" in command:
        command += " --only 000[0-9] --batch_size 32 --epochs 1"
    # end
    # kind: text
    command = re.sub(r"--megabytes [\d ]+\d", "--megabytes 1", command)
    # end
    # kind: series
    command = re.sub(r"(benchmarks.lstm_forecaster .*)", r"\1 --batch_sizes 8 --hidden 8", command)
    # end
    if "benchmarks.diagnose" in command:
        return f"{command} --faults , --healthy 1 --minutes 0.05"
    if "benchmarks.levers" in command:
        network = "GPT"
        network = "ViT"  # kind: images
        command = f"{command} --networks {network} --levers micro-batches"
    if command.startswith("make seeds"):
        command = command.replace('"0 1 2"', '"0 1"' if EXPERIMENT in command else '"0"')
        return command.replace('ARGS="', f'ARGS="{SMOKE} ') if "ARGS=" in command else f'{command} ARGS="{SMOKE}"'
    if "src.train" in command and "smoke" not in command:
        return f"{command} {SMOKE} --pictures.enabled false"
    if command == "make train":
        return f'make train ARGS="{SMOKE}"'
    return 'make test ARGS="tests/data/test_order.py"' if command == "make test" else command


@pytest.fixture(scope="module")
def trained(loaded, tmp_path_factory) -> Path:
    """A fork in which two runs are trained."""
    fork = tmp_path_factory.mktemp("trained") / "fork"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a git checkout")
    for name in filter(lambda name: (ROOT / name).is_file(), listed.stdout.splitlines()):
        (fork / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, fork / name)
    # Its environment is this one: make has nothing to install.
    (fork / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        (fork / ".venv" / part.name).symlink_to(part)
    (fork / ".venv/ready").unlink(missing_ok=True)  # a link, which would touch that of this project
    (fork / ".venv/ready").touch()
    # All forks share what mypy remembers of torch.
    remembered = fork.parent / "mypy"
    shutil.copytree(ROOT / ".mypy_cache", remembered) if (ROOT / ".mypy_cache").is_dir() else remembered.mkdir()
    (fork / ".mypy_cache").symlink_to(remembered)
    for name, more in (("first", ""), ("second", "--trainer.max_steps 600")):  # as the README makes them
        flags = f"--run_dir logs/{EXPERIMENT}/{name} --wandb.mode offline {more}"
        execute(f"python -m src.train --config configs/experiment/{EXPERIMENT}.yaml {SMOKE} {flags}", fork)
    return fork


def execute(command: str, fork: Path) -> str:
    """Python in a forked process with the fork's `src`, which saves loading torch; all else in a shell."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "RUN_DIR"))}
    env |= {"PATH": f"{fork}/.venv/bin:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    env |= {"WANDB_MODE": "offline"} if "wandb.mode" in command else {}
    words = shlex.split(command)
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        env[name] = value
    if words[0] != "python" or "--trainer.devices" in words:
        done = subprocess.run(command, shell=True, cwd=fork, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout
    (fork / ".cache").mkdir(exist_ok=True)
    log = fork / ".cache/output.txt"
    log.unlink(missing_ok=True)
    child = python(words[1:], fork, env, log)
    code = child.wait(300)
    child.end()
    assert code == 0, f"{command}\n{child.output}"
    return child.output


def write_files(path: Path, fork: Path) -> list[str]:
    """The files shown in blocks that begin with a comment of their path."""
    written = []
    for block in [*blocks(path.read_text(), "python"), *blocks(path.read_text(), "yaml")]:
        named = re.match(r"# ((?:src|configs)/\S+)\n", block)
        if named:
            (fork / named[1]).write_text(block[named.end() :])
            written.append(named[1])
    return written


def todo() -> dict[str, tuple[Path, str, list[str]]]:
    """Name of a part of a page -> its commands, shortened, that come in no part before it."""
    seen, found = set(map(shortened, ELSEWHERE)), {}
    for path in DOCS:
        for number, text in enumerate(parts(path)):
            new = [c for c in dict.fromkeys(map(shortened, commands(text))) if c not in seen]
            seen.update(new)
            if new:
                found[f"{path.name}-{number}" if number else path.name] = (path, text, new)
    return found


TODO = todo()


@pytest.mark.parametrize("part", TODO)
def test_commands_run(part, trained, tmp_path):
    path, text, new = TODO[part]
    if any(re.search(r"\bDIR\b", command) for command in commands(text)) and not os.environ.get("LEYDEN_DATA_DIR"):
        pytest.skip("needs the real data sets: set LEYDEN_DATA_DIR to their folder")
    fork = tmp_path / "fork"
    shutil.copytree(trained, fork, symlinks=True)
    if any("src.train" in command and f"--run_dir logs/{EXPERIMENT}/first" in command for command in new):
        shutil.rmtree(fork / f"logs/{EXPERIMENT}/first")  # this page makes it
    write_files(path, fork)
    for command in new:
        execute(command, fork)


# kind: images
def test_make_it_yours(trained, tmp_path):
    """The four steps of the README, then the checks that a fork would run."""
    if 'name = "leyden"' not in (ROOT / "pyproject.toml").read_text():
        pytest.skip("this fork has taken these steps")
    fork = tmp_path / "fork"
    shutil.copytree(trained, fork, symlinks=True)
    before = (fork / "configs/schema.json").read_text()
    files = write_files(ROOT / "README.md", fork)
    assert files == ["src/networks/average.py", "src/data/images/parity.py", "configs/experiment/parity_average.yaml"]
    output = execute(f"python -m src.train --config {files[2]} --trainer.max_epochs 3", fork)
    assert re.search(r"^network +Average, 4,\d\d\d parameters$", output, re.MULTILINE)
    assert float(re.search(r"^test .*acc ([\d.]+)", output, re.MULTILINE)[1]) > 0.6
    execute("make rename NAME=mine", fork)
    execute("make schema", fork)
    assert "src.networks.average.Average" in (fork / "configs/schema.json").read_text()
    assert "src.networks.average.Average" not in before
    for name in ("pyproject.toml", "README.md", "configs/default.yaml", "src/__init__.py"):
        assert "leyden" not in (fork / name).read_text().lower(), name
    execute("ruff check src configs && ruff format --check src && mypy", fork)
    execute(f"python -m src.train --config {files[2]} {SMOKE}", fork)  # with its new name
    execute("git init -q && git add -A && pytest -q tests/test_habits.py tests/config/test_schema.py", fork)
    execute("pytest -q tests/test_experiments.py -k parity", fork)


# end


def test_files_shown_in_add_are_clean(trained, tmp_path):
    fork = tmp_path / "fork"
    shutil.copytree(trained, fork, symlinks=True)
    assert len(write_files(ROOT / "docs/add.md", fork)) == 2
    execute("ruff check src && ruff format --check src && mypy", fork)


# kind: images
def test_python_of_the_readme_runs(trained):
    (code,) = [block for block in blocks((ROOT / "README.md").read_text(), "python") if "load_run" in block]
    execute(f"python -c '{code}\nassert logits.shape == (4, 10)'", trained)


# end


def test_view_shows_the_runs(trained):
    """In a terminal of its own, read until a run is on it: how long the viewer takes to start is the machine's."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execvp("make", ["make", "-C", str(trained), "view"])
    termios.tcsetwinsize(terminal, (50, 150))
    shown, end = b"", time.monotonic() + 120
    try:
        while b"-digits_" not in shown and time.monotonic() < end:
            if select.select([terminal], [], [], 1)[0]:
                shown += os.read(terminal, 65536)
    finally:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)
    assert b"-digits_" in shown


def test_make_explains_its_targets():
    text = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    assert {t for t in targets if not re.search(rf"^{t} +\S", shown, re.MULTILINE)} == set()


@pytest.mark.parametrize("target", ["compare", "remove", "rename", "rename NAME=Not_Good"])
def test_make_says_what_is_missing(target, trained):
    done = subprocess.run(f"make {target}", shell=True, cwd=trained, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: " in done.stderr
