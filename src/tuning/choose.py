"""What is kept of all that is tried."""

import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import yaml

from src.config.request import from_flag, merge
from src.tuning.candidates import EXACT, Change, rates
from src.tuning.judge import LEAST_GAIN, best_rate, bounds, is_faster, most_loss, upper_bound
from src.tuning.search import Late, Overlay, Search

MOST = 1.25  # times --minutes, which are over at most then
SPAN = (1 / 30, 30.0)  # of the rates that are tried, times the config's
LEAST_FALL = 0.03  # of the loss in a range test; with less nothing is learned, and the best of all is chance
LATE = "not tried: --minutes are over; the same command goes on"
Row = dict[str, Any]


def choose(search: Search, changes: Sequence[Change], with_rate: bool, tell: Callable[[Row], None]) -> Overlay:
    """The settings that train faster and lose nothing.

    Args:
        tell: gets what each change gave when it is known.
    """
    taken: Overlay = {}

    def take(name: str, share: float, judge: Callable[[], Row]) -> None:
        nonlocal taken
        search.allow(share)
        row: Row = {"name": name, "kept": False, "why": LATE}
        with suppress(Late):
            row |= judge()
        taken = row.get("overlay", taken) if row["kept"] else taken
        tell(row)

    for change in changes:
        take(f"{change[0]} {str(change[1]).lower()}", 1 - search.reserve, partial(tried, search, taken, change))
    if all_of := taken:
        taken = {}
        take("all together", MOST, lambda: timed(search, search.compared({}, all_of, again=True)) | {"overlay": all_of})
    if with_rate:
        take("learning rate", 1, partial(rate, search, taken))
    return taken


def with_change(search: Search, base: Overlay, change: Change) -> Overlay:
    key, value = change
    return merge(base, from_flag(key, yaml.safe_dump(value).split("\n")[0], search.request.config))


def tried(search: Search, base: Overlay, change: Change) -> Row:
    other = with_change(search, base, change)
    row = timed(search, search.compared(base, other)) | {"overlay": other}
    if not row["kept"] or change[0] in EXACT:
        return row
    for seeds in search.seeds:
        before, after = search.curves({}, seeds), search.curves(other, seeds)
        (by, low, high), most = bounds(before, after), most_loss(before)
        if high <= most or low > most:
            break
    if not math.isfinite(by):
        whose = "trains otherwise: a training with it" if all(before) else "undecided: a training of the config itself"
        return {**row, "kept": False, "why": f"{whose} failed, see trials.log"}
    text = f"loss {by:+.2g} after {search.steps} steps, {seeds} seeds"
    if high <= most:
        return {**row, "why": f"{row['why']}; {text}, at most {high:+.2g} (may be {most:.2g})"}
    undecided = f"undecided: {text}, but perhaps {high:+.2g} (may be {most:.2g})"
    return {**row, "kept": False, "why": f"trains otherwise: {text}" if low > most else undecided}


def timed(search: Search, found: Row) -> Row:
    """By the times alone: whether it is faster, and wins back what its start costs, which is mostly to compile."""
    row: Row = {"kept": False, **found}
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
    """A learning rate by a range test, only suggested: what is best in few steps is often too high for many."""
    if not (now := rates(search.request)):
        return {"why": "not tried: the schedule sets it"}
    first, last = SPAN
    tried = [first * (last / first) ** (i / (search.steps - 1)) for i in range(search.steps)]
    times, losses = best_rate(tried, search.curve(base, 0, tried))
    config = min(now.values())
    row: Row = {"rates": [config * t for t in tried[: len(losses)]], "losses": losses, "config": config}
    if not times or losses[0] - min(losses) < LEAST_FALL * abs(losses[0]):
        span = f"{config * first:.2g} to {config * last:.2g}"
        return {**row, "why": f"the loss hardly falls at any rate from {span}: try others"}
    text = ", ".join(f"--{key} {value * times:.2g} (config: {value:g})" for key, value in now.items())
    return {**row, "suggested": config * times, "why": f"only suggested: {text}"}
