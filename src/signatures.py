"""The arguments of classes, read from their source without importing it."""

import ast
import importlib.util
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
Arguments = dict[str, ast.expr | None]  # name -> annotation


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def module_file(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    return next((f for f in (base.with_suffix(".py"), base / "__init__.py") if f.is_file()), None)


@cache
def classes() -> tuple[str, ...]:
    """Dotted paths of all public classes and functions of ours that a config could name."""
    out = []
    for folder in ("networks", "models", "data", "optim", "callbacks"):
        for file in sorted((ROOT / "src" / folder).rglob("*.py")):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            out += [f"{module}.{node.name}" for node in tree(file).body if isinstance(node, ast.ClassDef)]
    return tuple(out)


def find(class_path: str) -> tuple[str, ast.ClassDef | ast.FunctionDef] | None:
    """The definition of one of our classes or functions, and its module; names that a module imports are not its own."""
    module, _, name = class_path.rpartition(".")
    file = module_file(module) if module.startswith("src") else None
    body = tree(file).body if file else []
    kinds = (ast.ClassDef, ast.FunctionDef)
    return next(((module, node) for node in body if isinstance(node, kinds) and node.name == name), None)


@cache
def arguments(class_path: str, method: str = "__init__") -> Arguments | None:
    """Arguments of one of our classes or functions, those of its bases too where it takes **kwargs; None if it is
    not ours."""
    found = find(class_path)
    if found is None:
        return None
    module, node = found
    if isinstance(node, ast.FunctionDef):
        return of_function(node, skip=0)
    init = next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == method), None)
    own = {} if init is None else of_function(init, skip=1)
    inherits = init is None or init.args.kwarg is not None
    for base in node.bases if inherits else ():
        origin = imported(module, base.id) if isinstance(base, ast.Name) else None
        own = {**(arguments(origin, method) or {} if origin else {}), **own}
    return own


def of_function(node: ast.FunctionDef, skip: int) -> Arguments:
    named = [*node.args.posonlyargs, *node.args.args][skip:] + node.args.kwonlyargs
    return {a.arg: a.annotation for a in named}


def imported(module: str, name: str) -> str:
    """The dotted path of a name as a module sees it."""
    file = module_file(module)
    for node in tree(file).body if file else []:
        if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
            return f"{node.module}.{name}"
    return f"{module}.{name}"


@cache
def arguments_of_trainer() -> Arguments | None:
    """Arguments of Lightning's Trainer; finding its file does not import it."""
    spec = importlib.util.find_spec("lightning")
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(spec.submodule_search_locations[0]) / "pytorch" / "trainer" / "trainer.py"
    cls = next(n for n in tree(file).body if isinstance(n, ast.ClassDef) and n.name == "Trainer")
    init = next(f for f in cls.body if isinstance(f, ast.FunctionDef) and f.name == "__init__")
    return of_function(init, skip=1)
