"""One HTML file that tells of runs: pictures and curves lie in it, and nothing in it asks a network or runs a script."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.loggers import curves as drawing
from src.loggers.records import AXES, Record
from src.run.figures import figure
from src.run.files import read_json
from src.run.folder import flat
from src.run.ledger import shares
from src.run.redact import hide, redact
from src.run.terminal import duration

LONGEST = 100  # of a value that is shown; the run folder has the whole


def report(groups: Mapping[str, Sequence[Record]], axis: str, tables: Mapping[str, Any]) -> str:
    """A page on runs.

    Args:
        groups: the runs of one label are drawn as mean and range.
        axis: of the curves, one of AXES.
        tables: header and lines of what stands before them, by title.
    """
    from jinja2 import Environment  # comes with torch

    curves = {label: [record.curves(axis) for record in group] for label, group in groups.items()}
    panels = {kind: drawn(kind, curves, AXES[axis]) for kind in drawing.kinds(curves)}
    runs = [told(record) for group in groups.values() for record in group]
    page = Environment(autoescape=True).from_string(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    return hide(page.render(runs=runs, panels=panels, tables=tables, shown=shown))


def drawn(kind: str, curves: drawing.Groups, label: str) -> str:
    fig, file = figure(5.2, 3.2), io.BytesIO()
    drawing.panel(fig.subplots(), kind, curves, label)
    fig.savefig(file, format="svg")
    return inline(file.getvalue(), "svg+xml")


def inline(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def told(record: Record) -> dict[str, Any]:
    """What the page says of one run."""
    path, state, ended = record.path.resolve(), redact(record.folder.state), record.ended
    ledger = {name.removeprefix("ledger."): value for name, value in ended.items() if name.startswith("ledger.")}
    data = flat(redact(read_json(path / "data_report.json")))
    details = {"Data": {k: v for k, v in data.items() if k != "removed"}, "Config": redact(record.config)}
    details |= {name: flat(state.get(name.lower())) for name in ("Hardware", "Code")}
    diff = path / "code.diff"
    return {
        "name": f"{path.parent.name}/{path.name}", "ended": ended, "tested": record.tested, "details": details,
        "time": duration(ended["seconds"]) if "seconds" in ended else "", "command": state.get("command"),
        "ledger": [(part, ledger[part], share) for part, share in shares(ledger) if share >= 0.001],
        "pictures": {p.stem: inline(p.read_bytes(), "png") for p in sorted(path.glob("*.png")) if p.stem not in ("curves", "compare")},
        "diff": diff.read_text(errors="replace")[:20_000] if diff.exists() else "",
    }  # fmt: skip


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
