"""Read the name and the version of a method from its source. Nothing is imported, so that planning loads no torch."""

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
        code, inherited = _hash_of_code(Path(file)), _stated_version(Path(file), class_name)
        return code if inherited is None else f"{code}-{inherited}"
    methods = available_methods(ENTRY_POINT_GROUP) | available_methods(TOKEN_ENTRY_POINT_GROUP)
    if name not in methods:
        raise unknown_name("method", name, methods)
    module, class_name = methods[name].module, methods[name].attr
    found = _stated_version(source_of(module), class_name)
    if found is None:
        raise UserError(f"{name}: no class {class_name} that states a version is found in the source of {module}")
    return found


def _stated_version(path: Path | None, class_name: str) -> int | None:
    found = stated_value(path, class_name, "version", inherited=True)
    return found if isinstance(found, int) else None


def _hash_of_code(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"no such method file: {path}")
    tree = parsed(path)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def stated_value(path: Path | None, class_name: str, attribute: str, *, inherited: bool = False) -> object:
    """Return the constant that a class assigns to an attribute in its body, or the first of its bases that does.

    The class is defined in the file, or imported there by its name. None if there is no such constant; bases count if
    it may be ``inherited``. Raises UserError for a file that is not Python.
    """
    of_module, _, own_name = class_name.rpartition(".")
    for node in parsed(path).body if path else ():
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            for statement in node.body:
                match statement:
                    case (
                        ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value))
                        | ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=value))
                    ) if name == attribute:
                        return value
            bases = [ast.unparse(base).partition("[")[0] for base in node.bases if inherited]
            found = (stated_value(path, base, attribute, inherited=True) for base in bases)
            return next((value for value in found if value is not None), None)
        if isinstance(node, ast.Import) and inherited:
            for alias in node.names:  # such as "import consistentee as ee", for the base "ee.Method"
                if of_module == (alias.asname or alias.name):
                    return stated_value(source_of(alias.name), own_name, attribute, inherited=True)
        if isinstance(node, ast.ImportFrom) and node.module and inherited:
            for alias in node.names:
                folder = path.parents[node.level - 1] if path and node.level else None
                if class_name == (alias.asname or alias.name):
                    return stated_value(source_of(node.module, folder), alias.name, attribute, inherited=True)
                if of_module == (alias.asname or alias.name):
                    source = source_of(f"{node.module}.{alias.name}", folder)
                    return stated_value(source, own_name, attribute, inherited=True)
    return None


@cache
def source_of(module: str, folder: Path | None = None) -> Path | None:
    """Return the file of a module, found by its path below a folder, or in its package; None for what has none."""
    package, *rest = module.split(".")
    if folder is not None:
        place = folder.joinpath(package, *rest)
    else:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            return Path(spec.origin) if spec and spec.has_location and spec.origin and not rest else None
        place = Path(spec.submodule_search_locations[0], *rest)
    candidates = (place.with_suffix(".py"), place / "__init__.pyi", place / "__init__.py")  # a stub has the imports
    return next((path for path in candidates if path.is_file()), None)


def parsed(path: Path) -> ast.Module:
    """Parse a Python file. Raises UserError for any other file."""
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as Python: {error}") from error
