"""The arguments of our classes and of Lightning's Trainer, read from source without importing it."""

import ast
import importlib.util
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from docstring_parser import parse

from src.run.errors import ConfigError

ROOT = Path(__file__).parents[2]
TRAINER = "lightning.pytorch.trainer.trainer.Trainer"
PLAIN = {"int", "float", "str", "bool", "list", "tuple", "dict", "None", "Literal", "Sequence", "Mapping", "Iterable"}
PLAIN |= {"Path", "Any", "Union", "Optional", "timedelta"}


@dataclass
class Argument:
    """One argument of a constructor or function, as its source has it."""

    annotation: str
    default: Any
    doc: str

    def names_class(self, value: Any) -> bool:
        """Whether a plain text is the name of a class here."""
        words = set(re.findall(r"[A-Za-z_]\w*", re.sub(r"'[^']*'", "", self.annotation)))
        takes_class = any(word not in PLAIN and not word.startswith("_") for word in words)
        return isinstance(value, str) and takes_class and ("." in value or "str" not in words)


Arguments = dict[str, Argument]


@cache
def body(module: str) -> list[ast.stmt]:
    """The statements of a module of ours or of the Trainer's; of any other, none."""
    base = ROOT
    if module == TRAINER.rpartition(".")[0]:
        base = Path(str(importlib.util.find_spec("lightning").origin)).parent.parent  # type: ignore[union-attr]
    elif not module.startswith("src."):
        return []
    base = base.joinpath(*module.split("."))
    file = next((f for f in (base.with_suffix(".py"), base / "__init__.py") if f.is_file()), None)
    try:
        return ast.parse(file.read_text(encoding="utf-8")).body if file else []
    except SyntaxError as e:
        raise ConfigError(f"{file}:{e.lineno}: not Python: {e.msg} -> mend it") from e


@cache
def classes() -> tuple[str, ...]:
    """Dotted paths of all classes of ours that a config could name."""
    out = []
    for folder in ("networks", "models", "data", "optim", "callbacks"):
        for file in sorted((ROOT / "src" / folder).rglob("*.py")):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            with suppress(ConfigError):  # a broken file is told where it is used
                out += [f"{module}.{node.name}" for node in body(module) if isinstance(node, ast.ClassDef)]
    return tuple(out)


@cache
def arguments(path: str, method: str = "__init__") -> Arguments | None:
    """Arguments of one of our classes or functions, those of its bases too where it takes **kwargs; None if it is
    not ours, or only imported by the module that is named."""
    module, _, name = path.rpartition(".")
    node = named(body(module), name)
    if isinstance(node, ast.FunctionDef):
        return of_function(node, 0, ast.get_docstring(node))
    if node is None:
        return None
    init = named(node.body, method)
    own = of_function(init, 1, ast.get_docstring(node)) if init else {}
    for base in node.bases if not init or init.args.kwarg else ():
        own = (arguments(origin(module, ast.unparse(base)), method) or {}) | own
    return own


def named(statements: list[ast.stmt], name: str) -> Any:
    return next((n for n in statements if isinstance(n, (ast.ClassDef, ast.FunctionDef)) and n.name == name), None)


def of_function(node: ast.FunctionDef, skip: int, doc: str | None) -> Arguments:
    found = [*node.args.posonlyargs, *node.args.args]
    defaults = [None] * (len(found) - len(node.args.defaults)) + node.args.defaults + node.args.kw_defaults
    docs = described(doc) or described(ast.get_docstring(node))
    return {
        a.arg: Argument(ast.unparse(a.annotation) if a.annotation else "", constant(d), docs.get(a.arg, ""))
        for a, d in list(zip([*found, *node.args.kwonlyargs], defaults, strict=True))[skip:]
    }


def constant(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node else None
    except ValueError:
        return ast.unparse(node)  # type: ignore[arg-type]


def described(doc: str | None) -> dict[str, str]:
    """What a docstring's `Args:` says of each argument, as one line."""
    return {entry.arg_name: " ".join((entry.description or "").split()) for entry in parse(doc or "").params}


def origin(module: str, name: str) -> str:
    """The dotted path of a name as a module sees it."""
    for node in body(module):
        if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
            return f"{node.module}.{name}"
    return f"{module}.{name}"
