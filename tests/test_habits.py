"""The rules of CONTRIBUTING.md that a machine can keep."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest
from conftest import ROOT

SOURCES = sorted((ROOT / "src").rglob("*.py"))
MAX_LINES, MAX_FILE, MAX_FUNCTION = 19_550, 300, 40
# Each may import what stands after it. In a line of several, none knows the others.
ORDER = "diagnosis > tuning > config > exporting > callbacks > models > optim networks loggers strategies kinds > "
ORDER += "data > cost > run"
LAYERS = ORDER.split(" > ")


def template_only() -> None:
    if not re.search(r'^name = "leyden"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE):
        pytest.skip("holds for the template; a fork has files and lines of its own")


def relative(path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_src_is_within_its_budget():
    template_only()
    lines = {relative(f): len(f.read_text().splitlines()) for f in SOURCES}
    assert sum(lines.values()) <= MAX_LINES
    assert {name: n for name, n in lines.items() if n > MAX_FILE} == {}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_functions_are_short(path):
    functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno - f.lineno >= MAX_FUNCTION}
    assert long == {}


@pytest.mark.parametrize("tool", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=" ".join)
def test_checks_pass(tool):
    done = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def module(path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in SOURCES}


def room(name: str) -> str:
    """The package of a module: `command` at the top level, `kinds` for all of them, `src` for the package itself."""
    parts = name.split(".")[1:]
    if len(parts) < 2 and MODULES[name].name != "__init__.py":
        return "command"
    is_kind = parts[:1] == ["data"] and len(parts) > 1 and (ROOT / "src" / "data" / parts[1]).is_dir()
    return "kinds" if is_kind else "".join(parts[:1]) or "src"


def imported(name: str, at_start: bool = False) -> set[str]:
    """Modules of src that a module imports: all, or those that are loaded with it."""
    tree = ast.parse(MODULES[name].read_text())
    nodes = tree.body if at_start else list(ast.walk(tree))
    named = [f"{n.module}.{a.name}" for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names]
    named += [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
    return {n if n in MODULES else n.rpartition(".")[0] for n in named} & set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down_only(name):
    order = {room: i for i, layer in enumerate(LAYERS) for room in layer.split()} | {"command": -1, "src": -1}
    for other in imported(name):
        same_package = room(name) == room(other) != "command" and name.split(".")[:3] == other.split(".")[:3]
        same_room = room(name) == room(other) and room(name) not in ("command", "kinds")
        assert same_package or same_room or order[room(other)] > order[room(name)], f"{name} imports {other}"
        assert room(name) not in ("networks", "run") or room(other) == room(name), f"{name} imports {other}"


def test_no_import_goes_round():
    TopologicalSorter({name: imported(name, at_start=True) - {name} for name in MODULES}).prepare()


def test_tests_that_use_polars_run_in_forks():
    using = [
        f for f in (ROOT / "tests").rglob("test_*.py") if re.search(r"^import polars", f.read_text(), re.MULTILINE)
    ]
    assert len(using) >= 3
    assert [f for f in using if "\npytestmark = pytest.mark.in_fork" not in f.read_text()] == []


def test_only_commands_are_on_the_top_level():
    for path in (ROOT / "src").glob("*.py"):
        if path.name != "__init__.py":
            tree = ast.parse(path.read_text())
            assert f"python -m src.{path.stem}" in (ast.get_docstring(tree) or ""), path
            assert any(isinstance(n, ast.FunctionDef) and n.name == "main" for n in tree.body), path


def test_the_lock_has_hashes_no_addresses_and_no_malicious_version():
    text = (ROOT / "requirements.lock").read_text()
    packages = re.findall(r"^([a-zA-Z0-9_.-]+)==(\S+)", text, re.MULTILINE)
    assert len(packages) > 50
    assert text.count("==") <= text.count("--hash=sha256:")
    assert "://" not in text
    versions = {version for name, version in packages if name in ("lightning", "pytorch-lightning")}
    assert versions
    assert not versions & {"2.6.2", "2.6.3"}


def test_readme_tree_and_folders_agree():
    template_only()
    tree = (ROOT / "README.md").read_text().split("## Read it")[1].split("```")[1]
    named = {line.split()[0] for line in tree.splitlines()[1:]}
    assert all((ROOT / name).is_dir() for name in named if name.endswith("/"))
    packages = {f"{relative(path.parent)}/" for path in (ROOT / "src").rglob("__init__.py")} - {"src/"}
    configs = {f"{relative(path.parent)}/" for path in (ROOT / "configs").rglob("*.yaml")} - {"configs/"}
    assert {name for name in named if re.match(r"src/\w|configs/", name)} == packages | configs


def test_every_experiment_is_in_the_readme():
    template_only()
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(path.stem for path in (ROOT / "configs/experiment").glob("*.yaml"))


def test_docs_name_only_files_that_are_there():
    pages = {ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")}
    for path in pages - {ROOT / "docs/log.md"}:  # which tells of what was
        for name in re.findall(r"`((?:src|tests|configs|docs|benchmarks)/[\w./]+)`", path.read_text()):
            assert (ROOT / name).exists(), f"{path.name} names {name}"
        for target in re.findall(r"\]\(([\w./]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
