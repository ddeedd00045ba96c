"""YAML as plain data and nothing else, with each key's line: no tags, no repeated keys, no aliases that blow up."""

import re
from pathlib import Path
from typing import Any

import yaml

from src.errors import ConfigError, nearest

MAX_BYTES, MAX_NODES, MAX_DEPTH = 200_000, 20_000, 50
Key = tuple[str | int, ...]  # the way from the top to a value
Lines = dict[Key, str]  # where each key stands


class Loader(yaml.SafeLoader):
    """Here 1e-3 is a number, and dates, 12:30:00 and 010 are text."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in pairs if tag.rsplit(":")[-1] in ("bool", "null", "merge")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
TAG, SIGNS = "tag:yaml.org,2002:", "-+.0123456789"
DIGITS = r"[0-9][0-9_]*"
FLOAT = rf"(?:{DIGITS}\.[0-9_]*(?:[eE][-+]?[0-9]+)?|{DIGITS}[eE][-+]?[0-9]+|\.[0-9]+(?:[eE][-+]?[0-9]+)?)"
Loader.add_implicit_resolver(f"{TAG}int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$"), list(SIGNS))
Loader.add_implicit_resolver(
    f"{TAG}float", re.compile(rf"^(?:[-+]?{FLOAT}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"), list(SIGNS)
)


def read_file(path: Path) -> tuple[dict[str, Any], Lines]:
    """A file's data, and the line of each key.

    Raises:
        ConfigError: it is missing, too large, not text, not YAML, not a mapping, repeats a key, or has tags.
    """
    try:
        with open(path, "rb") as f:
            raw = f.read(MAX_BYTES + 1)
    except (OSError, ValueError) as e:
        near = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: {getattr(e, 'strerror', e)}".lower() + nearest(path.name, near)) from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than a config may be ({MAX_BYTES:,} bytes)")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: not UTF-8 text (byte {e.start}) -> is it a config?") from None
    lines: Lines = {}
    data = read_text(text, str(path), lines)
    if not isinstance(data, dict):
        kind = {list: "a list", type(None): "nothing"}.get(type(data), "one value")
        raise ConfigError(f"{path}: a mapping of keys to values is expected, not {kind}")
    return data, lines


def read_text(text: str, name: str, lines: Lines) -> Any:
    """The data of a text; `name` is for messages."""
    try:
        node = Loader(text).get_single_node()
        if node is None:
            return None
        if count(node, {}, name) > MAX_NODES:
            raise ConfigError(f"{name}: its aliases stand for more than {MAX_NODES:,} values")
        return build(node, name, lines, ())
    except yaml.YAMLError as e:
        mark, what = getattr(e, "problem_mark", None), (getattr(e, "context", None), getattr(e, "problem", None))
        line = f":{mark.line + 1}" if mark and Path(name).suffix else ""
        raise ConfigError(
            f"{name}{line}: not YAML: {', '.join(filter(None, what)) or str(e).splitlines()[0]}"
        ) from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply") from None


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


def build(node: yaml.Node, name: str, lines: Lines, path: Key) -> Any:
    """Plain data of a node; fills in the line of each key."""
    here = f"{name}:{node.start_mark.line + 1}"
    dotted = ".".join(map(str, path))
    if len(path) > MAX_DEPTH:
        raise ConfigError(f"{here}: nested too deeply")
    if node.tag.removeprefix(TAG) not in ("map", "seq", "str", "int", "float", "bool", "null"):
        raise ConfigError(
            f"{here}: {dotted}: tags such as {node.tag.replace(TAG, '!!')[:60]} are refused; a config is plain data"
        )
    if isinstance(node, yaml.MappingNode):
        return build_mapping(node, name, lines, path)
    if isinstance(node, yaml.SequenceNode):
        return [build(child, name, lines, (*path, i)) for i, child in enumerate(node.value)]
    try:
        return Loader("").construct_object(node)
    except ValueError as e:
        raise ConfigError(f"{here}: {dotted}: {e}") from None


def build_mapping(node: yaml.MappingNode, name: str, lines: Lines, path: Key) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key_node, value_node in node.value:
        here, key = f"{name}:{key_node.start_mark.line + 1}", key_node.value
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag.startswith(("!", f"{TAG}python")):
            raise ConfigError(f"{here}: a key must be a word")
        if key == "<<":
            raise ConfigError(f"{here}: merge keys (<<) are not supported -> give a second --config")
        if key in out:
            raise ConfigError(f"{here}: key {'.'.join(map(str, (*path, key)))} stands here for the second time")
        lines[(*path, key)] = here
        out[key] = build(value_node, name, lines, (*path, key))
    return out
