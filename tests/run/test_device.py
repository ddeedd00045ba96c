import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceXLAStrategy, XLAStrategy

from src.run.checkpoint import checkpoint_io_for
from src.run.device import check_devices, check_precision, fastest_precision
from src.run.errors import ConfigError
from src.run.terminal import count


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 FLOP"), (9999, "9,999 FLOP"), (10_000, "10 KFLOP"), (7.06e15, "7.06 PFLOP")]
)
def test_numbers_are_readable(n, text):
    assert count(n, "FLOP") == text


@pytest.mark.parametrize(
    ("able", "precision"), [({"avx512_bf16": True}, "bf16-mixed"), ({"avx512_f": True}, "32-true")]
)
def test_bfloat16_is_taken_where_a_cpu_computes_in_it(monkeypatch, able, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert fastest_precision("cpu") == precision


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "bf16", "16-true", "16-mixed"])
@pytest.mark.parametrize("able", [{"avx512_bf16": True}, {"avx512_f": True}])
def test_what_a_cpu_has_to_emulate_is_refused(monkeypatch, able, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    if precision.startswith("bf16") and "avx512_bf16" in able:
        check_precision(precision, torch.device("cpu"))
        return
    line = (
        rf"^trainer.precision: {precision}, which this cpu has to emulate, many times slower -> take auto or 32-true$"
    )
    with pytest.raises(ConfigError, match=line):
        check_precision(precision, torch.device("cpu"))


@pytest.mark.parametrize(
    ("devices", "refused"),
    [
        *[(2, None), ("2", None), ("auto", None), (-1, None), ([0, 1], None), ("0,1", None), (None, None)],
        *[(3, "3"), ("3", "3"), ([0, 2], r"\[0, 2\]"), ("0,2", r"\[0, 2\]")],
    ],
)
def test_more_gpus_than_there_are(monkeypatch, devices, refused):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if refused is None:
        check_devices("gpu", devices)
        return
    line = rf"^trainer.devices: {refused}, but this machine has 2 \(gpu\) -> take as many or fewer, or auto$"
    with pytest.raises(ConfigError, match=line):
        check_devices("gpu", devices)


def test_three_processes_on_a_cpu_are_fine():
    check_devices("cpu", 3)


@pytest.mark.parametrize("kind", [XLAStrategy, SingleDeviceXLAStrategy])
def test_strategies_of_tpus_take_our_checkpoints(tmp_path, kind):
    """As far as that goes without torch_xla, which their constructors ask for."""
    strategy = kind.__new__(kind)
    strategy.checkpoint_io = io = checkpoint_io_for(strategy)
    assert strategy.checkpoint_io is io
    io.save_checkpoint({"global_step": 1, "best": None, "w": torch.ones(2)}, tmp_path / "step-00000001.ckpt")
    io.finish()
    assert io.load_checkpoint(tmp_path / "step-00000001.ckpt")["w"].tolist() == [1, 1]
