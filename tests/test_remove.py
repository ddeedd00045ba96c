"""Each kind of data can be taken out, and all else still passes, in a copy of this project."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from src.config.signatures import classes, signature
from src.config.source import class_attribute
from src.data.module import DataModule
from src.remove import experiments, plan, read

KINDS = sorted(path.parent.name for path in ROOT.glob("src/data/*/__init__.py"))
# Words of a kind that are plain words, too.
pytestmark = pytest.mark.skipif(len(KINDS) < 2, reason="the last kind of data cannot be taken out")
PLAIN = {"text", "files", "clean", "Samples", "channels"}
PLAIN |= {"mean", "std", "Conv"}  # kind: images
PLAIN |= {"time", "until", "known", "group", "targets", "time_zone", "Scaling", "past", "stride"}  # kind: series
PLAIN |= {"table", "Table", "Regression", "target", "split", "scale", "keep"}  # kind: tables


def execute(folder: Path, *args: str, code: int = 0, timeout: int = 300) -> str:
    done = subprocess.run([sys.executable, "-m", *args], cwd=folder, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == code, f"{args}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def git(folder: Path, *args: str) -> str:
    command = ["git", "-c", "user.name=test", "-c", "user.email=test", *args]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def copied(folder: Path) -> Path:
    """A checkout of this project with nothing to commit."""
    done = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("needs a git checkout")
    for name in filter(lambda name: (ROOT / name).is_file(), done.stdout.splitlines()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "all")
    return folder


@pytest.fixture(scope="module", params=KINDS)
def removed(request, tmp_path_factory) -> Path:
    """A copy from which a kind was taken out."""
    if len(KINDS) == 1:
        pytest.skip("the last kind cannot be removed")
    folder = copied(tmp_path_factory.mktemp(f"without_{request.param}") / "fork")
    output = execute(folder, "src.remove", request.param)
    assert f"removed  src/data/{request.param}/__init__.py\n" in output
    changed = {line[3:] for line in git(folder, "status", "--porcelain", "-uall").splitlines()}
    assert changed - {"configs/schema.json"} == set(re.findall(r"^\w+ +(\S+)$", output, re.MULTILINE))
    assert not (folder / f"src/data/{request.param}").exists()
    return folder


@pytest.mark.parametrize(
    "tool", ["ruff check .", "ruff format --check .", pytest.param("mypy", marks=pytest.mark.long)]
)
def test_checks_pass(removed, tool):
    execute(removed, *tool.split())


def test_everything_can_be_imported(removed):
    paths = [path.relative_to(removed).with_suffix("") for path in (removed / "src").rglob("*.py")]
    code = f"import importlib\nfor name in {['.'.join(path.parts) for path in paths]}: importlib.import_module(name)"
    subprocess.run([sys.executable, "-c", code], cwd=removed, check=True)


def test_the_default_experiment_trains(removed, tmp_path):
    default = re.search(r"^CONFIG \?= (\S+)", (removed / "Makefile").read_text(), re.MULTILINE)[1]
    flags = ["--config", "configs/trainer/smoke.yaml", "--run_dir", str(tmp_path / "run")]
    execute(removed, "src.train", "--config", default, *flags)


@pytest.mark.long
def test_commands_and_experiments_run(removed):
    for path in (removed / "src").glob("[a-z]*.py"):
        assert f"python -m src.{path.stem}" in execute(removed, f"src.{path.stem}", "--help")
    manual = execute(removed, "src.train", "--help")
    named = re.findall(r"configs/\S+\.yaml", manual)
    assert named
    assert all((removed / name).exists() for name in named)
    for path in (removed / "configs/experiment").glob("*.yaml"):
        ready = "--data." not in path.read_text()
        execute(removed, "src.train", "--config", str(path), "--dry_run" if ready else "--print_config")


@pytest.mark.long
def test_all_tests_that_remain_pass(removed):
    flags = ["-q", "-m", "not long", "--ignore", "tests/test_remove.py"]
    execute(removed, "pytest", *flags, timeout=7200)


def test_it_refuses_what_it_should(tmp_path):
    folder = copied(tmp_path / "fork")
    assert f"invalid choice: 'nothing' (choose from {', '.join(map(repr, KINDS))})" in execute(
        folder, "src.remove", "nothing", code=2
    )
    assert f"removed  src/data/{KINDS[0]}/" in execute(folder, "src.remove", KINDS[0], "--dry_run")
    (folder / "README.md").open("a").write("mine\n")
    assert "not committed" in execute(folder, "src.remove", KINDS[0], code=2)
    git(folder, "checkout", "README.md")
    (folder / "src/mine.py").write_text(f"import src.data.{KINDS[0]}.module\n")
    (folder / "src/models/mine.py").write_text(f"from src.data.{KINDS[0]} import module\n")
    (folder / "src/models/other.py").write_text(f"from src.data import {KINDS[0]}\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "mine")
    output = execute(folder, "src.remove", KINDS[0], code=2)
    assert f"src/models/mine.py: src.data.{KINDS[0]}" in output
    assert f"src/models/other.py: src.data import {KINDS[0]}" in output
    assert git(folder, "status", "--porcelain") == ""
    for name in KINDS[1:]:
        shutil.rmtree(folder / "src/data" / name)
    assert "the last kind of data" in execute(folder, "src.remove", KINDS[0], code=2)


def own_options(kind: str) -> set[str]:
    """Arguments of the kind's data module that are not those of all data modules."""
    found = [path for path in classes() if path.startswith(f"src.data.{kind}.") and path.endswith("DataModule")]
    options = {name for path in found for name in signature(path).arguments}
    shared = ("src.data.module.DataModule", "src.data.frame.FrameDataModule")
    return options.difference(dir(DataModule), *(signature(path).arguments for path in shared))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_shared_names_no_kind(kind):
    """Neither its folder, its classes, its experiments (but as the example in a manual), nor options of its data."""
    files = read()
    gone, left = plan(kind, files)
    defined = {name for path in gone for name in re.findall(r"^class (\w+)", files[path], re.MULTILINE)}
    facts = {fact for path in classes() for fact in class_attribute(path, "provides") or ()}
    options = own_options(kind).difference(*(own_options(other) for other in KINDS if other != kind), facts)
    names = {kind, kind.removesuffix("s")} | defined | options | {*experiments(gone)}
    words = re.compile(rf"\b({'|'.join(names - PLAIN)})\b")
    shared = [path for path in left if re.match(r"src/(?!data/\w+/|networks/|remove)", path)]
    found = []
    for path in shared:
        code = re.sub(r"^ +python -m src.*$", "", files[path], flags=re.MULTILINE)  # in a manual
        found += [
            f"{path}: {line.strip()}" for line in code.splitlines() if words.search(line) and "log_image" not in line
        ]
    assert not found, "\n".join(found)
