"""Read the name and the version of a method from its source, so that planning registered methods loads no torch."""

import ast
import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from consistentee.errors import UserError, unknown_name
from consistentee.methods.method import (
    ENTRY_POINT_GROUP,
    TOKEN_ENTRY_POINT_GROUP,
    Method,
    available_methods,
    code_file,
    method_class_of,
)

_OWN_PACKAGES = ("baselines", "consistentee")


@cache
def method_version(name: str) -> int | str:
    """Return the version of a method; of a user's file, where nobody raises one, a hash of it and that of its base.

    Comments, docstrings and formatting of a file do not count. A method of this project states its version in its own
    file, unless it is the default. Raises UserError for what cannot be read or found.
    """
    if (file := code_file(name)) is not None:
        return f"{_hash_of_code(Path(file))}-{method_class_of(name).version}"
    methods = available_methods(ENTRY_POINT_GROUP) | available_methods(TOKEN_ENTRY_POINT_GROUP)
    if name not in methods:
        raise unknown_name("method", name, methods)
    module, class_name = methods[name].module, methods[name].attr
    if module.partition(".")[0] not in _OWN_PACKAGES:
        return method_class_of(name).version
    spec = find_spec(module)
    stated = stated_value(Path(spec.origin), class_name, "version", inherited=True) if spec and spec.origin else None
    return stated if isinstance(stated, int) else Method.version


def _hash_of_code(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"no such method file: {path}")
    tree = _parsed(path)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def stated_value(path: Path, class_name: str, attribute: str, *, inherited: bool = False) -> object:
    """Return the constant that a class of a file assigns to an attribute; if ``inherited``, or a base in that file.

    None if there is none. Raises UserError for a file that is not Python.
    """
    classes = {node.name: node for node in _parsed(path).body if isinstance(node, ast.ClassDef)}
    names = [class_name]
    while names:
        if (found := classes.pop(names.pop(0), None)) is None:
            continue
        for statement in found.body:
            match statement:
                case (
                    ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value))
                    | ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=value))
                ) if name == attribute:
                    return value
        names += [ast.unparse(base) for base in found.bases if inherited]
    return None


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as Python: {error}") from error
