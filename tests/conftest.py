"""What the tests share: runs in processes of their own, and the real data where it is there."""

import os
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
from processes import ROOT, Child, in_fork

from src.run.device import has_bfloat16

torch.set_num_threads(1)  # no threads in this process, from its first test on, so that it can be forked
os.environ.setdefault("WANDB_MODE", "disabled")  # the tests of W&B set it themselves
needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(torch.device("cpu")), reason="this CPU has no bfloat16")
BF16_TRUE = pytest.param("bf16-true", marks=needs_bfloat16)
# What all kinds of data share is tested on data that is no kind: a run of a second or two, 3 epochs of 20 steps.
SMALL = ["--config", "tests/small.yaml"]
# kind: images
DIGITS = ["--config", "configs/experiment/digits_cnn.yaml"]
SMALL_CNN = [*DIGITS, "--trainer.max_epochs", "3", "--model.network.widths", "[8,8]", "--model.network.hidden", "16"]
SMALL_CNN += ["--pictures.enabled", "false"]
# end


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """A test marked `in_fork` runs in a process of its own. Tests that use polars must: it starts threads, which later
    forks of this process would lack, and wait for."""
    if not pyfuncitem.get_closest_marker("in_fork"):
        return None
    in_fork(lambda: pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}))
    return True


@pytest.fixture(scope="session")
def loaded():
    """This process is ready to be forked: it has loaded what runs load, and read the source that configs are checked
    by. All of it takes 10 s."""
    for name in (
        "torchvision.transforms.v2",
        "matplotlib.backends.backend_agg",
        "wandb.sdk.launch",
        "src.config.build",
    ):
        import_module(name)
    from src.config.request import command_parser, read_request

    before = os.getcwd()
    os.chdir(ROOT)
    read_request(command_parser("train", None), SMALL)
    os.chdir(before)


def starter(folder: Path):
    """start(args, command=src.train.main, first=None, twins=0) -> Child, and the list of all."""
    import src.train

    children = []

    def start(args, command=src.train.main, **how) -> Child:
        os.chdir(ROOT)
        child = Child(command, [str(a) for a in args], folder / f"output{len(children)}.txt", **how)
        children.append(child)
        return child

    return start, children


@pytest.fixture
def start(loaded, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    start, children = starter(tmp_path)
    yield start
    for child in children:
        child.end()


def runner(start):
    """run(args, code=0, ...) -> what a command printed; fails if it ends with another exit code."""

    def run(args, code=0, **how) -> str:
        child = start(args, **how)
        assert child.wait() == code, child.output
        return child.output

    return run


@pytest.fixture
def run(start):
    return runner(start)


@pytest.fixture(scope="session")
def trained_once(loaded, tmp_path_factory):
    """trained_once(args, ...) -> the folder of a run that is trained once for all tests; they only look at it.

    `first` must do the same wherever `args` and `code` are the same.
    """
    folders: dict[tuple, Path] = {}

    def trained(args, code=0, first=None, twins=0) -> Path:
        key = (code, *map(str, args))
        if key not in folders:
            folder = tmp_path_factory.mktemp("trained")
            start, _ = starter(folder)
            before = os.getcwd()
            runner(start)([*args, "--run_dir", folder / "run"], code=code, first=first, twins=twins)
            os.chdir(before)
            folders[key] = folder / "run"
        return folders[key]

    return trained


@pytest.fixture
def copied(trained_once, tmp_path):
    """copied(args, name="run", ...) -> the same, in a copy under tmp_path that a test may change."""

    def copy(args, name="run", **how) -> Path:
        return Path(shutil.copytree(trained_once(args, **how), tmp_path / name, symlinks=True))

    return copy


@pytest.fixture
def data_dir() -> Path:
    """The folder of real data sets that a few tests need."""
    folder = os.environ.get("LEYDEN_DATA_DIR")
    if not folder:
        pytest.skip("needs the real data sets: set LEYDEN_DATA_DIR to their folder")
    return Path(folder)
