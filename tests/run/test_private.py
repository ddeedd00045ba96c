"""Each private part of Lightning and torch that src/run/private.py uses is there and does what is wanted of it."""

import ast
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy
from processes import in_fork
from torch.utils.data import DataLoader, TensorDataset

from src.run import private
from src.run.errors import EnvironmentFault

CALM = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Line(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        return (self.weight * batch[0]).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(6)), batch_size=1)


@pytest.fixture
def trainer():
    return Trainer(accelerator="cpu", devices=1, max_epochs=1, accumulate_grad_batches=2, **CALM)


def gone(part: str) -> str:
    return f"{part} is no more what src/run/private.py takes it for: read the new release, and mend it there"


def test_cluster_environment(trainer):
    part = gone("Trainer._accelerator_connector.cluster_environment")
    assert isinstance(private.cluster_environment(trainer), LightningEnvironment), part
    slurm = SLURMEnvironment(auto_requeue=False)
    trainer = Trainer(accelerator="cpu", devices=1, plugins=[slurm], **CALM)
    assert private.cluster_environment(trainer) is slurm, part


def test_start_process_group():
    part = gone("ModelParallelStrategy._setup_distributed")
    in_fork(lambda: starts_a_process_group(part))


def starts_a_process_group(part: str) -> None:
    strategy = Trainer(accelerator="cpu", devices=1, strategy=ModelParallelStrategy(), **CALM).strategy
    private.start_process_group(strategy)
    assert torch.distributed.is_initialized(), part
    assert (strategy.global_rank, strategy.world_size) == (0, 1), part


@pytest.mark.parametrize(("strategy", "forks"), [("ddp", False), ("ddp_fork", True), ("ddp_spawn", True)])
def test_forks_within_fit(strategy, forks):
    trainer = Trainer(accelerator="cpu", devices=2, strategy=strategy, **CALM)
    part = gone("lightning.pytorch.strategies.launchers._MultiProcessingLauncher")
    assert private.forks_within_fit(trainer) == forks, part


def test_attach_data(trainer):
    model, data, part = Line(), Data(), gone("Trainer._data_connector.attach_data")
    trainer.strategy.connect(model)
    private.attach_data(trainer, model, data)
    assert (trainer.datamodule, data.trainer, model.trainer) == (data, trainer, trainer), part
    assert trainer.estimated_stepping_batches == 3, part


def test_steps_logged(trainer):
    part = gone("Trainer.fit_loop.epoch_loop._batches_that_stepped")
    assert private.steps_logged(trainer) == 0, part
    trainer.fit(Line(), datamodule=Data())
    assert private.steps_logged(trainer) == trainer.global_step == 3, part
    private.set_steps_logged(trainer, 7)
    state = trainer.fit_loop.state_dict()["epoch_loop.state_dict"]
    assert (private.steps_logged(trainer), state) == (7, {"_batches_that_stepped": 7}), part


@pytest.mark.parametrize(("value", "found"), [(1.0, 0), (3e38, 0), (float("nan"), 1), (float("-inf"), 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_nonfinite(value, found, dtype):
    grads = [torch.ones(3, dtype=dtype), torch.full((2,), value, dtype=dtype)]
    before = [grad.clone() for grad in grads]
    part = gone("torch._amp_foreach_non_finite_check_and_unscale_")
    assert private.any_nonfinite(grads).item() == found, part
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(grads, before, strict=True)), part


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
def test_skip_on_device(make):
    param, part = torch.nn.Parameter(torch.ones(3)), gone("found_inf of fused optimizers")
    optimizer = make([param], lr=0.1, fused=True)
    for skip in (False, True, False):
        before, param.grad = param.detach().clone(), torch.ones(3)
        private.skip_on_device(optimizer, torch.tensor(skip))
        optimizer.step()
        assert torch.equal(param, before) == skip, part


def test_leave_unscaling_to_scaler():
    seen = []

    class Seen(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["params"][0].grad.clone())

    part = gone("Optimizer._step_supports_amp_scaling")
    for leave in (False, True):
        param = torch.nn.Parameter(torch.ones(1))
        optimizer, scaler = Seen([param], lr=0.1, fused=True), torch.amp.GradScaler("cpu", init_scale=8.0)
        if leave:
            private.leave_unscaling_to_scaler(optimizer)
        scaler.scale(param.sum()).backward()
        scaler.step(optimizer)
    assert [float(grad) for grad in seen] == [8, 1], part


def test_worker_processes():
    part = gone("DataLoader._iterator._workers")
    loader = DataLoader(TensorDataset(torch.ones(4)), num_workers=2, persistent_workers=True)
    assert private.worker_processes(loader) == [], part
    next(iter(loader))
    processes = private.worker_processes(loader)
    assert [(process.is_alive(), process.exitcode) for process in processes] == [(True, None)] * 2, part


@pytest.mark.in_fork  # torch remembers the compiler that it has found
@pytest.mark.parametrize("found", [True, False])
def test_check_compiler(monkeypatch, tmp_path, found):
    part = gone("torch._inductor.cpp_builder.get_cpp_compiler")
    if found:
        assert shutil.which("g++"), "this test needs a compiler"
        return private.check_compiler("key", torch.device("cpu"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFault, match="key: it compiles, but no compiler is found"):
        private.check_compiler("key", torch.device("cpu"))
    with pytest.raises(EnvironmentFault, match="install triton"):
        private.check_compiler("key", torch.device("cuda")), part
    return None


def test_fake_tensors():
    """Nothing is allocated, and memory is given back as it would be."""
    part = gone("FakeTensorMode")
    with private.fake_tensors():
        weight = torch.nn.Parameter(torch.empty(10**6, 10**6))
        (weight * 2).sum().backward()
        storage = id(weight.grad.untyped_storage())
        assert weight.grad.shape == (10**6, 10**6), part
        assert id(weight.grad.untyped_storage()) == storage, part
        assert id(weight.grad.detach().untyped_storage()) == storage, part  # one object for one memory


def private_uses(tree: ast.AST) -> list[str]:
    """Names that begin with one underscore where they are read from an object or imported from a module."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.append(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
            found += [f"{ast.unparse(node.args[0])}.{getattr(node.args[1], 'value', '')}"]
    names = ((use, use.rpartition(".")[2]) for use in found)
    return [use for use, name in names if name.startswith("_") and not name.startswith("__")]


def test_skip_idle_hooks(trainer):
    """In the class they stay, for `super()`; in the object they are gone, and Lightning does not ask for them."""
    seen = []

    class Quiet(Callback):
        pass

    class Loud(Quiet):
        def on_train_batch_end(self, *args):
            super().on_train_batch_end(*args)
            seen.append("loud")

    given = LambdaCallback(on_train_batch_end=lambda *_: seen.append("given"))
    trainer.callbacks = [Quiet(), Loud(), given]
    private.skip_idle_hooks(trainer.callbacks)
    hooks = [[getattr(c, f"on_train_batch_{when}") is None for when in ("start", "end")] for c in trainer.callbacks]
    assert hooks == [[True, True], [True, False], [True, False]]
    trainer.fit(Line(), datamodule=Data())
    assert seen == ["loud", "given"] * 6, gone("`if callable(fn)` of _call_callback_hooks")


@pytest.mark.parametrize(("then", "code"), [("sys.exit(3)", 3), ("raise ValueError", 1)])
def test_leave(then, code):
    lines = "import atexit, sys; atexit.register(print, 'first'); from src.run.private import leave"
    lines += f"; atexit.register(print, 'second'); atexit.register(leave, {code if 'exit' in then else 0}); {then}"
    done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "second\nfirst\n"), gone("atexit._run_exitfuncs")


def test_times_written():
    tensor = torch.ones(2)
    before = private.times_written(tensor)
    assert private.times_written(tensor + 1) == before
    tensor += 1
    assert private.times_written(tensor) == before + 1, gone("Tensor._version")


def test_private_parts_are_used_in_one_file_alone():
    allowed = ("torch._foreach_", "os._exit")  # documented in all but name
    found = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        uses = [use for use in private_uses(ast.parse(path.read_text())) if not use.startswith(allowed)]
        uses = [use for use in uses if not use.endswith("._replace")]  # of named tuples, which is public
        if uses and path.name != "private.py":
            found[path.relative_to(ROOT).as_posix()] = uses
    assert found == {}, "give each of these a function in src/run/private.py, and that a test in this file"


@pytest.mark.parametrize(
    "line", ["self._trainer", "from torch.nn import _x", "getattr(a, '_b', 0)", "trainer._a.b", "a.b._c"]
)
def test_private_uses_are_found(line):
    assert len(private_uses(ast.parse(line))) == 1
