"""Write configs/schema.json, from which an editor completes, explains and checks the keys of a config.

    python -m src.schema

Made from signatures and docstrings: ours, Lightning's Trainer, torch's optimizers and schedules. A config names it
in its first line, `# yaml-language-server: $schema=../schema.json` (VS Code with the YAML extension, and others).
"""

import ast
import inspect
import json
import sys
from collections.abc import Sequence
from functools import cache
from pkgutil import resolve_name
from typing import Any

from src.config.check import allowed_prefixes, facts, sections, settable
from src.config.request import CommandParser
from src.config.signatures import ROOT, Argument, Arguments, arguments, classes, described
from src.run.command import command
from src.run.files import write_text
from src.run.terminal import rank_zero_print

FILE = ROOT / "configs" / "schema.json"
Schema = dict[str, Any]
PLAIN: dict[str, Schema] = {
    "int": {"type": "integer"}, "float": {"type": "number"}, "str": {"type": "string"}, "bool": {"type": "boolean"},
    "Path": {"type": "string"}, "None": {"type": "null"}, "Any": {}, "dict": {"type": "object"},
    "Tensor": {"type": "number"},
}  # fmt: skip
PLAIN |= {word: {"type": "array"} for word in ("list", "Sequence", "Iterable", "tuple")}
CLOSED: Schema = {"type": "object", "additionalProperties": False}
# Words in annotations that stand for a class to be named in the config.
BASES = {
    "Model": "src.models.base.Model",
    "DataModule": "src.data.module.DataModule",
    "NetworkFactory": "torch.nn.Module",
    "Augmentation": "src.data.images.augment.Augmentation",
    "Optimizer": "torch.optim.Optimizer",
    "LRScheduler": "torch.optim.lr_scheduler.LRScheduler",
}


def make() -> Schema:
    """The schema of a config file."""
    top = {name: group(name, known) for name, known in sections().items()}
    top |= {"seed_everything": {"type": "integer", "minimum": 0, "description": "seed of all random numbers"}}
    top |= {"model": spec("Model"), "data": spec("DataModule")}
    made = f"made by `python -m src.schema` with {versions()}"
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "$comment": made, **CLOSED}
    return {**head, "properties": top, "definitions": {path: definition(path) for path in known_classes()}}


def versions() -> str:
    import lightning
    import torch

    return f"torch {torch.__version__.partition('+')[0]}, lightning {lightning.__version__}"


@cache
def known_classes() -> dict[str, str]:
    """Dotted path of each class that can be used -> the word of BASES that it fits."""
    bases = {word: resolve_name(path) for word, path in BASES.items()}
    paths = [path for path in classes() if not path.startswith("src.callbacks.")]
    for module in ("torch.optim", "torch.optim.lr_scheduler"):
        paths += [f"{module}.{name}" for name in sorted(vars(resolve_name(module))) if name[0] != "_"]
    found = {}
    for path in paths:
        cls = resolve_name(path)
        part = path.startswith("src.networks.") and not set(facts()) & set(arguments(path) or ())  # takes no fact
        if inspect.isclass(cls) and cls not in bases.values() and not inspect.isabstract(cls) and not part:
            found[path] = next((word for word, base in bases.items() if issubclass(cls, base)), "")
    return {path: word for path, word in found.items() if word}


def definition(path: str) -> Schema:
    """A class with its arguments."""
    cls = resolve_name(path)
    summary = (inspect.getdoc(cls) or path).partition("\n\n")[0].replace("\n", " ")
    known = settable(path)
    keys = {"class_path": {"const": path}, "init_args": group(path, foreign(cls) if known is None else known)}
    return {**CLOSED, "description": summary, "properties": keys, "required": ["class_path"]}


def foreign(cls: type) -> Arguments:
    docs, out = described(cls.__doc__), {}
    for name, p in inspect.signature(cls).parameters.items():
        note = "" if p.annotation is p.empty else inspect.formatannotation(p.annotation)
        out[name] = Argument(note, None if p.default is p.empty else p.default, docs.get(name, ""))
    return {name: argument for name, argument in out.items() if name not in ("params", "optimizer")}


def group(description: str, known: Arguments) -> Schema:
    """A mapping with these keys and no others; `key+` adds to a list."""
    keys = {name: key(argument) for name, argument in known.items()}
    return {**CLOSED, "description": description, "properties": keys, "patternProperties": {r"\+$": {}}}


def key(argument: Argument) -> Schema:
    schema = converted(ast.parse(argument.annotation or "Any", mode="eval").body)
    if argument.doc:
        schema = {**schema, "description": argument.doc}
    plain = isinstance(argument.default, (int, float, str, bool)) and "<" not in str(argument.default)
    return {**schema, "default": argument.default} if plain else schema


def converted(node: ast.expr) -> Schema:
    """JSON schema of an annotation."""
    match node:
        case ast.Constant(value=str(text)):
            return converted(ast.parse(text, mode="eval").body)
        case ast.BinOp():
            return either(node.left, node.right)
        case ast.Subscript():
            inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return generic(ast.unparse(node.value).rpartition(".")[2], inside)
    word = ast.unparse(node).rpartition(".")[2]
    return spec(word) if word in BASES else PLAIN.get(word, {})


def generic(word: str, inside: list[ast.expr]) -> Schema:
    if word == "Literal":
        return {"enum": [ast.literal_eval(value) for value in inside]}
    if word == "Callable":
        return converted(inside[-1])
    if word in ("Optional", "Union"):
        return either(*inside, *([ast.Constant(None)] if word == "Optional" else []))
    outer = PLAIN.get(word, {})
    return {**outer, "items": converted(inside[0])} if outer == PLAIN["list"] else outer


def either(*nodes: ast.expr) -> Schema:
    flat = [s for schema in map(converted, nodes) for s in schema.get("anyOf", [schema])]
    return {} if {} in flat else {"anyOf": flat}


def spec(word: str) -> Schema:
    """A class by its path, alone or with its arguments; those that are not known here may have any."""
    paths = [path for path, fits in known_classes().items() if fits == word]
    refs: list[Schema] = [{"$ref": f"#/definitions/{path}"} for path in paths]
    prefixes = "|".join(prefix.replace(".", r"\.") for prefix in allowed_prefixes())
    other = {"type": "string", "pattern": rf"^({prefixes})\.", "not": {"enum": sorted(known_classes())}}
    free = {**CLOSED, "properties": {"class_path": other, "init_args": {"type": "object"}}}
    return {"anyOf": [{"enum": paths}, *refs, free, other]}


@command
def main(args: Sequence[str]) -> int:
    CommandParser("python -m src.schema", description=(__doc__ or "").partition("\n")[0]).parse_args(list(args))
    schema = make()
    write_text(FILE, json.dumps(schema, indent=1) + "\n")
    rank_zero_print(f"{FILE.relative_to(ROOT)}: {len(schema['properties'])} keys at the top, with their classes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
