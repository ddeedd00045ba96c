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

from src.config.source import MISSING, Definition, body, constant, find, is_ours, lineage, returned, seen_from
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
        """What the config may name here, of several classes the first."""
        return next((part for part in parts(self.annotation) if isinstance(part, Named)), None)

    @property
    def bases(self) -> list[str]:
        """What a class that is named here must be derived from, one of these; none where that is not known."""
        found = [part.base for part in parts(self.annotation) if isinstance(part, Named)]
        return found if all(found) else []

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
    """What a class or function takes; None if it cannot be read. What **kwargs may hold is read from a class's bases,
    and for a function from the class that it returns (torchvision's networks)."""
    found = find(path)
    if not found or isinstance(found.node, ast.Assign):
        return None
    takers, whole = [(found, found.node)], False
    above = found if found.is_class else returned(found)
    if above:
        line, whole = lineage(above.path)
        takers = ([] if found.is_class else takers) + [(one, init) for one in line if (init := one.method("__init__"))]
    out: dict[str, Argument] = {}
    for n, (taker, node) in enumerate(takers):
        foreign = n > 0 and not is_ours(found.module)
        more = own_arguments(taker, node)
        out = {name: replace(argument, inherited=foreign) for name, argument in more.items()} | out
        if not node.args.kwarg:
            return Signature(out, open=foreign and found.is_class, doc=text_of(found))
    decorated = any(one.node.decorator_list for one in lineage(found.path)[0])  # such as a dataclass
    return Signature(out, open=bool(takers) or decorated or not whole, doc=text_of(found))


def own_arguments(found: Definition, node: Any) -> dict[str, Argument]:
    args = [*node.args.posonlyargs, *node.args.args]
    defaults = [None] * (len(args) - len(node.args.defaults)) + node.args.defaults + node.args.kw_defaults
    docs = {entry.arg_name: " ".join((entry.description or "").split()) for entry in parse(text_of(found)).params}
    return {
        a.arg: Argument(or_none(annotation(a.annotation, found.module), constant(d)), constant(d), docs.get(a.arg, ""))
        for a, d in list(zip([*args, *node.args.kwonlyargs], defaults, strict=True))[int(found.is_class) :]
    }


def or_none(kind: Any, default: Any) -> Any:
    """`size: int = None` takes None, too."""
    return kind | None if default is None and kind not in (None, Any) else kind


@cache
def text_of(found: Definition) -> str:
    """The docstring of a class (or of its constructor) or function, also where it is put together after the class, as
    in torch.optim."""
    target, init = f"{found.node.name}.__doc__", found.method("__init__") if found.is_class else None
    nodes = [n for n in body(found.module) if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == target]
    assigned = cleandoc("".join(literal_text(node.value) for node in nodes))
    assigned = re.sub(r"Args:\n\s*\n", "Args:\n", assigned)  # where the first entry was no literal
    docs = [ast.get_docstring(found.node) or "", assigned, (init and ast.get_docstring(init)) or ""]
    return next((doc for doc in docs if "Args:" in doc), docs[0] or docs[1])


def literal_text(node: ast.expr) -> str:
    match node:
        case ast.BinOp():
            return literal_text(node.left) + literal_text(node.right)
        case ast.JoinedStr():
            return "".join(map(literal_text, node.values))
    return str(node.value) if isinstance(node, ast.Constant) else ""


@cache
def classes() -> tuple[str, ...]:
    """Dotted paths of all classes of ours that a config could name."""
    files = [file for package in PACKAGES for file in sorted((ROOT / "src" / package).rglob("*.py"))]
    out = []
    for module in (".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files):
        with suppress(ConfigError):  # a file that is no Python is reported where it is used
            out += [f"{module}.{node.name}" for node in body(module) if isinstance(node, ast.ClassDef)]
    return tuple(out)


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
        bases = [part.base for part in parts(made) if isinstance(part, Named)] or [""]
        return reduce(or_, (Annotated[Any, Named(base, factory=True)] for base in bases))
    if word in ("Optional", "Union"):
        return either([*inside, *([ast.Constant(None)] if word == "Optional" else [])], module)
    kind = GENERIC.get(word.lower(), GENERIC.get(word))
    if kind is None:
        return Any
    types = tuple(... if isinstance(n, ast.Constant) and n.value is ... else annotation(n, module) for n in inside)
    return kind[types] if kind is not list else list[types[0]]  # type: ignore[valid-type]


def by_name(name: str, module: str) -> Any:
    word = name.rpartition(".")[2]
    if word in PLAIN or word in GENERIC:
        return (PLAIN | GENERIC)[word]
    found = seen_from(module, name)
    if found and isinstance(found.node, ast.Assign):  # an alias
        return annotation(found.node.value, found.module)
    known = (found and found.is_class) or word == "Callable"
    return Annotated[Any, Named(found.path if found else "")] if known else Any
