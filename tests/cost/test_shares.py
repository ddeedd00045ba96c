import math

import pytest

from src.cost.devices import TABLE, called, named
from src.cost.layouts import Layout, total_gib
from src.cost.schedule import DEVICE_HOURS_PER_FAILURE, checkpoint_interval
from src.run.errors import ConfigError


def test_ddp_copies_gradients_unless_they_are_views():
    assert Layout("ddp", 2).besides(100, [], 0, 4) == ({}, {"buckets": 400})
    assert Layout("ddp", 2, views=True).besides(100, [], 0, 4) == ({}, {})


def test_fsdp_divides_the_states_and_gathers_blocks():
    layout = Layout("fsdp", 8)
    assert layout.shares()["optimizer"] == 1 / 8
    assert Layout("fsdp", 8, replicas=2).shares()["optimizer"] == 1 / 4
    assert Layout("fsdp_offload", 8).shares()["optimizer"] == 0
    assert layout.besides(100, [30, 30, 30], 10, 2) == ({"gathered": 2 * 70 + 6 * 30}, {})


def test_what_is_sent_in_a_ring():
    assert Layout("one").sent(1000, 4, 1) == 0
    assert Layout("ddp", 4).sent(1000, 4, 3) == 2 * 3 / 4 * 4000
    assert Layout("ddp", 4).sent(1000, 4, 3, frozen=500) == 6000
    # 3 blocks of 1,000 weights in bfloat16, 4 micro-batches, 4 devices: in each of 24 gatherings a device gets 3/4
    # of 2,000 bytes, and in each of 12 scatterings it gives 3/4 of 4,000.
    assert Layout("fsdp", 4).sent(3000, 2, 4) == 24 * 1500 + 12 * 3000
    # With one of the blocks frozen, it is gathered as before and not scattered.
    assert Layout("fsdp", 4).sent(2000, 2, 4, frozen=1000) == 24 * 1500 + 8 * 3000
    # Two replicas of 4 devices average their shares of 250 gradients, once in each micro-batch.
    assert Layout("fsdp", 8, replicas=2).sent(1000, 2, 1) == 2 * 1500 + 3000 + 1000
    assert Layout("fsdp", 8, replicas=2).sent(1000, 2, 4) == 4 * (2 * 1500 + 3000 + 1000)


def test_beyond_a_machine_the_network_is_the_limit():
    h200 = named("h200")
    assert Layout("ddp", 8).sending_sec(450_000_000_000, 0, h200) == pytest.approx(1)
    assert Layout("ddp", 16).sending_sec(50_000_000_000, 0, h200) == pytest.approx(1)


def test_a_device_needs_more_than_its_tensors():
    parts = {"weights": 2**30}
    assert total_gib(parts, Layout("one"), named("t4")) == pytest.approx(1.05 + 0.5)
    assert total_gib(parts, Layout("ddp", 2), named("t4")) == pytest.approx(1.05 + 1.0)


def test_an_unknown_device_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="h2000 is not known; did you mean h200"):
        named("h2000")
    assert named("A100-80").memory_gib < 80


@pytest.mark.parametrize(("name", "wanted"), [
    ("NVIDIA L40S", "l40s"), ("NVIDIA L40", None), ("NVIDIA L4", "l4"),
    ("NVIDIA H100 PCIe", "h100_pcie"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H100 NVL", "h100_nvl"),
    ("Tesla T4", "t4"), ("NVIDIA T400", None), ("NVIDIA T400 4GB", None),
    ("NVIDIA A100-SXM4-80GB", "a100_80"), ("NVIDIA A100-SXM4-40GB", "a100_40"),
    ("NVIDIA A100 80GB PCIe", "a100_80_pcie"), ("NVIDIA A100-PCIE-40GB", "a100_40_pcie"),
    ("NVIDIA GeForce RTX 4090", "rtx4090"), ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ("NVIDIA RTX A4000", None), ("Tesla V100-SXM2-16GB", "v100_16"), ("Tesla V100-SXM2-32GB", "v100_32"),
    ("NVIDIA H200", "h200"), ("NVIDIA A10G", "a10g"), ("NVIDIA A10", None),
    ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None), ("NVIDIA H200 NVL", None), ("AMD Instinct MI300X", "mi300x"),
])  # fmt: skip
def test_a_device_is_known_by_what_its_driver_calls_it(name, wanted):
    found = called(name)
    assert (found and found.name) == wanted


@pytest.mark.parametrize("device", TABLE.values(), ids=lambda device: device.name)
def test_figures_are_dense_and_in_order(device):
    assert device.peak("bf16-mixed") >= device.peak("32-true") > 0
    assert 12 < device.memory_gib < 200
    assert device.bf16 in (0, device.fp16) or device.kind == "xla"


def test_failures_and_checkpoints():
    """Llama 3's: 16,384 devices for 54 days; and Young's interval for 1e12 bytes."""
    assert pytest.approx(419, rel=0.01) == 16_384 * 54 * 24 / DEVICE_HOURS_PER_FAILURE
    assert checkpoint_interval(10**12, 16_384) == pytest.approx(math.sqrt(2 * 1000 * 50_700 * 3600 / 16_384))
