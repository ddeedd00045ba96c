"""The arguments of classes, read from their source without importing it."""

import ast
import importlib.util
import inspect
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
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
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def module_file(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    return next((f for f in (base.with_suffix(".py"), base / "__init__.py") if f.is_file()), None)


@cache
def classes() -> tuple[str, ...]:
    """Dotted paths of all classes of ours that a config could name."""
    out = []
    for folder in ("networks", "models", "data", "optim", "callbacks"):
        for file in sorted((ROOT / "src" / folder).rglob("*.py")):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            out += [f"{module}.{node.name}" for node in tree(file).body if isinstance(node, ast.ClassDef)]
    return tuple(out)


@cache
def arguments(class_path: str, method: str = "__init__") -> Arguments | None:
    """Arguments of one of our classes or functions, those of its bases too where it takes **kwargs; None if it is
    not ours, or only imported by the module that is named."""
    module, _, name = class_path.rpartition(".")
    file = module_file(module) if module.startswith("src.") else None
    body = tree(file).body if file else []
    node = next((n for n in body if isinstance(n, (ast.ClassDef, ast.FunctionDef)) and n.name == name), None)
    if node is None:
        return None
    if isinstance(node, ast.FunctionDef):
        return of_function(node, 0, node)
    init = next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == method), None)
    own = {} if init is None else of_function(init, 1, node)
    inherits = init is None or init.args.kwarg is not None
    for base in node.bases if inherits else ():
        origin = imported(module, body, base.id) if isinstance(base, ast.Name) else ""
        own = {**(arguments(origin, method) or {}), **own}
    return own


def of_function(node: ast.FunctionDef, skip: int, documented: ast.ClassDef | ast.FunctionDef) -> Arguments:
    named = [*node.args.posonlyargs, *node.args.args]
    defaults = [None] * (len(named) - len(node.args.defaults)) + node.args.defaults + node.args.kw_defaults
    docs = described(documented)
    return {
        a.arg: Argument(ast.unparse(a.annotation) if a.annotation else "", constant(d), docs.get(a.arg, ""))
        for a, d in list(zip([*named, *node.args.kwonlyargs], defaults, strict=True))[skip:]
    }


def constant(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node else None
    except ValueError:
        return ast.unparse(node)  # type: ignore[arg-type]


def described(node: ast.ClassDef | ast.FunctionDef) -> dict[str, str]:
    """What the docstring's `Args:` says of each argument."""
    args = inspect.cleandoc(ast.get_docstring(node) or "").partition("\nArgs:\n")[2].split("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", args, re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in entries}


def imported(module: str, body: list[ast.stmt], name: str) -> str:
    """The dotted path of a name as a module sees it."""
    for node in body:
        if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
            return f"{node.module}.{name}"
    return f"{module}.{name}"


@cache
def trainer() -> Arguments:
    """Arguments of Lightning's Trainer; finding its file does not import it."""
    spec = importlib.util.find_spec("lightning")
    assert spec, "lightning is not installed"
    file = Path(str(spec.origin)).parent / "pytorch" / "trainer" / "trainer.py"
    cls = next(n for n in tree(file).body if isinstance(n, ast.ClassDef) and n.name == "Trainer")
    init = next(f for f in cls.body if isinstance(f, ast.FunctionDef) and f.name == "__init__")
    return of_function(init, 1, init)
