"""Read the name and the version of a method from its source. Nothing is imported, so that planning loads no torch."""

import ast
import importlib.util
from functools import cache
from pathlib import Path

from consistentee.errors import UserError


def stated_value(path: Path | None, class_name: str, attribute: str, *, inherited: bool = False) -> object:
    """Return the constant that a class assigns to an attribute in its body, or the first of its bases that does.

    The class is defined in the file, or imported there by its name. None if there is no such constant; bases count if
    it may be ``inherited``. Raises UserError for a file that is not Python.
    """
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
        if isinstance(node, ast.ImportFrom) and node.module and inherited:
            for alias in node.names:
                if class_name == (alias.asname or alias.name):
                    folder = path.parents[node.level - 1] if path and node.level else None
                    return stated_value(source_of(node.module, folder), alias.name, attribute, inherited=True)
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
