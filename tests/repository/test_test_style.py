"""Tests ask what is public: they reach for no private name of the packages, which then may move freely."""

import ast

import pytest
from documents import ROOT

FILES = sorted((ROOT / "tests").rglob("*.py"))


FOREIGN = {"_attn_implementation", "_loglikelihood_tokens"}  # of transformers and lm_eval, which have no public way


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in FOREIGN


def private_names(source: str) -> list[str]:
    """Return, with its line, every private name that is imported, read off something else than self, or replaced."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            is_super = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "super"
            names = [] if is_own or is_super else [node.attr]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            texts = [item.value for item in node.args if isinstance(item, ast.Constant) and isinstance(item.value, str)]
            names = [part for text in texts for part in text.split(".")]
        found += [f"line {node.lineno}: {name}" for name in names if is_private(name)]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_test_reaches_for_a_private_name(path):
    assert private_names(path.read_text(encoding="utf-8")) == []
