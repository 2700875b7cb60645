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

    Comments, docstrings and formatting of a file do not count; the version of an installed method that it derives from
    does. Raises UserError for what cannot be read or found.
    """
    if ".py:" in name:
        file, _, class_name = name.rpartition(":")
        code, inherited = _hash_of_code(Path(file)), _version_in(Path(file), class_name)
        return code if inherited is None else f"{code}-{inherited}"
    methods = available_methods(ENTRY_POINT_GROUP) | available_methods(TOKEN_ENTRY_POINT_GROUP)
    if name not in methods:
        raise unknown_name("method", name, methods)
    module, class_name = methods[name].module, methods[name].attr
    found = _version_of(module, class_name)
    if found is None:
        raise UserError(f"{name}: no class {class_name} that states a version is found in the source of {module}")
    return found


def _version_of(module: str, class_name: str) -> int | None:
    path = _source_of(module)
    return None if path is None else _version_in(path, class_name)


def _version_in(path: Path, class_name: str) -> int | None:
    """Return the ``version`` that a class states, or the first of its bases that states one; None if none does.

    The class is defined in the file, or imported there by its name.
    """
    body = _parsed(path).body
    classes = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
    if class_name not in classes:
        return _version_of_import(path, body, class_name)
    for node in classes[class_name].body:
        if isinstance(node, ast.AnnAssign | ast.Assign) and isinstance(node.value, ast.Constant):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == "version" for target in targets):
                return int(str(node.value.value))
    bases = (ast.unparse(base).partition("[")[0] for base in classes[class_name].bases)
    return next((found for base in bases if (found := _version_in(path, base)) is not None), None)


def _version_of_import(path: Path, body: list[ast.stmt], name: str) -> int | None:
    for node in body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    source = _beside(path, node.level, node.module) if node.level else _source_of(node.module)
                    return None if source is None else _version_in(source, alias.name)
    return None


def _beside(path: Path, level: int, module: str) -> Path | None:
    """Return the file of a module that a file imports with ``level`` leading dots."""
    return _file_at(path.parents[level - 1].joinpath(*module.split(".")))


@cache
def _source_of(module: str) -> Path | None:
    """Return the file of a module, found by its path in its package; None for what has none."""
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.submodule_search_locations:
        return _file_at(Path(spec.submodule_search_locations[0], *rest))
    return Path(spec.origin) if spec and spec.has_location and spec.origin and not rest else None


def _file_at(place: Path) -> Path | None:
    candidates = (place.with_suffix(".py"), place / "__init__.pyi", place / "__init__.py")  # a stub has the imports
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
