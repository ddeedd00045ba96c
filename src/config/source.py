"""Python source as syntax trees: where a name is defined, what a class is derived from; nothing is imported."""

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from src.run.errors import ConfigError
from src.run.files import ROOT

MISSING = object()  # what has no value, or none that is plain


@cache
def source_of(module: str) -> Path | None:
    """The file of a module, found without importing it or its packages."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top) if top not in ("", "src") else None
    folders = (spec.submodule_search_locations or []) if spec else [ROOT / "src"] if top == "src" else []
    bases = [Path(folder).joinpath(*rest) for folder in folders]
    files = [file for base in bases for file in (base / "__init__.py", base.with_suffix(".py"))]
    return next((file for file in files if file.is_file()), None)


@cache
def body(module: str) -> tuple[ast.stmt, ...]:
    """The statements of a module, those within `if` and `try` too; none where it has no source."""
    file = source_of(module)
    try:
        return tuple(flat(ast.parse(file.read_text(encoding="utf-8")).body)) if file else ()
    except SyntaxError as e:
        raise ConfigError(f"{file}:{e.lineno}: not Python: {e.msg} -> mend it") from e


def flat(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in statements:
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            yield from flat([*node.body, *node.orelse])


@cache
def find(module: str, name: str) -> tuple[str, Any] | None:
    """The statement that defines a name which a module has, and the module where it stands; re-exports are followed."""
    return follow(module, name, set())


def follow(module: str, name: str, seen: set[tuple[str, str]]) -> tuple[str, Any] | None:
    """`find`, but not again where it was `seen` on the way: packages import from each other."""
    if (module, name) in seen:
        return None
    seen.add((module, name))
    for node in reversed(body(module)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return module, node
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            origin = name if alias.name == "*" else alias.name if (alias.asname or alias.name) == name else ""
            if origin and (found := follow(absolute(module, node), origin, seen)):
                return found
    return None


def absolute(module: str, node: Any) -> str:
    """The module that a statement imports from."""
    if not node.level:
        return node.module or ""
    file, base = source_of(module), module.split(".")
    up = node.level - bool(file and file.name == "__init__.py")
    return ".".join([*base[: len(base) - up], *([node.module] if node.module else [])])


def path_of(module: str, name: str) -> str:
    """The dotted path of the class that a module calls by a name, such as `Optimizer` or `nn.Module`."""
    first, _, rest = name.partition(".")
    for node in body(module):
        for alias in node.names if rest and isinstance(node, (ast.Import, ast.ImportFrom)) else ():
            if (alias.asname or alias.name) == first:
                base = f"{absolute(module, node)}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
                return path_of(base, rest)
    found = find(module, name)
    return f"{found[0]}.{name}" if found and isinstance(found[1], ast.ClassDef) else ""


@cache
def exported(module: str) -> tuple[str, ...]:
    """The public names of classes and functions that a module defines or imports from others."""
    names: dict[str, None] = {}
    for node in body(module):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names[node.name] = None
        for alias in node.names if isinstance(node, ast.ImportFrom) and absolute(module, node) != module else ():
            star = exported(absolute(module, node)) if alias.name == "*" else [alias.asname or alias.name]
            names |= dict.fromkeys(star)
    return tuple(name for name in names if name[0] != "_")


def is_defined(path: str) -> bool:
    """Whether a module itself defines the class or function that a path names, and does not only import it."""
    module, _, name = path.rpartition(".")
    found = find(module, name)
    return found is not None and found[0] == module and not isinstance(found[1], ast.Assign)


def bases(path: str) -> list[str]:
    """The classes that a class is derived from directly; an empty path for what cannot be read."""
    module, _, name = path.rpartition(".")
    found = find(module, name)
    if not found or not isinstance(found[1], ast.ClassDef):
        return []
    return [path_of(found[0], ast.unparse(base)) for base in found[1].bases]


def derives(path: str, base: str) -> bool | None:
    """Whether one class is derived from another, both by their dotted paths; None where that cannot be read."""
    module, _, name = path.rpartition(".")
    found = find(module, name)
    if not found or not isinstance(found[1], ast.ClassDef):
        return None
    if f"{found[0]}.{name}" == base:
        return True
    answers = [derives(above, base) if above else None for above in bases(path) or ["object."]]
    return True if True in answers else None if None in answers and bases(path) else False


def class_attribute(path: str, name: str) -> Any:
    """The plain value of an attribute in the body of a class or of its bases, or None."""
    module, _, cls = path.rpartition(".")
    found = find(module, cls)
    for node in found[1].body if found and isinstance(found[1], ast.ClassDef) else ():
        target = (
            node.target if isinstance(node, ast.AnnAssign) else node.targets[0] if isinstance(node, ast.Assign) else 0
        )
        if isinstance(target, ast.Name) and target.id == name:
            return constant(node.value)  # type: ignore[attr-defined]
    values = (class_attribute(base, name) for base in bases(path) if base)
    return next((value for value in values if value is not None), None)


def constant(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node else MISSING
    except ValueError:
        return MISSING
