"""The rules of CONTRIBUTING.md that a machine can keep."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT

SOURCES = sorted((ROOT / "src").rglob("*.py"))
MAX_LINES, MAX_FILE, MAX_FUNCTION = 8100, 300, 60


def template_only() -> None:
    if not re.search(r'^name = "leyden"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE):
        pytest.skip("holds for the template; a fork has files and lines of its own")


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("needs a git checkout")
    return done.stdout.split()


def test_src_is_within_its_budget():
    template_only()
    lines = {f.relative_to(ROOT).as_posix(): len(f.read_text().splitlines()) for f in SOURCES}
    assert sum(lines.values()) <= MAX_LINES
    assert {name: n for name, n in lines.items() if n > MAX_FILE} == {}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_functions_are_short(path):
    functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno - f.lineno >= MAX_FUNCTION}
    assert long == {}


@pytest.mark.parametrize("tool", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=" ".join)
def test_checks_pass(tool):
    done = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_networks_know_nothing_and_parts_know_no_commands():
    commands = {
        "src.train",
        "src.evaluate",
        "src.predict",
        "src.generate",
        "src.runs",
        "src.config.build",
        "src.config.trained",
    }
    for folder in ("networks", "models", "data", "optim", "callbacks"):
        for path in (ROOT / "src" / folder).rglob("*.py"):
            nodes = list(ast.walk(ast.parse(path.read_text())))
            modules = {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
            assert not modules & commands, path
            if folder == "networks":
                assert not {m for m in modules if m and m.startswith("src.") and "networks" not in m}, path


def test_the_lock_has_hashes_no_addresses_and_no_malicious_version():
    text = (ROOT / "requirements.lock").read_text()
    packages = re.findall(r"^([a-zA-Z0-9_.-]+)==(\S+)", text, re.MULTILINE)
    assert len(packages) > 50
    assert text.count("==") <= text.count("--hash=sha256:")
    assert "://" not in text
    versions = {version for name, version in packages if name in ("lightning", "pytorch-lightning")}
    assert versions
    assert not versions & {"2.6.2", "2.6.3"}


def test_readme_tree_and_files_agree():
    template_only()
    tree = (ROOT / "README.md").read_text().split("## Read it")[1].split("```")[1]
    named = {line.split()[0] for line in tree.splitlines()[1:]}
    files = {p for p in tracked() if re.fullmatch(r"(src|configs)/.*\.(py|yaml|json)", p) and "__init__" not in p}
    assert {name for name in named if not name.endswith("/")} == files
    assert all((ROOT / name).is_dir() for name in named if name.endswith("/"))


def test_docs_name_only_files_that_are_there():
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for name in re.findall(r"`((?:src|tests|configs|docs|benchmarks)/[\w./]+)`", path.read_text()):
            assert (ROOT / name).exists(), f"{path.name} names {name}"
        for target in re.findall(r"\]\(([\w./]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
