"""What a config would take on devices that need not be here, and which changes make it fit."""

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.util import find_spec
from typing import Any

import torch

from src.callbacks.expected import expected
from src.callbacks.probe import WARM, matmul_speed, probe
from src.config.build import Experiment
from src.config.request import Request, merge
from src.config.signatures import signature
from src.config.source import find
from src.cost.devices import GIB, Device, here, named
from src.cost.layouts import Layout, total_gib
from src.cost.schedule import LARGE, checkpoint_interval, failures, step_seconds
from src.run.device import fastest_precision
from src.run.errors import ConfigError

FSDP = "src.strategies.fsdp.FSDP"
ADAMW_8BIT = "torchao.optim.AdamW8bit"
Plan = dict[str, Any]
Levers = list[tuple[str, dict[str, Any], str]]  # name, overlay, what it costs


def planned(request: Request, overlay: dict[str, Any] | None = None) -> Plan:
    """Memory and time of the config with an overlay.

    Raises:
        ConfigError: as a run would, or options that contradict the config.
    """
    options = request.options
    config = merge(copy.deepcopy(request.config), overlay or {})
    device = named(options.device) if options.device else here_of(config)
    layout = layout_of(config, options, (overlay or {}).get("trainer", {}).get("strategy"))
    settle(config["trainer"], device)
    experiment = Experiment(Request(config, request.lines, request.experiment, options))
    micro_batches = experiment.on_meta(layout.devices, options.facts)
    trainer, model, data = experiment.trainer, experiment.model, experiment.datamodule
    tokens = data.facts.get("seq_len", 0) if "vocab_size" in data.facts else 0
    steps = wanted_steps(options, data.batch_size, tokens) or trainer.estimated_stepping_batches
    trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps = -1, steps
    usage = expected(trainer, model, device.kind, layout, micro_batches)
    parameters = [p for p in model.parameters()]
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    blocks = [sum(p.numel() for p in block.parameters()) for block in model.blocks()]
    number = sum(p.numel() for p in parameters)
    itemsize = 2 if "16" in config["trainer"]["precision"] else 4
    parts = usage.parts | layout.besides(trained, blocks, number - sum(blocks), itemsize)
    memory = total_gib(parts, layout, device)
    flops = usage.flops * micro_batches + usage.optimizer_flops
    plan = {
        "network": type(model.network).__name__, "parameters": number, "trained": trained, "tokens_per_sample": tokens,
        "device": asdict(device), "layout": asdict(layout), "precision": config["trainer"]["precision"],
        "batch_size": data.batch_size, "micro_batch_size": data.micro_batch_size, "micro_batches": micro_batches,
        "unknown": usage.unknown, "parts": parts, "memory_gib": None if usage.unknown else memory,
        "fits": None if usage.unknown or not device.memory_gib else memory <= device.memory_gib,
        "flops_per_step": None if usage.unknown else flops * layout.devices,
        "recomputed_flops_per_step": usage.recomputed * micro_batches * layout.devices,
        "steps": steps, "sent_bytes_per_step": layout.sent(trained, itemsize, micro_batches),
        "blocks": len(blocks), "optimizer": config["model"]["init_args"]["optimizer"]["class_path"],
        "model": config["model"]["class_path"],
        "checkpoint_bytes": sum(size / (layout.shares().get(part, 1) or 1) for part, size in usage.parts.items()
                                if part in ("weights", "optimizer", "average")) or 4 * number,
    }  # fmt: skip
    peak = device.peak(plan["precision"])
    seconds = step_seconds(flops, peak, bool(tokens) and number >= LARGE) if flops else (math.inf, math.inf)
    return plan | {"peak_flops": peak} | timed(plan, layout, device, seconds, options.price)


def here_of(config: dict[str, Any]) -> Device:
    accelerator = str(config["trainer"].get("accelerator", "auto"))
    found = None if accelerator == "cpu" else torch.accelerator.current_accelerator(check_available=True)
    return here(found or torch.device("cpu"))


def settle(trainer: dict[str, Any], device: Device) -> None:
    """Have a Trainer of one CPU in place of that of the config, whose precision runs on the device."""
    precision = str(trainer.get("precision") or "32-true")
    if precision == "auto":
        fast = "bf16-mixed" if device.bf16 and device.kind == "cuda" else "32-true"
        precision = fastest_precision("cpu") if device.kind == "cpu" else fast
    if device.kind == "cuda" and "bf16" in precision and not device.bf16:
        raise ConfigError(f"trainer.precision: {precision}, but a {device.name} has no bfloat16 -> take 16-mixed")
    for name in ("num_nodes", "plugins", "sync_batchnorm", "strategy"):
        trainer.pop(name, None)
    # On a CPU both halves are bfloat16, of the same size.
    if precision.startswith("16"):
        precision = f"bf{precision}"
    trainer |= {"accelerator": "cpu", "devices": 1, "precision": precision}


def layout_of(config: dict[str, Any], options: Any, overlay: Any) -> Layout:
    """How the config, an option or a lever puts the model on devices."""
    trainer = config["trainer"]
    given = trainer.get("devices", 1)
    listed = len(given) if isinstance(given, (list, tuple)) else given if isinstance(given, int) else 1
    devices = options.devices or max(listed, 1) * trainer.get("num_nodes", 1)
    strategy = overlay or trainer.get("strategy") or "auto"
    path = strategy.get("class_path", "") if isinstance(strategy, dict) else str(strategy)
    how = (strategy.get("init_args") or {}) if isinstance(strategy, dict) else {}
    name = "one" if devices == 1 else "ddp"
    if path.lower().endswith("fsdp"):
        name = "fsdp_offload" if how.get("offload") else "fsdp"
    if options.strategy and not overlay:
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


def timed(plan: Plan, layout: Layout, device: Device, seconds: tuple[float, float], price: float | None) -> Plan:
    """What follows from the seconds of computation of a step, shortest and longest.

    Sending is hidden behind what is computed meanwhile: FSDP's behind all of it, DDP's behind backward alone, which is
    two thirds.
    """
    sending = plan["sent_bytes_per_step"] / layout.speed(device)
    if layout.name == "fsdp_offload":  # weights to the device, gradients to the host
        sending += plan["trained"] * 6 / layout.shards / 25e9
    meanwhile = 2 / 3 if layout.name == "ddp" else 1.0
    step = [s + max(0.0, sending - meanwhile * s) for s in seconds]
    useful = ((plan["flops_per_step"] or 0) - plan["recomputed_flops_per_step"]) / layout.devices
    peak = device.peak(plan["precision"])
    known = math.isfinite(step[0]) and math.isfinite(plan["steps"])
    hours = [plan["steps"] * s / 3600 for s in step] if known else None
    return {
        "step_sec": step if math.isfinite(step[0]) else None,
        "sending_sec": sending, "exposed_sec": [s - c for s, c in zip(step, seconds, strict=True)] if known else None,
        "mfu": sorted(useful / s / peak for s in step) if peak and step[0] else None,
        "hours": hours, "cost": [price * layout.devices * h for h in hours] if hours and price else None,
        "failures": [failures(layout.devices, h) for h in hours] if hours else None,
        "checkpoint_interval_sec": checkpoint_interval(plan["checkpoint_bytes"], layout.devices),
    }  # fmt: skip


def candidates(request: Request, plan: Plan) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Levers that this config can still pull, the cheapest first: name, overlay, and what it costs in time."""
    known = signature(plan["model"])
    arguments = known.arguments if known else {}
    device, layout = Device(**plan["device"]), Layout(**plan["layout"])
    if plan["precision"].startswith("32") and (device.bf16 or device.fp16 or device.kind == "cpu"):
        half = "16-mixed" if device.fp16 and not device.bf16 else "bf16-mixed"
        yield half, {"trainer": {"precision": half}}, "faster where the device has it"
    model = request.config["model"]["init_args"]
    if "loss_chunks" in arguments and model.get("loss_chunks", 1) == 1:
        yield "loss in 8 chunks", {"model": {"init_args": {"loss_chunks": 8}}}, "the head once more in backward"
    micro = plan["micro_batch_size"]
    while micro > 1:
        micro = max(n for n in range(1, micro // 2 + 1) if micro % n == 0)
        text = "the same operations in smaller ones"
        yield f"micro-batch of {micro}", {"data": {"init_args": {"micro_batch_size": micro}}}, text
    if "activation_checkpointing" in arguments and plan["blocks"] and not model.get("activation_checkpointing"):
        overlay = {"model": {"init_args": {"activation_checkpointing": True}}}
        yield "activation checkpointing", overlay, "forward twice, about a third of a step"
    if plan["optimizer"].rpartition(".")[2] in ("Adam", "AdamW") and find_spec("torchao"):
        given = model["optimizer"].get("init_args") or {}
        kept = {name: given[name] for name in ("lr", "betas", "weight_decay", "eps") if name in given}
        optimizer = {"class_path": ADAMW_8BIT, "init_args": kept}
        yield "8-bit AdamW", {"model": {"init_args": {"optimizer": optimizer}}}, "a few percent of a step"
    for name, args in (("fsdp", {}), ("fsdp with offload", {"init_args": {"offload": True}})):
        if layout.devices > 1 and find(FSDP) and layout.name != name.replace(" with ", "_"):
            overlay = {"trainer": {"strategy": {"class_path": FSDP, **args}}}
            yield name, overlay, "sends half as much again" if name == "fsdp" else "the bus to the host"


def levers(request: Request, plan: Plan) -> tuple[list[Plan], dict[str, Any]]:
    """A menu: each lever alone, until one fits; and the overlay of the first lever, or combination in this order, that
    fits, empty if none does."""
    menu: list[Plan] = []
    together: dict[str, Any] = {}
    for name, overlay, cost in candidates(request, plan):
        alone = planned(request, overlay)
        saved = plan["memory_gib"] - alone["memory_gib"] if alone["memory_gib"] is not None else None
        menu.append({"lever": name, "saves_gib": saved, "memory_gib": alone["memory_gib"], "fits": alone["fits"],
                     "costs": cost, "parts": alone["parts"], "step_sec": alone["step_sec"], "overlay": overlay})  # fmt: skip
        if alone["fits"]:
            return menu, overlay
    for one in menu:
        together = merge(together, one["overlay"])
    if not menu or not planned(request, together)["fits"]:
        return menu, {}
    for n in range(2, len(menu) + 1):
        together = {}
        for one in menu[:n]:
            together = merge(together, one["overlay"])
        found = planned(request, together)
        names = [one["lever"] for one in menu[:n] if not superseded(one, menu[:n])]
        if found["fits"]:
            menu.append({"lever": " + ".join(names), "saves_gib": plan["memory_gib"] - found["memory_gib"],
                         "memory_gib": found["memory_gib"], "fits": True, "costs": "all of these",
                         "parts": found["parts"], "step_sec": found["step_sec"], "overlay": together})  # fmt: skip
            return menu, together
    return menu, {}


def superseded(one: Plan, menu: list[Plan]) -> bool:
    """Whether a later lever of the menu sets the same key to something else."""
    later = menu[menu.index(one) + 1 :]
    return any(merge(one["overlay"], other["overlay"]) == other["overlay"] for other in later)


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
    experiment = Experiment(Request(config, request.lines, request.experiment, request.options))
    experiment.build(logger=False)
    seconds, count = probe(experiment, request.options.probe)
    device = here_of(config)
    if not plan["peak_flops"]:
        dtype = torch.bfloat16 if "bf16" in plan["precision"] else torch.float32
        speed = matmul_speed(experiment.trainer.strategy.root_device, dtype) / 1e12
        device = replace(device, fp32=speed, bf16=speed if dtype == torch.bfloat16 else 0.0)
    found = timed(plan, layout, device, (seconds, seconds), request.options.price)
    return {"probe": {"steps": count, "step_sec": seconds}, "peak_flops": device.peak(plan["precision"]), **found}
