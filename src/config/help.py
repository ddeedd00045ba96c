"""The keys of a config for --help: what each class takes, its present value, and its docstring's line."""

from collections.abc import Iterator
from textwrap import shorten
from typing import Any

from src.config.check import filled_in, groups, shown
from src.config.signatures import Argument
from src.config.source import MISSING, NOT_PLAIN


def keys_of(config: dict[str, Any]) -> Iterator[str]:
    """One group of keys after the other: `--key value  description`; an item of a list has no flags."""
    for path, title, given, known in list(groups(config))[1:]:
        hidden, arguments = filled_in(config, path), dict.fromkeys(given, Argument()) | known.arguments
        names = [n for n, a in arguments.items() if n in given or not (n in hidden or a.inherited or path == "trainer")]
        more = ", whose other arguments can be given too" if path == "trainer" else ""
        flag = "" if any(part.isdigit() for part in path.split(".")) else f"--{path}."
        if names:
            yield f"\n{path}: {title}{more}"
        for name in names:
            value = given.get(name, arguments[name].default)
            value = (
                None
                if value in (MISSING, NOT_PLAIN)
                else value.get("class_path", value)
                if isinstance(value, dict)
                else value
            )
            yield f"  {f'{flag}{name} {shown(value)}':<48}  {shorten(arguments[name].doc, 250)}".rstrip()
