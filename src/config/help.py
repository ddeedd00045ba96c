"""The keys of a config for --help: what each class takes, its present value, and its docstring's line."""

from collections.abc import Iterator
from pkgutil import resolve_name
from textwrap import shorten
from typing import Any

from src.config.check import SECTIONS, facts, sections, settable, shown, specs
from src.config.signatures import Argument, Arguments
from src.run.errors import ConfigError


def keys_of(config: dict[str, Any]) -> Iterator[str]:
    for section, known in sections().items():
        given, more = config.get(section, {}), ""
        if section == "trainer":
            known, more = {name: known[name] for name in given}, ", whose other arguments can be given too"
        yield from keys(section, SECTIONS[section] + more, given, known)
    for path, spec in specs(config):
        yield from keys(path, spec["class_path"], spec.get("init_args") or {}, known_arguments(spec["class_path"]))


def known_arguments(class_path: str) -> Arguments | None:
    """Those of our classes are read from source; others are loaded."""
    if class_path.startswith("src."):
        return settable(class_path)
    from src.schema import foreign

    try:
        known = foreign(resolve_name(":".join(class_path.rsplit(".", 1))))
    except (ImportError, AttributeError, ValueError) as e:
        raise ConfigError(f"{class_path}: {e}") from e
    return {name: argument for name, argument in known.items() if name not in facts()}


def keys(prefix: str, title: str, given: dict[str, Any], known: Arguments | None) -> Iterator[str]:
    """One group of keys: `--key value  description`; an item of a list has no flags."""
    known = known or dict.fromkeys(given, Argument("", None, ""))
    flag = "" if any(part.isdigit() for part in prefix.split(".")) else f"--{prefix}."
    if known:
        yield f"\n{prefix}: {title}"
    for name, argument in known.items():
        value = given.get(name, argument.default)
        if isinstance(value, dict) and "class_path" in value:
            value = value["class_path"]
        yield f"  {f'{flag}{name} {shown(value)}':<48}  {shorten(argument.doc, 250)}".rstrip()
