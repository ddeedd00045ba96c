"""From files and flags to checked plain data, without loading torch: a typo is refused in a second.

A later file or flag goes before an earlier one, key by key. A config is data, not code.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from textwrap import shorten
from typing import Any, NoReturn, get_args

from src.config.check import SECTIONS, TOP, check, deeper, fail, filled_in, groups, section, shown
from src.config.signatures import Argument, signature
from src.config.source import MISSING, NOT_PLAIN, class_attribute
from src.config.strict_yaml import SPEC, Lines, join, read_file, read_text
from src.run.errors import ConfigError, nearest
from src.run.files import ROOT
from src.run.terminal import console, rank

DEFAULTS = ROOT / "configs" / "default.yaml"


@dataclass
class Request:
    """What the user asked for."""

    config: dict[str, Any]  # all files and flags in one
    lines: Lines
    experiment: str
    options: argparse.Namespace  # of the command itself: run_dir, debug, ...


class CommandParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument "))


class Help(argparse.Action):
    """Prints the manual, and the keys of the configs that stand before it."""

    def __call__(self, parser: argparse.ArgumentParser, options: argparse.Namespace, *_: Any) -> NoReturn:
        console().out(parser.format_help(), highlight=False)
        if options.config:
            request = read_request(parser, [part for path in options.config for part in ("--config", path)])
            console().out("\n".join(keys_of(request.config)), highlight=False)
        parser.exit()


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
            value = None if value in (MISSING, NOT_PLAIN) else value
            value = value.get("class_path", value) if isinstance(value, dict) else value
            yield f"  {f'{flag}{name} {shown(value)}':<48}  {shorten(arguments[name].doc, 250)}".rstrip()


def command_parser(name: str, manual: str | None) -> CommandParser:
    """The options that all commands have; a command adds its own."""
    parser = CommandParser(
        f"python -m src.{name}", description=manual, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False, add_help=False, usage="%(prog)s [--config FILE ...] [--run_dir DIR] [--KEY VALUE ...]",
    )  # fmt: skip
    parser.add_argument("--config", action="append", metavar="FILE", help="a config; a later one overrides an earlier")
    parser.add_argument("--run_dir", metavar="DIR", help="the run folder")
    parser.add_argument("--print_config", action="store_true", help="print the whole resolved config and stop")
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    parser.add_argument("-h", "--help", action=Help, nargs=0, help="this page; after --config FILE, also its keys")
    return parser


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


positive.__name__ = "positive number"  # in argparse's message


def read_request(parser: argparse.ArgumentParser, args: Sequence[str]) -> Request:
    """Split the command's own options from those of the config, then read, merge and check all of it.

    Raises:
        ConfigError: anything that can be seen to be wrong without importing a class.
    """
    options, flags = parser.parse_known_args(list(args))
    if flags and not flags[0].startswith("--") and hasattr(options, "input"):  # argparse would take the value of a flag
        options.input = flags.pop(0)
    files = [Path(p) for p in options.config or []]
    config: dict[str, Any] = {}
    lines: Lines = {}
    for path in [DEFAULTS, *files]:
        config = add(config, *read_file(path), lines)
    given = []
    for name, text in group(flags):
        given.append((name, from_flag(name, text, config)))
        config = add(config, given[-1][1], {reduce(join, name.split("."), ""): f"--{name}"}, lines)
    tell_dropped(given, config)
    check(config, lines)
    return Request(config, lines, experiment_name(files), options)


def experiment_name(files: list[Path]) -> str:
    """The first file's stem; for the config saved in a run folder, the experiment of that run."""
    if not files:
        return "default"
    first = files[0].resolve()
    return first.parent.parent.name if first.name == "config.yaml" else first.stem


# Flags


def group(flags: list[str]) -> list[tuple[str, str]]:
    """(name, value) of each flag; `--key=value`, `--key value` and a list with spaces in it are all taken."""
    out: list[tuple[str, list[str]]] = []
    for part in flags:
        if part.startswith("--") and part != "--":
            name, equals, value = part[2:].partition("=")
            out.append((name, [value] if equals else []))
        elif out:
            out[-1][1].append(part)
        else:
            raise ConfigError(f"{part}: what is this for? Flags begin with --, and files follow --config")
    for name, values in out:
        if not "".join(values).strip():
            raise ConfigError(f"--{name}: a value is missing -> write --{name} VALUE{nearest(name, TOP.arguments)}")
    return [(name, " ".join(values)) for name, values in out]


def from_flag(name: str, text: str, config: dict[str, Any]) -> dict[str, Any]:
    """`model.network.widths` as `{model: {init_args: {network: {init_args: {widths: ...}}}}}`, where the config so far
    has classes. The text is YAML, unless the argument is a string."""
    path: list[str] = []
    node: Any = config
    for part in name.split("."):
        if isinstance(node, list):
            holder = reduce(join, path, "")
            raise ConfigError(f"--{name}: {holder} is a list -> give it whole, or add to it with --{holder}+")
        known = section(path[0]) if len(path) == 1 and path[0] in SECTIONS else None
        if isinstance(node, dict) and "class_path" in node and part not in SPEC:
            path.append("init_args")
            known, node = signature(str(node["class_path"])), node.get("init_args")
        path.append(part)
        node = node.get(part) if isinstance(node, dict) else None
    argument = known.arguments.get(part) if known else None
    kind = argument.annotation if argument else None
    is_text = text in get_args(kind) or (kind in (str, str | None) and text != "null")
    value: Any = text if is_text else read_text(text, f"--{name}")[0]
    for part in reversed(path):
        value = {part: value}
    return value


def tell_dropped(given: list[tuple[str, dict[str, Any]]], config: dict[str, Any]) -> None:
    """Name flags whose value is gone, because a flag after them names another class for what they are part of."""
    for i, (name, data) in enumerate(given):
        later = [other for other, _ in given[i:] if name.startswith(f"{other}.")]
        if later and merge(config, data) != config and rank() == 0:
            print(f"--{name} is dropped, because --{later[0]} comes after it", file=sys.stderr)


# Merging


def add(config: dict[str, Any], data: dict[str, Any], new: Lines, lines: Lines) -> dict[str, Any]:
    """One more file or flag on top; its lines go into `lines`."""
    leaves = [key for key in new if not any(other.startswith(f"{key}.") for other in new)]
    for key in [key for key in lines if key.startswith(tuple(f"{leaf}." for leaf in leaves))]:
        del lines[key]  # what it was is gone
    lines |= new
    for key, value in data.items():
        if key not in TOP.arguments:
            fail(lines, key, f"unknown key {key}{nearest(key, TOP.arguments) or deeper(key, config)}")
        is_group = key not in ("seed_everything", "threads")
        if is_group and not isinstance(value, dict) and not (key in ("model", "data") and value):
            off = " -> --wandb.mode disabled turns W&B off" if key == "wandb" else ""
            fail(lines, key, f"{key} is a group of keys, but here it has the value {shown(value)}{off}")
    config = merge(config, data)
    expand(config)
    return config


def merge(old: Any, new: Any) -> Any:
    """A later value wins, `key+` appends to a list, and a new class does not keep the old one's arguments."""
    if isinstance(new, str) and isinstance(old, dict) and "class_path" in old:
        new = {"class_path": new}
    if not isinstance(new, dict):
        return new
    if not isinstance(old, dict) or ("class_path" in new and new["class_path"] != old.get("class_path")):
        old = {}
    out = dict(old)
    for key, value in new.items():
        if key.endswith("+"):
            before, more = out.get(key[:-1]), value if isinstance(value, list) else [value]
            out[key[:-1]] = [*(before if isinstance(before, list) else []), *more]
        else:
            out[key] = merge(old.get(key), value)
    return out


def expand(config: dict[str, Any]) -> None:
    """Put classes that are named by plain text into the form {class_path: ...}."""
    for _, _, given, known in groups(config):
        for name, value in given.items() if isinstance(given, dict) else ():
            argument = known.arguments.get(name, Argument())
            if isinstance(value, list):
                given[name] = [{"class_path": v} if argument.names_class(v) else v for v in value]
            elif argument.names_class(value):
                given[name] = {"class_path": value}


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """The whole config as plain data, with the default of each argument that it leaves out."""
    config = plain(config)
    knows_facts = class_attribute(config["data"]["class_path"], "provides") is not None
    for path, _, given, known in groups(config):
        if path.startswith("model.network") and not knows_facts:
            continue  # a default might be one that the data decides
        for name, argument in known.arguments.items():
            if not (argument.default in (MISSING, NOT_PLAIN) or argument.inherited or name in filled_in(config, path)):
                given.setdefault(name, plain(argument.default))
    config["data"]["init_args"]["seed"] = config["seed_everything"]
    return config


def plain(data: Any) -> Any:
    """A copy, with tuples as lists, which is what YAML has."""
    if isinstance(data, dict):
        return {name: plain(value) for name, value in data.items()}
    return [plain(value) for value in data] if isinstance(data, (list, tuple)) else data
