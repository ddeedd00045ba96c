"""Write configs/schema.json, from which an editor completes, explains and checks the keys of a config.

    python -m src.schema

Made from signatures and docstrings: ours, Lightning's Trainer, torch's optimizers and schedules. A config names it
in its first line, `# yaml-language-server: $schema=../schema.json` (VS Code with the YAML extension, and others).
"""

import json
import sys
from collections.abc import Collection, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

from src.config.check import FILLED_IN, SECTIONS, TOP, adapter, allowed_prefixes, section
from src.config.request import CommandParser
from src.config.signatures import Argument, Signature, classes, signature
from src.config.source import MISSING, class_attribute, derives, exported
from src.run.command import command
from src.run.files import ROOT, write_text
from src.run.terminal import rank_zero_print

FILE = ROOT / "configs" / "schema.json"
FOREIGN = ("torch.optim", "torch.optim.lr_scheduler")  # whose classes are explained besides ours
MODULE = "torch.nn.modules.module.Module"
CLOSED: dict[str, Any] = {"type": "object", "additionalProperties": False}
Schema = dict[str, Any]


def make() -> Schema:
    """The schema of a config file."""
    top = {name: key(argument) for name, argument in TOP.arguments.items()}
    top |= {name: group(name, section(name)) for name in SECTIONS}
    head = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$comment": f"made by `make schema` with {versions()}",
    }
    definitions = {path: definition(path) for path in known_classes()}
    definitions |= {f"any {base}": named(base) for base in (*named_bases(), "other")}
    return {**head, **CLOSED, "properties": top, "definitions": definitions}


def versions() -> str:
    return f"torch {version('torch').partition('+')[0]}, lightning {version('lightning')}"


@cache
def known_classes() -> tuple[str, ...]:
    """Dotted paths of the classes that are explained."""
    ours = [path for path in classes() if not path.startswith("src.callbacks.") and not is_part(path)]
    paths = [*ours, *(f"{module}.{name}" for module in FOREIGN for name in sorted(exported(module)))]
    fits = {path for path in paths for base in named_bases() if derives(path, base)}
    return tuple(path for path in paths if path in fits and path not in named_bases())


def is_part(path: str) -> bool:
    """Whether a class is a part of a network: a whole one can be made without arguments."""
    known = signature(path) if path.startswith("src.networks.") else None
    return known is not None and any(argument.default is MISSING for argument in known.arguments.values())


@cache
def named_bases() -> tuple[str, ...]:
    """What the arguments of our models and data modules want a class to be derived from."""
    tops = [argument.named.base for argument in TOP.arguments.values() if argument.named]
    ours = [signature(path) or Signature() for path in classes() if any(derives(path, base) for base in tops)]
    found = [a.named.base for known in ours for a in known.arguments.values() if a.named]
    return tuple(dict.fromkeys(base for base in (*tops, *found) if base.startswith(("src.", "torch."))))


def definition(path: str) -> Schema:
    """A class with its arguments."""
    known = signature(path) or Signature(open=True)
    summary = known.doc.partition("\n\n")[0].replace("\n", " ") or path
    facts = {fact for other in classes() for fact in class_attribute(other, "provides") or ()}
    is_model = derives(path, TOP.arguments["model"].named.base)  # type: ignore[union-attr]
    filled_in = set() if is_model else {*FILLED_IN, *(facts if derives(path, MODULE) else ())}
    keys = {"class_path": {"const": path}, "init_args": group(path, known, filled_in)}
    return {**CLOSED, "description": summary, "properties": keys, "required": ["class_path"]}


def group(description: str, known: Signature, filled_in: Collection[str] = ()) -> Schema:
    """A mapping with these keys and no others; `key+` adds to a list."""
    keys = {name: key(argument) for name, argument in known.arguments.items() if name not in filled_in}
    return {**CLOSED, "description": description, "properties": keys, "patternProperties": {r"\+$": {}}}


def key(argument: Argument) -> Schema:
    schema = with_classes(adapter(argument.annotation).json_schema())
    schema |= {"description": argument.doc} if argument.doc else {}
    plain = isinstance(argument.default, (int, float, str, bool))
    return schema | {"default": argument.default} if plain else schema


def with_classes(schema: Any) -> Any:
    """A schema of pydantic's, with a reference to the classes that fit in place of each mark `{"class": base}`."""
    if isinstance(schema, list):
        return [with_classes(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "class" not in schema:
        return {name: with_classes(part) for name, part in schema.items()}
    return {"$ref": f"#/definitions/any {schema['class'] if schema['class'] in named_bases() else 'other'}"}


def named(base: str) -> Schema:
    """A class by its path, alone or with its arguments; those that are not explained here may have any."""
    paths = [path for path in known_classes() if derives(path, base)]
    prefixes = "|".join(prefix.replace(".", r"\.") for prefix in allowed_prefixes())
    other = {"type": "string", "pattern": rf"^({prefixes})\.", "not": {"enum": list(known_classes())}}
    free = {**CLOSED, "properties": {"class_path": other, "init_args": {"type": "object"}}}
    return {"anyOf": [{"enum": paths}, *({"$ref": f"#/definitions/{path}"} for path in paths), free, other]}


@command
def main(args: Sequence[str]) -> int:
    CommandParser("python -m src.schema", description=(__doc__ or "").partition("\n")[0]).parse_args(list(args))
    schema = make()
    write_text(FILE, json.dumps(schema, indent=1) + "\n")
    rank_zero_print(f"{FILE.relative_to(ROOT)}: {len(schema['properties'])} keys at the top, with their classes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
