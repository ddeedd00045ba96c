"""Whether a config fits into the memory of a device, and the cheapest change that makes it fit."""

from argparse import Namespace
from dataclasses import replace
from typing import Any

from src.config.planned import Menu, of_micro, planned
from src.config.request import Request
from src.diagnosis.finding import SPACE, Finding, Unknown

OPTIONS = ("device", "devices", "strategy", "tokens", "samples", "price")  # of `plan`


def plan_of(request: Request) -> dict[str, Any]:
    seen, options = dict[str, Any](), {**dict.fromkeys(OPTIONS), "facts": {}, **vars(request.options)}
    request = replace(request, options=Namespace(**options))
    plan = planned(request, seen)
    return {**plan, "taken": Menu(request, seen, plan).together() if plan["fits"] is False else {}}


def space(plan: dict[str, Any], died: str = "") -> tuple[list[Finding], dict[str, Any], list[Unknown]]:
    """What `plan_of` says, of --device or this machine; `parts`: bytes. `died`: how a training ran out of memory."""
    if unknown := plan.get("failed") or plan["unknown"]:
        return [], {}, [("memory", unknown)]
    if plan["fits"] is not False and not died:
        return [], {"parts": plan["parts"]}, []
    taken, size, has = plan["taken"], plan["micro_batch_size"], plan["device"]["memory_gib"]
    change = taken.get("overlay", {}) if taken.get("fits") else {}
    if died and not taken and size > 1:  # alone on this machine it would fit
        change = of_micro(max(n for n in range(1, size // 2 + 1) if size % n == 0))
    needs, parts = plan["memory_gib"], {name: round(n / 2**20, 1) for name, n in plan["parts"].items()}
    seen = {"needs_gib": needs, "has_gib": has, "after_gib": taken.get("memory_gib"), "parts_mib": parts}
    text, todo = died or f"{needs:.3g} GiB are needed, the device has {has:.3g}", "a smaller network"
    found = Finding("out_of_memory", SPACE, text, seen, 1.0, 0.95, change, "" if change else todo, certain=True)
    return [found], {"parts": plan["parts"]}, []
