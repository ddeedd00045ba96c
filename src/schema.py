"""Write configs/schema.json, from which an editor completes, explains and checks the keys of a config.

    python -m src.schema

Made from signatures and docstrings: ours, Lightning's Trainer, torch's optimizers and schedules. A config names it
in its first line, `# yaml-language-server: $schema=../schema.json` (VS Code with the YAML extension, and others).
"""

import ast
import importlib
import inspect
import json
import sys
from collections.abc import Sequence
from typing import Any

from src.checks import ROOT, SECTIONS, allowed_prefixes, arguments_of, facts, sections
from src.config import CommandParser
from src.run import run_command, say, write_text
from src.signatures import Argument, Arguments, classes

FILE = ROOT / "configs" / "schema.json"
Schema = dict[str, Any]
PLAIN: dict[str, Schema] = {
    "int": {"type": "integer"}, "float": {"type": "number"}, "str": {"type": "string"}, "bool": {"type": "boolean"},
    "Path": {"type": "string"}, "None": {"type": "null"}, "Any": {}, "dict": {"type": "object"},
    "Tensor": {"type": "number"},
}  # fmt: skip
LISTS = ("list", "Sequence", "Iterable", "tuple")
FILLED_IN = ("params", "optimizer")  # by the model


def make() -> Schema:
    """The schema of a config file."""
    named = known_classes()
    schema = Converter({word: [path for path, bases in named.items() if word in bases] for word in BASES})
    top = {name: schema.group(name, arguments) for name, arguments in sections().items()}
    top |= {"seed_everything": {"type": "integer", "minimum": 0, "description": "seed of all random numbers"}}
    top |= {"model": schema.spec("Model"), "data": schema.spec("DataModule")}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$comment": f"made by `python -m src.schema` with {versions()}",
        "type": "object", "additionalProperties": False, "properties": top, "definitions": schema.definitions(named),
    }  # fmt: skip


def versions() -> str:
    import lightning
    import torch

    return f"torch {torch.__version__.partition('+')[0]}, lightning {lightning.__version__}"


# Words in annotations that stand for a class to be named in the config.
BASES = {
    "Model": "src.models.base.Model",
    "DataModule": "src.data.module.DataModule",
    "NetworkFactory": "torch.nn.Module",
    "Augmentation": "src.data.augment.Augmentation",
    "Mix": "src.data.mix.Mix",
    "Optimizer": "torch.optim.Optimizer",
    "LRScheduler": "torch.optim.lr_scheduler.LRScheduler",
}


def known_classes() -> dict[str, list[str]]:
    """Dotted path of each class that can be used -> the words of BASES that it fits."""
    bases = {word: load(path) for word, path in BASES.items()}
    paths = [p for p in classes() if not p.startswith("src.callbacks.")]
    for module in ("torch.optim", "torch.optim.lr_scheduler"):
        paths += [f"{module}.{name}" for name in sorted(vars(importlib.import_module(module))) if name[0] != "_"]
    found = {}
    for path in paths:
        cls = load(path)
        if inspect.isclass(cls) and cls not in bases.values() and not inspect.isabstract(cls):
            words = [word for word, base in bases.items() if issubclass(cls, base)]
            if path.startswith("src.networks."):  # a part of a network takes no fact
                words = ["NetworkFactory"] if set(facts()) & set(arguments_of(path) or ()) else []
            found[path] = words[:1]
    return {path: words for path, words in found.items() if words}


def load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def arguments(path: str) -> Arguments:
    """Of a constructor, without what is filled in."""
    own = arguments_of(path)
    found = foreign(load(path)) if own is None else own
    without = facts() if path.startswith("src.networks.") else FILLED_IN if ".optim." in path else ("seed",)
    return {name: argument for name, argument in found.items() if name not in without}


def foreign(cls: type) -> Arguments:
    from docstring_parser import parse

    docs = {p.arg_name: " ".join((p.description or "").split()) for p in parse(cls.__doc__ or "").params}
    out = {}
    for name, p in inspect.signature(cls).parameters.items():
        note = "" if p.annotation is p.empty else inspect.formatannotation(p.annotation)
        out[name] = Argument(note, None if p.default is p.empty else p.default, docs.get(name, ""))
    return out


class Converter:
    """Annotations, as text, to JSON schema.

    Args:
        paths: the classes that each word of BASES stands for.
    """

    def __init__(self, paths: dict[str, list[str]]) -> None:
        self.paths = paths
        self.known = sorted({path for group in paths.values() for path in group})

    def group(self, description: str, known: Arguments) -> Schema:
        """A mapping with these keys and no others; `key+` adds to a list."""
        keys = {name: self.key(argument) for name, argument in known.items()}
        more = {"patternProperties": {r"\+$": {}}, "additionalProperties": False}
        return {"type": "object", "description": description, "properties": keys, **more}

    def key(self, argument: Argument) -> Schema:
        schema = self.of(ast.parse(argument.annotation or "Any", mode="eval").body)
        if argument.doc:
            schema = {**schema, "description": argument.doc}
        plain = isinstance(argument.default, (int, float, str, bool)) and "<" not in str(argument.default)
        return {**schema, "default": argument.default} if plain else schema

    def of(self, node: ast.expr) -> Schema:
        if isinstance(node, ast.Constant):
            return self.of(ast.parse(node.value, mode="eval").body) if isinstance(node.value, str) else PLAIN["None"]
        if isinstance(node, ast.BinOp):
            return self.either([self.of(node.left), self.of(node.right)])
        if isinstance(node, ast.Subscript):
            inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return self.generic(ast.unparse(node.value).rpartition(".")[2], inside)
        word = ast.unparse(node).rpartition(".")[2]
        return self.spec(word) if word in BASES else {"type": "array"} if word in LISTS else PLAIN.get(word, {})

    def generic(self, word: str, inside: list[ast.expr]) -> Schema:
        if word == "Literal":
            return {"enum": [ast.literal_eval(value) for value in inside]}
        if word in LISTS:
            return {"type": "array", "items": self.of(inside[0])}
        if word == "Callable":
            return self.of(inside[-1])
        if word in ("Optional", "Union"):
            return self.either([*map(self.of, inside), *([PLAIN["None"]] if word == "Optional" else [])])
        return PLAIN.get(word, {})

    def either(self, schemas: list[Schema]) -> Schema:
        flat = [s for schema in schemas for s in schema.get("anyOf", [schema])]
        return {} if {} in flat else {"anyOf": flat}

    def spec(self, word: str) -> Schema:
        """A class by its path, alone or with its arguments; those that are not known here may have any."""
        refs: list[Schema] = [{"$ref": f"#/definitions/{path}"} for path in self.paths[word]]
        prefixes = "|".join(prefix.replace(".", r"\.") for prefix in allowed_prefixes())
        other = {"type": "string", "pattern": rf"^({prefixes})\.", "not": {"enum": self.known}}
        free: Schema = {"type": "object", "properties": {"class_path": other, "init_args": {"type": "object"}}}
        return {"anyOf": [{"enum": self.paths[word]}, *refs, {**free, "additionalProperties": False}, other]}

    def definitions(self, named: dict[str, list[str]]) -> Schema:
        out = {}
        for path in named:
            summary = (inspect.getdoc(load(path)) or path).partition("\n\n")[0].replace("\n", " ")
            keys = {"class_path": {"const": path}, "init_args": self.group(path, arguments(path))}
            out[path] = {"type": "object", "description": summary, "properties": keys, "additionalProperties": False}
            out[path]["required"] = ["class_path"]
        return out


def write(args: Sequence[str]) -> int:
    CommandParser("python -m src.schema", description=(__doc__ or "").partition("\n")[0]).parse_args(list(args))
    write_text(FILE, json.dumps(make(), indent=1) + "\n")
    say(f"{FILE.relative_to(ROOT)}: {len(sections()['trainer']) + len(SECTIONS)} keys at the top, with their classes")
    return 0


def main(args: Sequence[str] | None = None) -> int:
    return run_command(write, args)


if __name__ == "__main__":
    sys.exit(main())
