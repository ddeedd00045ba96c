"""From files and flags to checked layers of plain data, without loading torch: a typo is refused in a second.

A config is data, not code. Keys are compared with the signatures of our own classes and of the Trainer, which are read
from source; classes outside pyproject's allow-list are refused before their module is imported.
"""

import argparse
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import yaml

from src import signatures
from src.errors import ConfigError, nearest

ROOT = Path(__file__).parent.parent
DEFAULTS = ROOT / "configs" / "default.yaml"
MAX_BYTES, MAX_NODES = 1_000_000, 20_000
# The named sections of a config besides trainer, model and data, and the class whose arguments each holds.
SECTIONS = {
    "checkpoints": "src.callbacks.checkpoints.Checkpoints",
    "throughput": "src.callbacks.throughput.Throughput",
    "progress": "src.callbacks.progress.ThrottledProgress",
    "wandb": "src.loggers.wandb.WandbOptions",
}
TOP = ("seed_everything", "trainer", "model", "data", *SECTIONS)
Path_ = tuple[str | int, ...]


@cache
def allowed_prefixes() -> tuple[str, ...]:
    with open(ROOT / "pyproject.toml", "rb") as f:
        return tuple(tomllib.load(f)["tool"]["leyden"]["allow"])


class Loader(yaml.SafeLoader):
    """YAML's plain data, where 1e-3 is a number and dates are text."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in pairs if tag.rsplit(":")[-1] not in ("timestamp", "float")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
NUMBER = r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9]+(?:[eE][-+]?[0-9]+)?)"
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(rf"^(?:{NUMBER}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"), list("-+.0123456789")
)


@dataclass
class Layer:
    """One config file, or all flags: its data, and the line on which each key stands."""

    name: str
    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[Path_, str] = field(default_factory=dict)


@dataclass
class Request:
    """What the user asked for."""

    layers: list[Layer]
    flags: list[str]  # as they were given, for the parser
    stated: dict[str, Any]  # facts of the data that a config states all the same; they are compared, not used
    experiment: str
    options: argparse.Namespace  # of the command itself: run_dir, debug, ...

    def where(self, key: str) -> str:
        """The last place that sets a dotted key, for messages."""
        parts = tuple(key.split("."))
        for layer in reversed(self.layers):
            for path, line in layer.lines.items():
                if plain(path) == parts:
                    return f"{line}: "
        return ""


def plain(path: Path_) -> tuple[str, ...]:
    """A key's path as users write it."""
    return tuple(str(p) for p in path if p not in ("init_args", "dict_kwargs"))


def dotted(path: Path_) -> str:
    return ".".join(plain(path))


# Files


def read_file(path: Path) -> Layer:
    """Read one YAML file strictly.

    Raises:
        ConfigError: it is missing, too large, not text, not YAML, not a mapping, repeats a key, or has tags.
    """
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise ConfigError(f"{path}: {(e.strerror or str(e)).lower()}{nearest(path.name, siblings(path))}") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: {len(raw):,} bytes are more than a config has ({MAX_BYTES:,})")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: not UTF-8 text (byte {e.start}) -> is it a config?") from None
    layer = Layer(str(path))
    node = parse(text, str(path))
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}: a mapping of keys to values is expected, not {describe(node)}")
    layer.data = build(node, layer, ())
    return layer


def siblings(path: Path) -> list[str]:
    return [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []


def describe(node: yaml.Node | None) -> str:
    return {yaml.SequenceNode: "a list", yaml.ScalarNode: "one value"}.get(type(node), "nothing")  # type: ignore[arg-type]


def parse(text: str, name: str) -> yaml.Node | None:
    try:
        node = Loader(text).get_single_node()
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{name}{line}: not YAML: {getattr(e, 'problem', None) or str(e).splitlines()[0]}") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply") from None
    if node is not None and count(node, {}, name) > MAX_NODES:
        raise ConfigError(f"{name}: its aliases stand for more than {MAX_NODES:,} values")
    return node


def count(node: yaml.Node, seen: dict[int, int], name: str) -> int:
    """Values that a node stands for, when each alias is written out."""
    if id(node) in seen:
        if seen[id(node)] == 0:
            raise ConfigError(f"{name}:{node.start_mark.line + 1}: an alias that contains itself")
        return seen[id(node)]
    seen[id(node)] = 0
    inside = node.value if isinstance(node, yaml.CollectionNode) else []
    children = [n for item in inside for n in (item if isinstance(item, tuple) else (item,))]
    seen[id(node)] = 1 + sum(count(child, seen, name) for child in children)
    return seen[id(node)]


def build(node: yaml.Node, layer: Layer, path: Path_) -> Any:
    """Plain data of a node, and the line of each key."""
    line = f"{layer.name}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else str(key_node)
            here = f"{layer.name}:{key_node.start_mark.line + 1}"
            if key in out:
                raise ConfigError(f"{here}: key {dotted((*path, key))} stands here for the second time")
            if key == "<<":
                raise ConfigError(f"{here}: merge keys (<<) are not supported -> give a second --config")
            layer.lines[(*path, key)] = here
            out[key] = build(value_node, layer, (*path, key))
        return out
    if isinstance(node, yaml.SequenceNode):
        return [build(child, layer, (*path, i)) for i, child in enumerate(node.value)]
    try:
        loader = Loader("")
        return loader.construct_object(node)
    except (yaml.YAMLError, ValueError) as e:
        raise ConfigError(f"{line}: {dotted(path)}: {getattr(e, 'problem', None) or e}") from None


# Flags


class CommandParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def command_parser(name: str, manual: str | None) -> CommandParser:
    """The options that all commands have; a command adds its own."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = CommandParser(f"python -m src.{name}", description=manual, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--config", action="append", metavar="FILE", help="a config; a later one overrides an earlier")
    parser.add_argument("--run_dir", metavar="DIR", help="the run folder")
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    parser.usage = f"%(prog)s --config FILE [--config FILE ...] [--run_dir DIR] [--KEY VALUE ...]"
    return parser


def read_request(parser: CommandParser, args: Sequence[str]) -> Request:
    """Split the command's own options from those of the config, then read and check all layers.

    Raises:
        ConfigError: anything that can be seen to be wrong without importing a class.
    """
    options, flags = parser.parse_known_args(list(args))
    files = [Path(p) for p in options.config or []]
    layers = [read_file(path) for path in [DEFAULTS, *files]]
    stated: dict[str, Any] = {}
    layers.append(flag_layer(flags, layers))
    for layer in layers:
        take_facts(layer, stated)
    flags = [flag for flag in group(flags) if not is_fact(flag[0])]
    check(layers)
    return Request(layers, [part for flag in flags for part in flag], stated, experiment_name(files), options)


def group(flags: list[str]) -> list[list[str]]:
    """Flags with their values."""
    out: list[list[str]] = []
    for part in flags:
        if part.startswith("--"):
            out.append([part])
        elif out:
            out[-1].append(part)
        else:
            raise ConfigError(f"{part}: what is this for? Flags begin with --, files follow --config")
    return out


def flag_layer(flags: list[str], layers: list[Layer]) -> Layer:
    """Flags as one more layer, with init_args put in where the config's class specs have them."""
    layer = Layer("flags")
    for name, *values in group(flags):
        key, _, value = name.removeprefix("--").removesuffix("+").partition("=")
        if key in ("print_config", "help"):
            continue
        value = " ".join([*([value] if "=" in name else []), *values])
        path = spec_path(tuple(key.removesuffix("+").split(".")), layers)
        node = parse_value(value, f"--{key}")
        target: Any = layer.data
        for part in path[:-1]:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--{key}: another flag gives {dotted(path[:-1])} a value already")
        target[path[-1]] = node
        layer.lines[path] = f"--{key}"
    return layer


def parse_value(value: str, name: str) -> Any:
    node = parse(value, name) if value.strip() else None
    return None if node is None else build(node, Layer(name), ())


def spec_path(parts: tuple[str, ...], layers: list[Layer]) -> Path_:
    """`model.network.widths` -> `model.init_args.network.init_args.widths`."""
    merged = merge(layers)
    path: list[str] = []
    node: Any = merged
    for part in parts:
        has_spec = isinstance(node, dict) and "class_path" in node
        if has_spec and part not in ("class_path", "init_args", "dict_kwargs"):
            path.append("init_args")
            node = node.get("init_args")
        path.append(part)
        node = node.get(part) if isinstance(node, dict) else None
    return tuple(path)


def experiment_name(files: list[Path]) -> str:
    """The first file's stem; for the config saved in a run folder, the experiment of that run."""
    if not files:
        return "default"
    first = files[0].resolve()
    return first.parent.parent.name if first.name == "config.yaml" else first.stem


# Facts of the data, which no config need state


def is_fact(flag: str) -> bool:
    parts = flag.removeprefix("--").partition("=")[0].split(".")
    return parts[:2] == ["model", "network"] and parts[-1] in facts() and len(parts) <= 5


@cache
def facts() -> tuple[str, ...]:
    return tuple(signatures.arguments("src.models.base.NetworkFactory", method="__call__") or ())


def take_facts(layer: Layer, stated: dict[str, Any]) -> None:
    """Move the facts that a layer states from its network's arguments to `stated`."""
    network = get(layer.data, ("model", "init_args", "network", "init_args"))
    for name in [n for n in facts() if isinstance(network, dict) and n in network]:
        stated[name] = network.pop(name)


def get(data: Any, path: Path_) -> Any:
    for part in path:
        data = data.get(part) if isinstance(data, dict) else None
    return data


# Checks


def merge(layers: list[Layer]) -> dict[str, Any]:
    """All layers in one; a later value wins, and a new class does not keep the old one's arguments."""
    out: dict[str, Any] = {}
    for layer in layers:
        out = merge_two(out, layer.data)
    return out


def merge_two(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    if "class_path" in new and new["class_path"] != old.get("class_path"):
        old = {}
    return {**old, **{key: merge_two(old.get(key), value) for key, value in new.items()}}


def check(layers: list[Layer]) -> None:
    """Refuse unknown keys and classes, naming the place and the nearest right name."""
    for layer in layers:
        for key, value in layer.data.items():
            if key not in TOP:
                fail(layer, (key,), f"unknown key {key}{nearest(key, TOP)}")
            if key != "seed_everything" and not isinstance(value, dict) and not (key in ("model", "data") and value):
                fail(layer, (key,), f"{key} is a group of keys, but here it has the value {value!r}")
    merged = merge(layers)
    check_keys(layers, ("trainer",), merged.get("trainer"), signatures.arguments_of_trainer())
    for section, class_path in SECTIONS.items():
        check_keys(layers, (section,), merged.get(section), signatures.arguments(class_path))
    for path, spec in specs(merged, ()):
        check_spec(layers, path, spec)
    for group_name in ("model", "data"):
        if group_name not in merged:
            raise ConfigError(f"no {group_name} is configured -> name an experiment: --config configs/experiment/NAME.yaml")
        if isinstance(merged[group_name], dict) and "class_path" not in merged[group_name]:
            last_fail(layers, (group_name,), f"{group_name} has no class_path")


def specs(node: Any, path: Path_) -> Iterator[tuple[Path_, dict[str, Any]]]:
    """Every place that names a class; plain text is one where an argument is known to take a class."""
    if isinstance(node, dict):
        if "class_path" in node:
            yield path, node
        for key, value in node.items():
            takes_class = (key in ("model", "data") and not path) or key in ("network", "optimizer", "schedule")
            if isinstance(value, str) and takes_class:
                yield (*path, key), {"class_path": value}
            yield from specs(value, (*path, key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from specs(value, (*path, i))


def check_spec(layers: list[Layer], path: Path_, spec: dict[str, Any]) -> None:
    class_path, at = spec["class_path"], (*path, "class_path")
    unknown = [key for key in spec if key not in ("class_path", "init_args", "dict_kwargs")]
    if unknown:
        last_fail(layers, (*path, unknown[0]), f"{dotted((*path, unknown[0]))} belongs under init_args")
    if not isinstance(class_path, str) or "." not in class_path:
        names = [name for name in signatures.classes() if name.endswith(f".{class_path}")]
        hint = f" -> write {names[0]}" if names else ""
        last_fail(layers, at, f"{dotted(path)}: {class_path!r} is not a dotted path of a class{hint}")
    if not class_path.startswith(allowed_prefixes()):
        hint = nearest(class_path, signatures.classes())
        last_fail(layers, at, f"{dotted(path)}: {class_path} is outside the prefixes that pyproject.toml allows{hint}")
    known = signatures.arguments(class_path)
    if class_path.startswith("src.") and known is None:
        same = [name for name in signatures.classes() if name.rsplit(".")[-1] == class_path.rsplit(".")[-1]]
        hint = f"; did you mean {same[0]}?" if same else nearest(class_path, signatures.classes())
        last_fail(layers, at, f"{dotted(path)}: there is no {class_path}{hint}")
    is_network = path == ("model", "init_args", "network")
    names = None if known is None else {**known, **dict.fromkeys(facts() if is_network else ())}
    check_keys(layers, (*path, "init_args"), spec.get("init_args"), names)


def check_keys(layers: list[Layer], path: Path_, given: Any, known: dict[str, Any] | None) -> None:
    if given is None or known is None:
        return
    if not isinstance(given, dict):
        last_fail(layers, path, f"{dotted(path)} is a group of keys, but here it has the value {given!r}")
    for key in given:
        if key.removesuffix("+") not in known:
            last_fail(layers, (*path, key), f"unknown key {dotted((*path, key))}{nearest(key, known)}")


def last_fail(layers: list[Layer], path: Path_, message: str) -> NoReturn:
    for layer in reversed(layers):
        if path in layer.lines:
            fail(layer, path, message)
    raise ConfigError(message)


def fail(layer: Layer, path: Path_, message: str) -> NoReturn:
    raise ConfigError(f"{layer.lines.get(path, layer.name)}: {message}")
