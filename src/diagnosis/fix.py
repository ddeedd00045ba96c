"""`--fix`: a change is tried once more, for longer and with other seeds, or timed; what helps beyond noise is kept."""

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from src.config.request import Request
from src.diagnosis.examine import Examination
from src.diagnosis.finding import SLOW, SPACE, Finding
from src.diagnosis.report import Told, dump
from src.diagnosis.speed import LEAST, watched, whole_run
from src.diagnosis.trials import on_top, rounded
from src.run.errors import KnownError
from src.run.files import write_json, write_text
from src.tuning.choose import timed
from src.tuning.search import Late, Search

OF_A_RUN = ("validation_too_often", "checkpoints_too_often")  # steps take as long without them
LONGER, SEEDS = 2, range(10, 15)  # times the steps of the first trials, which had other seeds


def fix(examination: Examination, request: Request, folder: Path, found: Told) -> str:
    """Try the first finding that a key mends; gives what to say. The overlay has its receipt as head."""
    if not (mended := [one for one in examination.result.findings if one.change and one.check != "target_leak"]):
        return "nothing to fix: there is no finding that a key mends"
    one = mended[0]
    try:
        receipt = tried(examination, one, request, 60 * request.options.minutes)
    except (Late, KnownError) as e:
        receipt = {"kept": False, "why": str(e) or "no time was left"}
    receipt = {**receipt, "change": one.change, "command": found["command"], **found["made"]}
    numbers = ", ".join(f"{name} {receipt[name]}" for name in list(receipt)[1 : list(receipt).index("change")])
    if not receipt["kept"]:
        return f"{one.text}: the change did not help beyond noise ({numbers}); nothing is written"
    write_json(folder / "receipt.json", receipt)
    head = f"{one.text}\n{dump(receipt)}".replace("\n", "\n# ").rstrip("# ")
    write_text(folder / "fixed.yaml", f"# {head}{dump(one.change)}")
    where = f"it is {folder / 'fixed.yaml'}, for --config after the others, without flags of the same keys"
    return f"{one.text}: the change helped ({numbers}); {where}"


def tried(examination: Examination, one: Finding, request: Request, budget_sec: float) -> dict[str, Any]:
    """Whether it is `kept`, then the numbers by which that was decided. Raises Late, KnownError: it cannot be timed."""
    trials, receipt = examination.trials, Told(kept=True)
    trials.runner.until = time.monotonic() + budget_sec
    if one.question == SPACE:
        from src.diagnosis.space import plan_of

        changed = replace(request, config=on_top(request.config, one.change))
        plans = trials.runner.all([(plan_of, (asked,)) for asked in (request, changed)], budget_sec)
        return {"kept": plans[1].get("fits") is True, "needs_gib": [plan.get("memory_gib") for plan in plans]}
    if one.question == SLOW and one.check in OF_A_RUN:
        seen = [(change, watched(trials.runner, change)) for change in ({}, one.change)]
        run_sec = [round(sum(whole_run(on_top(request.config, c), now)[0].values()), 1) for c, now in seen]
        return {"kept": run_sec[1] < (1 - LEAST) * run_sec[0], "run_sec": run_sec}
    if one.question == SLOW:
        with TemporaryDirectory() as tmp, Search(request, Path(tmp), {}, budget_sec / 2, trials.runner.waiting) as pair:
            pair.begin()
            pair.allow(1.0)
            row = timed(pair, pair.compared({}, one.change, again=True))
        receipt = {name: row[name] for name in ("kept", "why", "step_sec", "ratio") if name in row}
    if receipt["kept"]:  # what is faster must lose nothing, what is better must win beyond noise
        steps = round(min(LONGER * trials.steps, examination.total))
        longer = replace(trials, steps=steps, seeds=SEEDS, more=(), done={}, log=[])
        longer.run([{}, one.change], SEEDS)
        found, entry = longer.judged(replace(one, certain=one.question == SLOW)), [*longer.log, None][0]
        if not entry:
            raise Late
        receipt |= {"kept": found is not None, "steps": steps}
        receipt |= {"seeds": [*SEEDS], **{name: rounded(entry[name]) for name in ("before", "after")}}
    return receipt
