"""HTML pages of one file, which hold their pictures, ask no network and run no script."""

import base64
import mimetypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.run import figures
from src.run.files import ROOT, write_text
from src.run.redact import hide

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_page(file: Path, template: str, **values: Any) -> None:
    """Fill in a template of configs/ and write it, whole or not at all."""
    from jinja2 import Environment, FileSystemLoader  # comes with torch

    pages = Environment(autoescape=True, loader=FileSystemLoader(ROOT / "configs"))
    write_text(file, hide(pages.get_template(template).render(inline=inline, **values)))


def svg(fig: "Figure") -> str:
    return inline(figures.drawn(fig, "svg"), ".svg")


def inline(data: bytes, kind: str) -> str:
    return f"data:{mimetypes.types_map[kind]};base64,{base64.b64encode(data).decode()}"
