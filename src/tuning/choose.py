"""What is kept of all that is tried."""

import statistics
import time
from collections.abc import Callable, Collection
from typing import Any

from src.config.request import merge
from src.tuning.candidates import EXACT, Candidate, Overlay, candidates, of_model, rates
from src.tuning.judge import LEAST_GAIN, best_rate, difference, is_faster, is_lower, upper_bound
from src.tuning.search import Search

SPAN = (1 / 30, 30.0)  # of the rates that are tried, times the config's
NEAR = 1.25  # a rate that differs by less is the config's
Row = dict[str, Any]
Tell = Callable[[Row], None]


def choose(search: Search, only: Collection[str], tell: Tell) -> tuple[Overlay, list[Row]]:
    """The settings that train faster and lose nothing, and a row for each that was tried.

    Args:
        tell: gets each row when it is known.
    """
    taken: Overlay = {}
    rows: list[Row] = []
    for one in candidates(search.request, search.facts):
        if one.group in only:
            row = tried(search, taken, one)
            taken = merge(taken, one.overlay) if row["kept"] else taken
            rows.append(row)
            tell(row)
    if taken:
        found = search.compared({}, taken, again=True)
        row = {"name": "all together", **figures(found), **verdict(search, found)}
        taken = taken if row["kept"] else {}
        rows.append(row)
        tell(row)
    if "lr" in only:
        rows.append(row := rate(search, taken))
        taken = merge(taken, row["overlay"])
        tell(row)
    return taken, rows


def tried(search: Search, base: Overlay, one: Candidate) -> Row:
    row: Row = {"name": one.name, "key": one.key, "kept": False}
    if one.refused:
        return {**row, "why": f"not tried: {one.refused}"}
    other = merge(base, one.overlay)
    if time.monotonic() > search.t_late and not search.knows(base, other):
        return {**row, "why": "not tried: no time was left; the same command goes on"}
    found = search.compared(base, other)
    row |= {**figures(found), **verdict(search, found)}
    if row["kept"] and one.group not in EXACT:
        row |= same_losses(search, other, row["why"])
    return row


def figures(found: Row) -> Row:
    if "failed" in found:
        return {}
    ratios = found["ratios"]
    return {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios), **found}


def verdict(search: Search, found: Row) -> Row:
    """By the times alone: whether it is faster, and wins back what its start costs, which is mostly to compile."""
    if "failed" in found:
        memory = "out of memory" if found["memory"] else "failed"
        return {"kept": False, "why": f"{memory}: {found['failed']}"}
    ratio, bound = statistics.median(found["ratios"]), upper_bound(found["ratios"])
    if not is_faster(found["ratios"]):
        slower = "slower" if ratio > 1 / LEAST_GAIN else "no gain beyond noise"
        return {"kept": False, "why": slower}
    steps, (before, after) = search.facts["steps"], found["step_sec"]
    cost = 2 * (found["first_sec"][1] - found["first_sec"][0])  # once more for validation
    if cost > steps * (before - after):
        text = f"its start takes {cost:.0f} s, {steps:,} steps win {steps * (before - after):.0f} s"
        return {"kept": False, "why": text}
    return {"kept": True, "why": f"below {bound:.2f} with 95 % confidence"}


def same_losses(search: Search, overlay: Overlay, why: str) -> Row:
    """Whether short trainings end where those of the config as it is do, within what seeds make."""
    base, other = search.levels({}), search.levels(overlay)
    by, noise = difference(base, other)
    found = {"levels": [base, other], "kept": abs(by) <= noise}
    text = f"loss after {search.steps} steps {by:+.2g}, between seeds {noise:.2g}"
    return {**found, "why": f"{why}; {text}" if found["kept"] else f"other losses: {text}"}


def rate(search: Search, base: Overlay) -> Row:
    """A learning rate by a range test, if trainings with it end lower than with the config's."""
    row: Row = {"name": "learning rate", "kept": False, "overlay": {}}
    names = rates(search.request)
    if not names:
        return {**row, "why": "not tried: a flag or the schedule sets it"}
    losses = search.curve(base, 0, SPAN)
    tried = [SPAN[0] * (SPAN[1] / SPAN[0]) ** (i / (search.steps - 1)) for i in range(search.steps)]
    found = best_rate(tried, losses)
    if not found:
        return {**row, "why": "the loss does not fall in the range test"}
    times, smooth = found
    now = names[min(names)]
    row |= {"rates": [now * t for t in tried[: len(smooth)]], "losses": smooth, "suggested": now * times, "config": now}
    if 1 / NEAR < times < NEAR:
        return {**row, "why": f"the range test suggests {now * times:.2g}, about the config's {now:.2g}"}
    new = {name: float(f"{value * times:.2g}") for name, value in names.items()}
    overlay = of_model(optimizer={"init_args": new})
    levels = [search.levels(base), search.levels(merge(base, overlay))]
    by, noise = difference(*levels)
    row["levels"] = levels
    text = f"{', '.join(f'{n} {v:g}' for n, v in new.items())} (config: {now:g}): loss {by:+.2g} after {search.steps} steps"
    if not is_lower(*levels):
        return {**row, "why": f"{text}, not lower beyond noise"}
    return {**row, "kept": True, "overlay": overlay, "why": text}
