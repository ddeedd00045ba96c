"""What a config would take on devices that need not be here, and which changes make it fit."""

import copy
import io
import json
import math
from bisect import bisect
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from functools import reduce
from importlib.util import find_spec
from typing import Any

import torch

from src.callbacks.expected import expected
from src.callbacks.probe import WARM, probe
from src.config.build import Experiment
from src.config.request import Request, merge
from src.config.signatures import Signature, signature
from src.config.source import find
from src.cost.devices import Device, here, named
from src.cost.layouts import Layout, total_gib
from src.cost.memory import Usage
from src.cost.schedule import DEVICE_HOURS_PER_FAILURE, checkpoint_interval, reached
from src.cost.tracker import peak
from src.data.placing import can_move, is_small, num_bytes
from src.run.device import fastest_precision
from src.run.errors import ConfigError

FSDP, ADAMW_8BIT = "src.strategies.fsdp.FSDP", "torchao.optim.AdamW8bit"
MICRO, EIGHT = "micro-batch", "8-bit AdamW"
SHARDED, NOT_SHARDED = ("fsdp", "offload"), (EIGHT, "16-mixed")  # what FSDP refuses
KEPT = ("lr", "betas", "weight_decay", "eps")  # arguments that both optimizers have
SAVED = ("weights", "optimizer", "average")  # in a checkpoint
NOTHING = "nothing, it is faster where the device has it"
Plan = dict[str, Any]
Lever = tuple[str, Plan, str]  # name, overlay, what it costs


def planned(request: Request, seen: Plan, overlay: Plan | None = None) -> Plan:
    """Memory and time of the config with an overlay.

    Args:
        seen: what was simulated already, by config; how the model lies on devices follows from the same simulation.

    Raises:
        ConfigError: as a run would, or options that contradict the config.
    """
    options, overlay = request.options, overlay or {}
    config = merge(copy.deepcopy(request.config), overlay)
    device = named(options.device) if options.device else here_of(config)
    layout = layout_of(config["trainer"], options, "strategy" in overlay.get("trainer", {}))
    precision = settle(config["trainer"], device)
    key = json.dumps(config, sort_keys=True, default=str)
    if key not in seen:
        seen[key] = simulated(replace(request, config=config), layout.devices, device)
    experiment, micro_batches, usage = seen[key]
    data, steps = experiment.datamodule, experiment.trainer.fit_loop.epoch_loop.max_steps
    tokens = data.facts.get("seq_len", 0) if "vocab_size" in data.facts else 0
    plan = {
        "device": asdict(device), "layout": asdict(layout), "precision": precision,
        "batch_size": data.batch_size, "micro_batch_size": data.micro_batch_size, "micro_batches": micro_batches,
        "tokens_per_sample": tokens, "steps": steps, "unknown": usage.unknown,
    }  # fmt: skip
    plan |= space(plan, experiment.model, usage, layout, device)
    peak = device.peak(plan["precision"])
    shares = reached(plan["parameters"], bool(tokens))
    flops = (plan["flops_per_step"] or 0) / layout.devices
    seconds = [flops / peak / share for share in shares] if peak and flops else []
    return plan | timed(plan, layout, device, peak, seconds, options.price)


def simulated(request: Request, devices: int, device: Device) -> tuple[Experiment, int, Usage]:
    """The experiment without memory, its micro-batches of a step, and what they and an update take."""
    experiment = Experiment(request)
    micro_batches = experiment.on_meta(devices, request.options.facts)
    trainer, data = experiment.trainer, experiment.datamodule
    tokens = data.facts.get("seq_len", 0) if "vocab_size" in data.facts else 0
    steps = wanted_steps(request.options, data.batch_size, tokens) or trainer.estimated_stepping_batches
    trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps = -1, steps
    return experiment, micro_batches, expected(trainer, experiment.model, device.kind, micro_batches)


def space(plan: Plan, model: Any, usage: Usage, layout: Layout, device: Device) -> Plan:
    """Parameters, operations and memory."""
    number = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    blocks = [sum(p.numel() for p in block.parameters()) for block in model.blocks()]
    itemsize = 2 if "16" in plan["precision"] else 4
    besides = layout.besides(trained, blocks, number - sum(blocks), itemsize)
    parts = {} if usage.unknown else usage.parts(layout.shares(), *besides)
    data: Any = model.trainer.datamodule
    if parts and device.kind != "cpu" and data.on_device and not data.num_workers and can_move(data.splits["train"]):
        size, free = num_bytes(data.splits["train"]), int((device.memory_gib or 0) * 2**30)
        there = data.on_device is True or (device.kind == "cuda" and is_small(size, free))
        parts["data"] = parts.get("data", 0) + size * there
    memory = total_gib(parts, layout, device) if parts else None
    saved = sum(size for part, size in peak(usage.update, {}).items() if part in SAVED)
    k, devices = plan["micro_batches"], layout.devices
    return {
        "network": type(model.network).__name__, "parameters": number, "trained": trained, "blocks": len(blocks),
        "parts": parts, "memory_gib": memory,
        "fits": memory <= device.memory_gib if memory and device.memory_gib else None,
        "flops_per_step": (usage.flops * k + usage.update_flops) * devices if parts else None,
        "recomputed_flops_per_step": usage.recomputed * k * devices,
        "sent_bytes_per_step": layout.sent(trained, itemsize, k, number - trained),
        "checkpoint_bytes": saved or 12 * number,
    }  # fmt: skip


def here_of(config: dict[str, Any]) -> Device:
    accelerator = str(config["trainer"].get("accelerator", "auto"))
    found = None if accelerator == "cpu" else torch.accelerator.current_accelerator(check_available=True)
    return here(found or torch.device("cpu"))


def settle(trainer: dict[str, Any], device: Device) -> str:
    """Have a Trainer of one CPU in place of that of the config; gives the precision that runs on the device."""
    precision = str(trainer.get("precision") or "32-true")
    if precision == "auto":
        fast = "bf16-mixed" if device.bf16 and device.kind == "cuda" else "32-true"
        precision = fastest_precision("cpu") if device.kind == "cpu" else fast
    if device.kind == "cuda" and "bf16" in precision and not device.bf16:
        raise ConfigError(f"trainer.precision: {precision}, but a {device.name} has no bfloat16 -> take 16-mixed")
    for name in ("num_nodes", "plugins", "sync_batchnorm", "strategy"):
        trainer.pop(name, None)
    on_cpu = f"bf{precision}" if precision.startswith("16") else precision  # both halves are of the same size
    trainer |= {"accelerator": "cpu", "devices": 1, "precision": on_cpu}
    return precision


def layout_of(trainer: dict[str, Any], options: Any, is_lever: bool) -> Layout:
    """How the config, an option that goes before it, or a lever that goes before both, puts the model on devices."""
    given = trainer.get("devices", 1)
    listed = len(given) if isinstance(given, (list, tuple)) else given if isinstance(given, int) else 1
    devices = options.devices or max(listed, 1) * trainer.get("num_nodes", 1)
    strategy = trainer.get("strategy") or "auto"
    path = strategy.get("class_path", "") if isinstance(strategy, dict) else str(strategy)
    how = (strategy.get("init_args") or {}) if isinstance(strategy, dict) else {}
    name = "one" if devices == 1 else "ddp"
    if path.lower().endswith("fsdp"):
        name = "fsdp_offload" if how.get("offload") else "fsdp"
    if options.strategy and not is_lever:
        name = options.strategy
    replicas = how.get("replicas", 1)
    if devices % replicas:
        raise ConfigError(f"trainer.strategy.replicas: {replicas} do not divide {devices} devices")
    return Layout(name, devices, replicas, bool(how.get("gradient_as_bucket_view")))


def wanted_steps(options: Any, batch_size: int, tokens: int) -> int:
    if options.tokens and not tokens:
        raise ConfigError("--tokens: this data has no tokens -> give --samples")
    samples = options.tokens / tokens if options.tokens else options.samples or 0
    return math.ceil(samples / batch_size)


def timed(
    plan: Plan, layout: Layout, device: Device, peak: float, seconds: Sequence[float], price: float | None
) -> Plan:
    """What follows from the seconds of computation of a step, shortest and longest, or none if nobody knows them.

    Sending is hidden behind what is computed meanwhile: FSDP's behind all of it, DDP's behind backward alone, which is
    two thirds.
    """
    sending = layout.sending_sec(plan["sent_bytes_per_step"], plan["trained"], device)
    exposed = [max(0.0, sending - (2 / 3 if layout.name == "ddp" else 1.0) * s) for s in seconds]
    step = [a + b for a, b in zip(seconds, exposed, strict=True)]
    useful = ((plan["flops_per_step"] or 0) - plan["recomputed_flops_per_step"]) / layout.devices
    hours = [plan["steps"] * s / 3600 for s in step] if math.isfinite(plan["steps"]) else []
    return {
        "peak_flops": peak, "step_sec": step, "sending_sec": sending, "exposed_sec": exposed,
        "mfu": sorted(useful / s / peak for s in step) if peak else [], "hours": hours,
        "cost": [price * layout.devices * h for h in hours] if price else [],
        "failures": [layout.devices * h / DEVICE_HOURS_PER_FAILURE for h in hours],
        "checkpoint_interval_sec": checkpoint_interval(plan["checkpoint_bytes"], layout.devices),
    }  # fmt: skip


def candidates(request: Request, plan: Plan, sizes: Sequence[int]) -> Iterator[Lever]:
    """The levers that this config can still pull; of the sizes of micro-batches the smallest."""
    device, layout = Device(**plan["device"]), Layout(**plan["layout"])
    path, model = request.config["model"]["class_path"], request.config["model"]["init_args"]
    takes = (signature(path) or Signature()).arguments
    if plan["precision"].startswith("32") and (device.bf16 or device.fp16 or device.kind == "cpu"):
        half = "16-mixed" if device.fp16 and not device.bf16 else "bf16-mixed"
        if half not in NOT_SHARDED or not layout.shares():
            yield half, {"trainer": {"precision": half}}, NOTHING
    can_shard = layout.devices > 1 and find(FSDP) and not request.config["ema"].get("decay")
    can_shard = can_shard and request.config["trainer"].get("precision") != "16-mixed"
    if can_shard and not layout.shares():
        yield "fsdp", of_trainer(), "more is sent"
    if "loss_chunks" in takes and model.get("loss_chunks", 1) == 1:
        yield "loss chunks", of_model(loss_chunks=8), "the last layer once more in backward"
    if sizes:
        yield MICRO, of_micro(sizes[0]), "the same operations, in smaller ones"
    if "activation_checkpointing" in takes and plan["blocks"] and not model.get("activation_checkpointing"):
        yield "checkpointing", of_model(activation_checkpointing=True), "forward once more in backward"
    optimizer = model["optimizer"]
    is_adam = optimizer["class_path"].rpartition(".")[2] in ("Adam", "AdamW")
    if is_adam and not layout.shares() and find_spec("torchao"):
        kept = {name: value for name, value in (optimizer.get("init_args") or {}).items() if name in KEPT}
        yield EIGHT, of_model(optimizer={"class_path": ADAMW_8BIT, "init_args": kept}), "a few percent of a step"
    if can_shard and layout.name != "fsdp_offload":
        yield "offload", of_trainer(init_args={"offload": True}), "waits for the host"


def of_model(**arguments: Any) -> Plan:
    return {"model": {"init_args": arguments}}


def of_micro(size: int) -> Plan:
    return {"data": {"init_args": {"micro_batch_size": size}}}


def of_trainer(**more: Any) -> Plan:
    return {"trainer": {"strategy": {"class_path": FSDP, **more}}}


class Menu:
    """The levers of a config that does not fit, each alone in `alone`, the cheapest first: FSDP where what it sends is
    hidden, else next to last."""

    def __init__(self, request: Request, seen: Plan, plan: Plan) -> None:
        self.request, self.seen, self.plan = request, seen, plan
        size = plan["micro_batch_size"]
        self.sizes = [n for n in range(1, size) if size % n == 0]
        if self.sizes and self.one((MICRO, of_micro(1), ""))["memory_gib"] is None:
            del self.sizes[0]  # batch norm refuses single samples
        each = [(lever, self.one(*self.enlarged([lever]))) for lever in candidates(request, plan, self.sizes)]
        each.sort(key=lambda one: one[0][0] == "offload" or (one[0][0] == "fsdp" and max(one[1]["exposed_sec"] or [1])))
        self.levers, self.alone = [lever for lever, _ in each], [found for _, found in each]

    def one(self, *levers: Lever) -> Plan:
        """What these levers make of it together."""
        overlay: Plan = reduce(merge, (copy.deepcopy(lever[1]) for lever in levers), {})
        with redirect_stdout(io.StringIO()):  # what data modules tell has been told
            found = planned(self.request, self.seen, overlay)
        name, costs = "; ".join(lever[0] for lever in levers), "; ".join(lever[2] for lever in levers)
        saved = self.plan["memory_gib"] - found["memory_gib"] if found["memory_gib"] else None
        shown = {name: found[name] for name in ("memory_gib", "fits", "parts", "step_sec", "exposed_sec")}
        return {"lever": name, "costs": costs, "saves_gib": saved, "overlay": overlay, **shown}

    def together(self) -> Plan:
        """The first that fit together, of which none can be left out; or all, which do not."""
        found = self.fewest(self.levers)
        plain = [lever for lever in self.levers if lever[0] not in SHARDED]
        return found if found["fits"] or not (other := self.fewest(plain))["fits"] else other

    def fewest(self, levers: list[Lever]) -> Plan:
        taken: list[Lever] = []
        for lever in levers:
            if lever[0] in NOT_SHARDED and any(other[0] in SHARDED for other in taken):
                continue
            if lever[0] in SHARDED:
                taken = [other for other in taken if other[0] not in (*SHARDED, *NOT_SHARDED)]
            taken.append(lever)
            if self.one(*taken)["fits"]:
                break
        for lever in [other for other in taken[-2::-1] if other[2] != NOTHING]:  # the last one is needed
            rest = [other for other in taken if other is not lever]
            taken = rest if self.one(*rest)["fits"] else taken
        return self.one(*self.enlarged(taken))

    def enlarged(self, levers: list[Lever]) -> list[Lever]:
        """The same with the largest micro-batch that fits, or the smallest if none does."""
        if all(name != MICRO for name, _, _ in levers):
            return levers

        def of(size: int) -> list[Lever]:
            return [(f"{MICRO} {size}", of_micro(size), cost) if name == MICRO else (name, overlay, cost)
                    for name, overlay, cost in levers]  # fmt: skip

        smallest = self.one(*of(self.sizes[0]))["fits"]
        fitting = bisect(self.sizes, False, key=lambda size: not self.one(*of(size))["fits"]) if smallest else 0
        return of(self.sizes[max(fitting - 1, 0)])


def probed(request: Request, plan: Plan) -> Plan:
    """What the plan says of time, from real steps of one device of this machine with its share of the batch."""
    config, layout = copy.deepcopy(request.config), Layout(**plan["layout"])
    config["trainer"] |= {
        "devices": 1, "max_steps": WARM + request.options.probe, "max_epochs": -1, "limit_val_batches": 0,
        "num_sanity_val_steps": 0, "enable_progress_bar": False,
    }  # fmt: skip
    for name in ("num_nodes", "strategy", "max_time"):
        config["trainer"].pop(name, None)
    share = plan["batch_size"] // layout.devices
    config = merge(config, {"data": {"init_args": {"batch_size": share, "micro_batch_size": plan["micro_batch_size"]}}})
    experiment = Experiment(replace(request, config=config))
    with redirect_stdout(io.StringIO()):
        experiment.build(logger=False)
        seconds, count = probe(experiment, request.options.probe)
    found = timed(plan, layout, here_of(config), plan["peak_flops"], (seconds, seconds), request.options.price)
    return {"probe": {"steps": count, "step_sec": seconds}, **found}
