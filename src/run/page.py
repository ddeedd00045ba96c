"""Pages from the templates of configs/, all that comes in escaped. They hold their pictures, and ask no network."""

import base64
import mimetypes
from io import BytesIO
from typing import Any

from src.run.files import ROOT
from src.run.redact import hide


def filled_in(template: str, **values: Any) -> str:
    from jinja2 import Environment, FileSystemLoader  # comes with torch

    pages = Environment(autoescape=True, loader=FileSystemLoader(ROOT / "configs"))
    return hide(pages.get_template(template).render(inline=inline, svg=svg, **values))


def svg(fig: Any) -> str:
    fig.savefig(file := BytesIO(), format="svg")
    return inline(file.getvalue(), ".svg")


def inline(data: bytes, kind: str) -> str:
    return f"data:{mimetypes.types_map[kind]};base64,{base64.b64encode(data).decode()}"
