"""What is kept of all that is tried."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from src.config.request import from_flag, merge
from src.tuning.candidates import EXACT, Change, rates
from src.tuning.judge import LEAST_GAIN, best_rate, is_faster, shift, tolerance, upper_bound
from src.tuning.search import Overlay, Search

SPAN = (1 / 30, 30.0)  # of the rates that are tried, times the config's
NEAR = 1.25  # a rate that differs by less is the config's
LATE = "not tried: --minutes are over; the same command goes on"
Row = dict[str, Any]


def choose(search: Search, changes: Sequence[Change], with_rate: bool, tell: Callable[[Row], None]) -> Overlay:
    """The settings that train faster and lose nothing.

    Args:
        tell: gets what each change gave when it is known.
    """
    taken: Overlay = {}
    for change in changes:
        row = tried(search, taken, change)
        taken = row["overlay"] if row["kept"] else taken
        tell(row)
    if taken:
        row = timed(search, "all together", search.compared({}, taken, again=True))
        taken = taken if row["kept"] else {}
        tell(row)
    if with_rate:
        row = rate(search, taken)
        taken = row["overlay"] if row["kept"] else taken
        tell(row)
    return taken


def with_values(search: Search, base: Overlay, *changes: Change) -> Overlay:
    for key, value in changes:
        base = merge(base, from_flag(key, yaml.safe_dump(value).split("\n")[0], search.request.config))
    return base


def tried(search: Search, base: Overlay, change: Change) -> Row:
    name, other = f"{change[0]} {str(change[1]).lower()}", with_values(search, base, change)
    if time.monotonic() > search.t_late and not search.knows(base, other):
        return {"name": name, "kept": False, "why": LATE}
    row = timed(search, name, search.compared(base, other)) | {"overlay": other}
    if not row["kept"] or change[0] in EXACT:
        return row
    base_curves, curves = search.curves({}), search.curves(other)
    by, noise = shift(base_curves, curves)
    is_same = math.isfinite(by) and abs(by) <= (least := tolerance(base_curves, noise))
    text = f"loss {by:+.2g} after {search.steps} steps" + (f", equal within {least:.2g}" if is_same else "")
    return {**row, "kept": is_same, "why": f"{row['why']}; {text}" if is_same else f"trains otherwise: {text}"}


def timed(search: Search, name: str, found: Row) -> Row:
    """By the times alone: whether it is faster, and wins back what its start costs, which is mostly to compile."""
    row: Row = {"name": name, "kept": False, **found}
    if "failed" in found:
        return {**row, "why": found["failed"].partition(" -> ")[0]}
    ratios, steps = found["ratios"], search.facts["steps"]
    row |= {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    if not is_faster(ratios):
        return {**row, "why": "slower" if row["ratio"] > 1 / LEAST_GAIN else "no gain beyond noise"}
    cost = 2 * (found["first_sec"][1] - found["first_sec"][0])  # validation has its own
    won = steps * (found["step_sec"][0] - found["step_sec"][1])
    if cost > won:
        return {**row, "why": f"its start takes {cost:.0f} s, and {steps:,} steps win {won:.0f} s"}
    return {**row, "kept": True, "why": f"below {upper_bound(ratios):.2f} with 95 % confidence"}


def rate(search: Search, base: Overlay) -> Row:
    """A learning rate by a range test, if trainings with it end lower than with the config's."""
    row: Row = {"name": "learning rate", "kept": False}
    if time.monotonic() > search.t_late:
        return {**row, "why": LATE}
    if not (now := rates(search.request)):
        return {**row, "why": "not tried: a flag or the schedule sets it"}
    first, last = SPAN
    tried = [first * (last / first) ** (i / (search.steps - 1)) for i in range(search.steps)]
    times, losses = best_rate(tried, search.curve(base, 0, SPAN))
    config = min(now.items())[1]
    row |= {"rates": [config * t for t in tried[: len(losses)]], "losses": losses, "config": config}
    if not times:
        return {**row, "why": "the loss does not fall in the range test"}
    changes = [(key, float(f"{value * times:.2g}")) for key, value in now.items()]
    row |= {"suggested": config * times, "overlay": with_values(search, base, *changes)}
    text = ", ".join(f"{key.rpartition('.')[2]} {value:g} (config: {now[key]:g})" for key, value in changes)
    if 1 / NEAR < times < NEAR:
        return {**row, "why": f"{text}: about the config's"}
    by, noise = shift(search.curves(base), search.curves(row["overlay"]))
    text += f": loss {by:+.2g} after {search.steps} steps"
    return {**row, "kept": by < -noise, "why": text if by < -noise else f"{text}, no gain beyond noise"}
