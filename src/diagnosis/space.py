"""Whether a config fits into the memory of a device, and the cheapest change that makes it fit."""

from argparse import Namespace
from dataclasses import replace
from typing import Any

from src.config.planned import Menu, of_micro, planned
from src.config.request import Request
from src.diagnosis.finding import SPACE, Finding, Unknown

ANY = dict.fromkeys(("device", "devices", "strategy", "tokens", "samples", "price"))  # options of `plan`


def plan_of(request: Request) -> dict[str, Any]:
    """What `plan` says, and the levers that make it fit; called in a child, because it loads the data."""
    options = Namespace(**ANY | {"facts": {}} | vars(request.options))
    request, seen = replace(request, options=options), dict[str, Any]()
    plan = planned(request, seen)
    return {**plan, "taken": Menu(request, seen, plan).together() if plan["fits"] is False else {}}


def space(plan: dict[str, Any], died: str = "") -> tuple[list[Finding], dict[str, Any], list[Unknown]]:
    """What `plan_of` gave says. `parts` has bytes by part.

    Args:
        died: how a training of it ran out of memory, whatever the plan says.
    """
    if why := plan.get("failed") or plan["unknown"]:
        plan = {"parts": {}, "taken": {}, "fits": None, "memory_gib": None, "micro_batch_size": 1}
    unknown, (taken, parts) = [("memory", why)] if why else [], (plan["taken"], plan["parts"])
    if plan["fits"] is not False and not died:
        return [], {"parts": parts}, unknown
    seen = {"needs_gib": plan["memory_gib"], "parts_mib": {name: round(n / 2**20, 1) for name, n in parts.items()}}
    seen |= {"has_gib": plan["device"]["memory_gib"]} if "device" in plan else {}
    size, change = plan["micro_batch_size"], taken.get("overlay", {}) if taken.get("fits") else {}
    if died and not taken and size > 1:  # the plan holds, but not beside what else there is
        change = of_micro(max(n for n in range(1, size // 2 + 1) if size % n == 0))
    text, todo = died or f"needs {plan['memory_gib']:.2f} GiB, the device has {seen['has_gib']:.2f}", ""
    if change and taken:
        text += f"; with {taken['lever']} {taken['memory_gib']:.2f} GiB"
        seen |= {"needs_gib_after": taken["memory_gib"]}
    elif not change:
        todo = "take a smaller network or a larger device: no lever makes it fit"
    found = Finding("out_of_memory", SPACE, text, seen, 1.0, 0.95, change, todo, certain=True, source="src.plan")
    return [found], {"parts": parts}, unknown
