"""The keys of a config for --help: what each class takes, its present value, and its docstring's line."""

from collections.abc import Iterator
from textwrap import shorten
from typing import Any

from src.config.check import SECTIONS, all_specs, filled_in, sections, shown
from src.config.signatures import MISSING, Argument, Signature, signature


def keys_of(config: dict[str, Any]) -> Iterator[str]:
    for section, known in sections().items():
        given, more, arguments = config.get(section, {}), "", known.arguments
        if section == "trainer":
            arguments, more = {n: arguments[n] for n in given}, ", whose other arguments can be given too"
        yield from keys(section, SECTIONS[section] + more, given, arguments)
    for path, spec in all_specs(config):
        given, known = spec.get("init_args") or {}, signature(spec["class_path"]) or Signature()
        hidden = filled_in(config, path.partition(".")[0])
        names = [n for n, a in known.arguments.items() if n in given or not (n in hidden or a.inherited)]
        arguments = {name: known.arguments[name] for name in names}
        yield from keys(path, spec["class_path"], given, dict.fromkeys(given, Argument()) | arguments)


def keys(prefix: str, title: str, given: dict[str, Any], known: dict[str, Argument]) -> Iterator[str]:
    """One group of keys: `--key value  description`; an item of a list has no flags."""
    flag = "" if any(part.isdigit() for part in prefix.split(".")) else f"--{prefix}."
    if known:
        yield f"\n{prefix}: {title}"
    for name, argument in known.items():
        value = given.get(name, None if argument.default is MISSING else argument.default)
        if isinstance(value, dict) and "class_path" in value:
            value = value["class_path"]
        yield f"  {f'{flag}{name} {shown(value)}':<48}  {shorten(argument.doc, 250)}".rstrip()
