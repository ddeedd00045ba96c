"""Whether a config fits into the memory of a device, and the cheapest change that makes it fit."""

from argparse import Namespace
from dataclasses import replace
from typing import Any

from src.config.planned import Menu, planned
from src.config.request import Request
from src.diagnosis.finding import SPACE, Finding, Unknown


def plan_of(request: Request) -> dict[str, Any]:
    options = dict.fromkeys(("device", "devices", "strategy", "tokens", "samples", "price")) | {"facts": {}}
    request, seen = replace(request, options=Namespace(**options | vars(request.options))), dict[str, Any]()
    plan = planned(request, seen)
    return {**plan, "taken": Menu(request, seen, plan).together() if plan["fits"] is False else {}}


def space(plan: dict[str, Any]) -> tuple[list[Finding], dict[str, Any], list[Unknown]]:
    """What `plan_of` says, of --device or this machine; `parts`: bytes."""
    if unknown := plan.get("failed") or plan["unknown"]:
        return [], {}, [("memory", unknown)]
    if plan["fits"] is not False:
        return [], {"parts": plan["parts"]}, []
    taken, has = plan["taken"], plan["device"]["memory_gib"]
    change = taken["overlay"] if taken["fits"] else {}
    needs, parts = plan["memory_gib"], {name: round(n / 2**20, 1) for name, n in plan["parts"].items()}
    seen = {"needs_gib": needs, "has_gib": has, "after_gib": taken["memory_gib"], "parts_mib": parts}
    text, todo = f"{needs:.3g} GiB are needed, the device has {has:.3g}", "a smaller network"
    found = Finding("out_of_memory", SPACE, text, seen, 1.0, 0.95, change, "" if change else todo, certain=True)
    return [found], {"parts": plan["parts"]}, []
