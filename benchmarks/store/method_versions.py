"""The version of a method, read from its source: nothing is imported, so that planning a run loads no torch."""

import ast
import hashlib
import importlib.util
from functools import cache
from pathlib import Path

from consistentee.errors import UserError, unknown_name
from consistentee.methods.method import ENTRY_POINT_GROUP, TOKEN_ENTRY_POINT_GROUP, available_methods


@cache
def method_version(name: str) -> int | str:
    """Return the version of a method: its class's own; or of a user's file, where nobody raises one, a hash of it.

    Comments, docstrings and formatting of a file do not count. Raises UserError for what cannot be read or found.
    """
    if ".py:" in name:
        return _hash_of_code(Path(name.rpartition(":")[0]))
    methods = available_methods(ENTRY_POINT_GROUP) | available_methods(TOKEN_ENTRY_POINT_GROUP)
    if name not in methods:
        raise unknown_name("method", name, methods)
    module, class_name = methods[name].module, methods[name].attr
    found = _version_of(module, class_name)
    if found is None:
        raise UserError(f"{name}: no class {class_name} that states a version is found in the source of {module}")
    return found


def _version_of(module: str, class_name: str) -> int | None:
    """Return the ``version`` that a class states, or the first of its bases that states one; None if none does."""
    path = _source_of(module)
    if path is None:
        return None
    body = _parsed(path).body
    classes = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
    if class_name not in classes:
        return None
    for node in classes[class_name].body:
        if isinstance(node, ast.AnnAssign | ast.Assign) and isinstance(node.value, ast.Constant):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == "version" for target in targets):
                return int(str(node.value.value))
    elsewhere = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    for base in classes[class_name].bases:
        base_name = ast.unparse(base).partition("[")[0]
        found = _version_of(*elsewhere.get(base_name, (module, base_name)))
        if found is not None:
            return found
    return None


@cache
def _source_of(module: str) -> Path | None:
    """Return the file of a module, found by its path in its package; None for what has none."""
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return Path(spec.origin) if spec and spec.origin and not rest else None
    place = Path(spec.submodule_search_locations[0], *rest)
    candidates = (place.with_suffix(".py"), place / "__init__.py") if rest else (place / "__init__.py",)
    return next((path for path in candidates if path.is_file()), None)


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as Python: {error}") from error


def _hash_of_code(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"no such method file: {path}")
    tree = _parsed(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            _drop_docstring(node)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _drop_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        node.body = node.body[1:]
