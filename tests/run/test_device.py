import pytest
import torch

from src.run.device import fastest_precision
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
