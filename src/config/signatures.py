"""The arguments of classes and functions, read from their source without importing it: ours, Lightning's, torch's.

This is the one reading of signatures: the check of a config, --help, the editors' schema and the builder all use it.
"""

import ast
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, reduce
from inspect import cleandoc
from operator import or_
from typing import Annotated, Any, Literal, get_args

from docstring_parser import parse
from pydantic_core import PydanticCustomError, core_schema

from src.config.source import MISSING, body, constant, find, path_of
from src.run.errors import ConfigError
from src.run.files import ROOT

PACKAGES = ("networks", "models", "data", "optim", "callbacks")  # of src: where classes are that a config may name
PLAIN: dict[str, Any] = {
    "int": int, "float": float, "str": str, "bool": bool, "None": None, "Path": str, "PathLike": str, "Tensor": float,
    "timedelta": str, "object": Any, "Any": Any,
}  # fmt: skip
GENERIC: dict[str, Any] = {"list": list, "tuple": tuple, "dict": dict, "Mapping": dict, "set": list, "Set": list}
GENERIC |= dict.fromkeys(("Sequence", "Iterable", "Collection"), list)


@dataclass(frozen=True)
class Named:
    """In an annotation: a class or function that the config names by `class_path`, to be made or (`factory`) passed on.

    Args:
        base: the dotted path of what it must be derived from; empty where that cannot be read.
    """

    base: str
    factory: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {"class": self.base}  # src/schema.py puts the classes in its place

    def check(self, value: Any) -> Any:
        if isinstance(value, dict) and "class_path" in value:
            return value
        raise PydanticCustomError("class_path", "the path of a class")


@dataclass(frozen=True)
class Argument:
    annotation: Any = Any
    default: Any = MISSING
    doc: str = ""
    inherited: bool = False  # from what gets the **kwargs of a foreign function or class: only some of it may fit

    @property
    def named(self) -> Named | None:
        """The class that the config may name here."""
        return next((part for part in parts(self.annotation) if isinstance(part, Named)), None)

    def names_class(self, value: Any) -> bool:
        """Whether a plain text is the name of a class here."""
        return isinstance(value, str) and bool(self.named) and ("." in value or str not in parts(self.annotation))


@dataclass(frozen=True)
class Signature:
    """What a class or function takes; `open` if it may take more, which cannot be read."""

    arguments: dict[str, Argument] = field(default_factory=dict)
    open: bool = False
    doc: str = ""


def parts(annotation: Any) -> Iterator[Any]:
    """An annotation, and all that it is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from parts(part)


# Signatures


@cache
def signature(path: str) -> Signature | None:
    """What a class or function takes, with what its bases take where it has **kwargs; None if it cannot be read."""
    module, _, name = path.rpartition(".")
    found = find(module, name)
    if found and isinstance(found[1], ast.FunctionDef):
        return of_function(*found, returned(*found))
    return of_class(*found) if found and isinstance(found[1], ast.ClassDef) else None


def returned(module: str, node: Any) -> Signature | None:
    """What the class takes that a function returns, which gets the function's **kwargs (torchvision's networks)."""
    return signature(path_of(module, ast.unparse(node.returns))) if node.returns else None


def of_class(module: str, node: ast.ClassDef) -> Signature | None:
    doc, above = ast.get_docstring(node) or assigned_doc(module, node.name), None
    init = next((n for n in reversed(node.body) if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if not init or init.args.kwarg:
        known = [signature(path) for path in (path_of(module, ast.unparse(base)) for base in node.bases) if path]
        above = next(filter(None, known), None)
    if init:
        return of_function(module, init, above, doc, 1)
    return Signature(above.arguments, above.open, doc) if above else None


def assigned_doc(module: str, name: str) -> str:
    """The text of a docstring that is put together after a class, as in torch.optim."""
    assigned = (n for n in body(module) if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == f"{name}.__doc__")
    text = cleandoc("".join(literal_text(node.value) for node in assigned))
    return re.sub(r"Args:\n\s*\n", "Args:\n", text)  # where the first entry was no literal


def literal_text(node: ast.expr) -> str:
    match node:
        case ast.BinOp():
            return literal_text(node.left) + literal_text(node.right)
        case ast.JoinedStr():
            return "".join(map(literal_text, node.values))
    return str(node.value) if isinstance(node, ast.Constant) else ""


def of_function(module: str, node: Any, above: Signature | None, doc: str = "", skip: int = 0) -> Signature:
    """A function's own arguments, and those of `above` if it has **kwargs."""
    found = [*node.args.posonlyargs, *node.args.args]
    defaults = [None] * (len(found) - len(node.args.defaults)) + node.args.defaults + node.args.kw_defaults
    docs = described(doc) or described(ast.get_docstring(node))
    own = {
        a.arg: Argument(annotation(a.annotation, module), constant(d), docs.get(a.arg, ""))
        for a, d in list(zip([*found, *node.args.kwonlyargs], defaults, strict=True))[skip:]
    }
    if not node.args.kwarg:
        return Signature(own, doc=doc)
    ours, more = module.startswith("src.") and above is not None, above.arguments if above else {}
    if not ours:
        more = {name: replace(argument, inherited=True) for name, argument in more.items()}
    return Signature(more | own, not ours or bool(above and above.open), doc)


@cache
def classes() -> tuple[str, ...]:
    """Dotted paths of all classes of ours that a config could name."""
    files = [file for package in PACKAGES for file in sorted((ROOT / "src" / package).rglob("*.py"))]
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    out = []
    for module in modules:
        with suppress(ConfigError):  # a file that is no Python is reported where it is used
            out += [f"{module}.{node.name}" for node in body(module) if isinstance(node, ast.ClassDef)]
    return tuple(out)


def described(doc: str | None) -> dict[str, str]:
    """What a docstring's `Args:` says of each argument, as one line."""
    return {entry.arg_name: " ".join((entry.description or "").split()) for entry in parse(doc or "").params}


# Annotations as types that pydantic checks


def annotation(node: ast.expr | None, module: str) -> Any:
    """The type of an annotation as a module understands it; Any for what cannot be read."""
    match node:
        case None:
            return Any
        case ast.Constant(value=None):
            return None
        case ast.Constant(value=str(text)):
            return annotation(ast.parse(text, mode="eval").body, module)
        case ast.BinOp():
            return either([node.left, node.right], module)
        case ast.Subscript():
            inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return generic(ast.unparse(node.value).rpartition(".")[2], inside, module)
    return by_name(ast.unparse(node), module)


def either(nodes: list[ast.expr], module: str) -> Any:
    types = [annotation(node, module) for node in nodes]
    return Any if Any in types else reduce(or_, types)


def generic(word: str, inside: list[ast.expr], module: str) -> Any:
    if word == "Literal":
        return Literal[tuple(ast.literal_eval(value) for value in inside)]
    if word == "Callable":
        made = annotation(inside[-1], module)
        base = next((part.base for part in parts(made) if isinstance(part, Named)), "")
        return Annotated[Any, Named(base, factory=True)]
    if word in ("Optional", "Union"):
        return either([*inside, *([ast.Constant(None)] if word == "Optional" else [])], module)
    kind = GENERIC.get(word.lower(), GENERIC.get(word))
    if kind is None:
        return Any
    types = tuple(... if isinstance(n, ast.Constant) and n.value is ... else annotation(n, module) for n in inside)
    return kind[types] if kind is not list else list[types[0]]  # type: ignore[valid-type]


def by_name(name: str, module: str) -> Any:
    word = name.rpartition(".")[2]
    if word in PLAIN:
        return PLAIN[word]
    if word in GENERIC:
        return GENERIC[word]
    found = find(module, name)
    if found and isinstance(found[1], ast.Assign):  # an alias
        return annotation(found[1].value, found[0])
    base = path_of(module, name)
    return Annotated[Any, Named(base)] if base or word == "Callable" else Any
