import copy
import json
from functools import reduce
from operator import getitem

import pytest
import yaml
from conftest import ROOT, SMALL

import src.plan
from src.cost.devices import TABLE
from src.data.waves import SIZES

# 1,290 samples of a hidden layer of 2.5 million units: in bfloat16 they do not fit into 24 GB at once.
LARGE = [
    *SMALL,
    "--data.batch_size",
    "1290",
    "--model.network.widths",
    "[2500000]",
    "--trainer.precision",
    "bf16-mixed",
]
GPU = ["--device", "rtx3090"]
# What does not fit, and how many levers it takes.
WIDE = "--config tests/small.yaml --device t4 --model.network.widths"
TIGHT = {f"{WIDE} [60000,12000]": 1, f"{WIDE} [13000,13000,13000,13000,13000] --devices 2": 1}
# kind: text
TEXT = "--config configs/experiment/text_gpt.yaml --model.network.dim 4096 --model.network.num_heads 32"
TEXT += " --model.network.depth 3 --data.batch_size 16 --data.seq_len 8192"
TIGHT |= {f"{TEXT} --device t4": 2, f"{TEXT} --device t4 --devices 4": 2}
# end


@pytest.fixture
def planned(run, tmp_path):
    """planned(args, ...) -> what was printed, and the JSON."""

    def plan(args, **how):
        output = run([*args, "--json", tmp_path / "plan.json"], command=src.plan.main, **how)
        return output, json.loads((tmp_path / "plan.json").read_text())

    return plan


def test_a_small_config_on_this_machine(planned):
    output, plan = planned([*SMALL, "--price", "2"])
    assert plan["fits"] is True
    assert plan["parameters"] == sum((64 * 32 + 32, 32 * 16 + 16, 16 * 10 + 10))
    assert plan["flops_per_step"] == 2 * 64 * (2 * 64 * 32 + 3 * 32 * 16 + 3 * 16 * 10)
    assert plan["parts"]["weights"] == 4 * plan["parameters"]
    assert plan["parts"]["optimizer"] == pytest.approx(8 * plan["parameters"], rel=0.01)
    assert plan["probe"]["steps"] == 20
    assert plan["hours"][0] == pytest.approx(60 * plan["step_sec"][0] / 3600)
    assert plan["cost"] == [2 * hours for hours in plan["hours"]]
    for name in ("network", "compute", "memory", "fits", "speed", "time", "cost", "failures"):
        assert f"\n{name} " in f"\n{output}"


def test_data_that_will_lie_on_the_device_is_counted(planned):
    """The samples of train: 64 numbers and a target each; none on a CPU, whose memory they are in already."""
    args = [*SMALL, *GPU, "--data.on_device"]
    apart = planned([*args, "false"])[1]["parts"]["data"]
    for how in ("true", "auto"):
        there = planned([*args, how])[1]["parts"]["data"] - apart
        assert there == SIZES["train"] * (64 * 4 + 8)
    assert planned([*args, "auto", "--data.num_workers", 1])[1]["parts"]["data"] == apart
    assert planned([*SMALL, "--data.on_device", "true"])[1]["parts"]["data"] < there


def test_what_does_not_fit_is_made_to_fit_by_an_overlay_that_trains(planned, run, tmp_path):
    overlay, picture = tmp_path / "fits.yaml", tmp_path / "plan.png"
    output, plan = planned([*LARGE, *GPU, "--overlay", overlay, "--picture", picture])
    assert plan["fits"] is False
    assert plan["together"]["fits"]
    assert plan["together"]["saves_gib"] == pytest.approx(plan["memory_gib"] - plan["together"]["memory_gib"])
    assert "NO: " in output
    micro = yaml.safe_load(overlay.read_text())["data"]["init_args"]["micro_batch_size"]
    assert 1290 % micro == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"
    _, fits = planned([*LARGE, *GPU, "--config", overlay])
    assert fits["fits"] is True
    assert fits["memory_gib"] == pytest.approx(plan["together"]["memory_gib"])
    small = [*LARGE, "--config", overlay, "--model.network.widths", "[16]", "--trainer.precision", "32-true"]
    assert f"({micro} at once on a device)" in run([*small, "--run_dir", tmp_path / "run"])


def without(overlay, path):
    rest = copy.deepcopy(overlay)
    *groups, name = path
    del reduce(getitem, groups, rest)[name]
    return rest


LEVERS = [("trainer", "precision"), ("trainer", "strategy"), ("data", "init_args", "micro_batch_size")]
LEVERS += [("model", "init_args", name) for name in ("activation_checkpointing", "loss_chunks", "optimizer")]


def pulled(overlay):
    return [path for path in LEVERS if reduce(lambda group, name: group.get(name, {}), path, overlay)]


@pytest.mark.parametrize(("flags", "count"), TIGHT.items(), ids=lambda value: "")
def test_no_lever_of_an_overlay_can_be_left_out(planned, tmp_path, flags, count):
    overlay = tmp_path / "fits.yaml"
    output, plan = planned([*flags.split(), "--overlay", overlay])
    found = yaml.safe_load(overlay.read_text())
    assert found == plan["overlay"]
    assert len(pulled(found)) >= count
    assert "together  " in output
    assert max(line.find("  ") for line in output.splitlines()) < 20
    for path in (path for path in pulled(found) if "precision" not in path):  # which costs nothing
        (tmp_path / "less.yaml").write_text(yaml.safe_dump(without(found, path)))
        _, less = planned([*flags.split(), "--config", tmp_path / "less.yaml"])
        assert less["fits"] is False, path
    size = plan["batch_size"] // plan["layout"]["devices"]
    if micro := found.get("data", {}).get("init_args", {}).get("micro_batch_size"):
        larger = min(n for n in range(micro + 1, size + 1) if size % n == 0)
        _, more = planned([*flags.split(), "--config", overlay, "--data.micro_batch_size", str(larger)])
        assert more["fits"] is False


def test_an_overlay_with_fsdp_trains_on_two_devices(planned, run, tmp_path):
    overlay = tmp_path / "fits.yaml"
    wide = [*SMALL, "--model.network.widths", "[13000,13000,13000,13000,13000]", "--device", "t4", "--devices", "2"]
    _, plan = planned([*wide, "--overlay", overlay])
    assert (plan["fits"], plan["layout"]["name"]) == (False, "ddp")
    assert "FSDP" in overlay.read_text()
    assert "torchao" not in overlay.read_text()
    flags = ["--config", overlay, "--trainer.devices", "2", "--trainer.accelerator", "cpu", "--trainer.max_steps", "4"]
    output = run([*SMALL, *flags, "--run_dir", tmp_path / "run"], twins=1)
    assert "error" not in output
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_devices_that_are_not_here(planned):
    _, one = planned([*SMALL, *GPU])
    output, eight = planned([*SMALL, "--device", "h100", "--devices", "8", "--strategy", "fsdp", "--samples", "1e6"])
    assert eight["layout"] == {"name": "fsdp", "devices": 8, "replicas": 1, "views": False}
    assert eight["micro_batch_size"] == 8
    assert eight["flops_per_step"] == one["flops_per_step"]
    assert eight["steps"] == 15_625
    assert eight["exposed_sec"][0] > 0
    assert eight["mfu"][1] < 0.3  # so small a step waits for what is sent
    assert "8 x h100, fsdp" in output
    _, many = planned(
        [*SMALL, "--device", "tpu-v5p", "--devices", "4096", "--data.batch_size", "8192", "--samples", "1e9"]
    )
    assert many["micro_batch_size"] == 2


# kind: text
def test_a_model_of_any_size_and_a_vocabulary_that_is_not_here(planned):
    large = ["--config", "configs/experiment/text_gpt.yaml", "--config", "configs/network/gpt_7b.yaml"]
    many = ["--device", "h200", "--devices", "1024", "--data.batch_size", "1024", "--strategy", "fsdp"]
    _, plan = planned([*large, *many, "--facts", "{vocab_size: 50257}", "--tokens", "20e9"])
    assert plan["parameters"] == 6_846_435_328 + (50_257 - 256) * 4096
    assert plan["tokens_per_sample"] * 1024 * plan["steps"] == pytest.approx(20e9, rel=0.01)
    assert plan["fits"] is True
    assert plan["failures"][0] > 0


# end


def test_a_network_that_looks_at_its_numbers_is_told_as_unknown(planned, tmp_path, monkeypatch):
    from torch import nn

    from src.networks import mlp

    class Curious(mlp.MLP):
        def forward(self, x):
            logits = super().forward(x)
            return logits * 2 if not x.is_meta and logits.sum() > 0 else logits

    def first():
        mlp.MLP = Curious

    assert issubclass(Curious, nn.Module)
    output, plan = planned([*SMALL, *GPU], first=first)
    assert plan["fits"] is None
    assert plan["memory_gib"] is None
    assert "memory    unknown: the model does not run without numbers (DataDependent" in output


@pytest.mark.parametrize(("flags", "message"), [
    (["--device", "h20"], "--device: h20 is not known; did you mean h200?"),
    (["--devices", "3"], "data.batch_size: 64 over 3 devices -> take one of [63, 66]"),
    (["--devices", "0"], "--devices: invalid whole number above 0 value: '0'"),
    (["--tokens", "1e9"], "--tokens: this data has no tokens -> give --samples"),
    (["--price", "-3"], "--price: invalid positive number value: '-3'"),
    (["--facts", "{vocab_size: 3}"], "--facts: the data has no vocab_size"),
    (["--facts", "3"], "--facts: give names and values -> --facts '{vocab_size: 50257}'"),
    (["--json", "nowhere/x.json"], "nowhere/x.json: nowhere is no folder -> make it first"),
    (["--device", "t4", "--trainer.precision", "bf16-mixed"], "trainer.precision: bf16-mixed, but a t4 has"),
    (["--strategy", "zero"], "--strategy: invalid choice: 'zero'"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")  # fmt: skip
def test_bad_input_is_one_line(flags, message, run):
    output = run([*SMALL, "--probe", "0", *flags], command=src.plan.main, code=2)
    assert output.startswith(f"error: {message}")
    assert output.count("\n") == 1


def test_the_page_lists_the_devices():
    text = (ROOT / "docs/plan.md").read_text()
    assert [name for name in TABLE if f"`{name}`" not in text] == []
