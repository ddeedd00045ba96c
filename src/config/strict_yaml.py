"""YAML as plain data and nothing else, with each key's line: no tags, no repeated keys, no aliases that blow up."""

import re
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.constructor import SafeConstructor

from src.run.errors import ConfigError, nearest

MAX_BYTES, MAX_VALUES, MAX_DEPTH = 200_000, 20_000, 50
SPEC = ("class_path", "init_args")
TAG = "tag:yaml.org,2002:"
Lines = dict[str, str]  # dotted key -> where it was set last


def join(path: str, key: Any) -> str:
    """A dotted key as users write it: without init_args, and without the + that adds to a list."""
    return path if key in SPEC else f"{path}.{key}".lstrip(".").removesuffix("+")


class Loader(yaml.SafeLoader):
    """Here 1e-3 is a number, and dates, 12:30:00 and 010 are text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, regexp) for tag, regexp in pairs if tag.rsplit(":")[-1] in ("bool", "null", "merge")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


INT = r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$"
FLOAT = r"[-+]?(([0-9][0-9_]*\.[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|(?i:\.inf|\.nan))$"
Loader.add_implicit_resolver(f"{TAG}int", re.compile(INT), list("-+0123456789"))
Loader.add_implicit_resolver(f"{TAG}float", re.compile(FLOAT), list("-+.0123456789"))


class Reader:
    """Makes plain data of YAML's nodes, and notes the line of each key."""

    def __init__(self, name: str) -> None:
        self.name, self.num_values, self.lines = name, 0, Lines()

    def value(self, node: yaml.Node, path: str = "", depth: int = 0) -> Any:
        self.num_values += 1
        if self.num_values > MAX_VALUES or depth > MAX_DEPTH:
            self.refuse(node, f"more than {MAX_VALUES:,} values or {MAX_DEPTH} levels, with what its aliases stand for")
        if node.tag.removeprefix(TAG) not in ("map", "seq", "str", "int", "float", "bool", "null"):
            tag = node.tag.replace(TAG, "!!")[:60]
            self.refuse(node, f"{path}: tags such as {tag} are refused; a config is plain data")
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, join(path, i), depth + 1) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path, depth)
        return SafeConstructor().construct_object(node)

    def mapping(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.refuse(key, "a key must be a word")
            if key.value == "<<":
                self.refuse(key, "merge keys (<<) are not supported -> give a second --config")
            if key.value in out:
                self.refuse(key, f"key {path}{path and '.'}{key.value} stands here for the second time")
            line = f"{self.name}:{key.start_mark.line + 1}"
            self.lines.setdefault(join(path, key.value), line)  # a group's is the line that begins it
            out[key.value] = self.value(value, join(path, key.value), depth + 1)
        return out

    def refuse(self, node: yaml.Node, problem: str) -> NoReturn:
        raise ConfigError(f"{self.name}:{node.start_mark.line + 1}: {problem}")


def read_file(path: Path) -> tuple[dict[str, Any], Lines]:
    """A file's data, and the line of each key.

    Raises:
        ConfigError: it is missing, too large, not text, not YAML, not a mapping, repeats a key, or has tags.
    """
    try:
        with open(path, "rb") as f:
            raw = f.read(MAX_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: not UTF-8 text (byte {e.start}) -> is it a config?") from None
    except (OSError, ValueError) as e:
        hint = nearest(path.name, (p.name for p in path.parent.glob("*.yaml")))
        raise ConfigError(f"{path}: {str(getattr(e, 'strerror', e)).lower()}{hint}") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than a config may be ({MAX_BYTES:,} bytes)")
    data, lines = read_text(text, str(path))
    if not isinstance(data, dict):
        kind = {list: "a list", type(None): "nothing"}.get(type(data), "one value")
        raise ConfigError(f"{path}: a mapping of keys to values is expected, not {kind}")
    return data, lines


def read_text(text: str, name: str) -> tuple[Any, Lines]:
    """The data of a text, and the line of each key; `name` is for messages."""
    reader = Reader(name)
    try:
        node = yaml.compose(text, Loader)
        return (reader.value(node) if node else None), reader.lines
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        mark = getattr(e, "problem_mark", None)
        what = ", ".join(filter(None, (getattr(e, "context", None), getattr(e, "problem", None))))
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{name}{line}: not YAML: {what or str(e).splitlines()[0]}") from None
