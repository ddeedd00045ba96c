"""Python source as syntax trees: where a name is defined, what a class is derived from; nothing is imported."""

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from src.run.errors import ConfigError
from src.run.files import ROOT

MISSING, NOT_PLAIN = object(), object()  # in place of a value: there is none, or one that is no plain data


@dataclass(frozen=True)
class Definition:
    """A class, function or alias, and the module where it stands."""

    module: str
    node: Any

    @property
    def path(self) -> str:
        return f"{self.module}.{self.node.name}" if self.is_class else ""

    @property
    def is_class(self) -> bool:
        return isinstance(self.node, ast.ClassDef)

    def method(self, name: str) -> ast.FunctionDef | None:
        found = [n for n in self.node.body if isinstance(n, ast.FunctionDef) and n.name == name]
        return found[-1] if found else None  # those before it are overloads

    def attribute(self, name: str) -> Any:
        """The plain value of a class attribute."""
        assigned = (node for node in self.node.body if isinstance(node, (ast.Assign, ast.AnnAssign)))
        targets = {ast.unparse(n.target if isinstance(n, ast.AnnAssign) else n.targets[0]): n.value for n in assigned}
        return constant(targets.get(name))


@cache
def source_of(module: str) -> Path | None:
    """The file of a module, found without importing it or its packages."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top) if top not in ("", "src", "__main__") else None
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
def find(path: str) -> Definition | None:
    """What a dotted path names; re-exports are followed."""
    module, _, name = path.rpartition(".")
    return follow(module, name, set())


def follow(module: str, name: str, seen: set[tuple[str, str]]) -> Definition | None:
    """`find`, but not again where it was `seen` on the way: packages import from each other."""
    if (module, name) in seen:
        return None
    seen.add((module, name))
    for node in reversed(body(module)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return Definition(module, node)
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return Definition(module, node)
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            origin = name if alias.name == "*" else alias.name if (alias.asname or alias.name) == name else ""
            if origin and (found := follow(imported_from(module, node), origin, seen)):
                return found
    return None


def imported_from(module: str, node: Any) -> str:
    if not node.level:
        return node.module or ""
    file, base = source_of(module), module.split(".")
    up = node.level - bool(file and file.name == "__init__.py")
    return ".".join([*base[: len(base) - up], *([node.module] if node.module else [])])


def seen_from(module: str, name: str) -> Definition | None:
    """What a module calls by a name, such as `Optimizer` or `nn.Module`."""
    first, _, rest = name.partition(".")
    for node in body(module) if rest else ():
        for alias in node.names if isinstance(node, (ast.Import, ast.ImportFrom)) else ():
            if (alias.asname or alias.name) == first:
                package = f"{imported_from(module, node)}." if isinstance(node, ast.ImportFrom) else ""
                return seen_from(package + alias.name, rest)
    return find(f"{module}.{name}")


def returned(function: Definition) -> Definition | None:
    """The class that a function is annotated to return."""
    note = function.node.returns
    found = seen_from(function.module, ast.unparse(note)) if note else None
    return found if found and found.is_class else None


@cache
def lineage(path: str) -> tuple[list[Definition], bool]:
    """A class and all that it is derived from, and whether all of it could be read."""
    found = find(path)
    if not found or not found.is_class:
        return [], False
    out, whole = [found], True
    for base in found.node.bases:
        name = ast.unparse(base)
        above = seen_from(found.module, name.partition("[")[0])
        above = None if above == found else above  # it is called like its base
        more, known = lineage(above.path) if above else ([], name in ("object", "ABC", "abc.ABC"))
        out, whole = [*out, *more], whole and known
    return out, whole


def is_ours(module: str) -> bool:
    """Whether a module is of this project, or of a fork's own package, and none that is installed."""
    file = source_of(module)
    return file is not None and "site-packages" not in file.parts


def derives(path: str, base: str) -> bool | None:
    """Whether one class is derived from another, both by their dotted paths; None where that cannot be read."""
    found, whole = lineage(path)
    return any(one.path == base for one in found) or (False if whole else None)


def class_attribute(path: str, name: str) -> Any:
    """The plain value of an attribute of a class or of its bases, or None."""
    values = (one.attribute(name) for one in lineage(path)[0])
    value = next((value for value in values if value is not MISSING), None)
    return None if value is NOT_PLAIN else value


@cache
def exported(module: str) -> tuple[str, ...]:
    """The public names of classes and functions that a module defines or imports from others."""
    names: dict[str, None] = {}
    for node in body(module):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names[node.name] = None
        if isinstance(node, ast.ImportFrom) and (origin := imported_from(module, node)) != module:
            for alias in node.names:
                names |= dict.fromkeys(exported(origin) if alias.name == "*" else [alias.asname or alias.name])
    return tuple(name for name in names if name[0] != "_")


def constant(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node else MISSING
    except ValueError:
        return NOT_PLAIN
