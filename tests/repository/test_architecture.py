"""Dependencies run one way, between packages, folders and files, and importing a package costs nothing."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from documents import ROOT

import consistentee.training

PACKAGES = ("consistentee", "baselines", "benchmarks")
LIBRARY_FOLDERS = ("data", "backbones", "models", "rules", "traces", "engine", "training", "methods", "deployment")
HARNESS_FOLDERS = ("specs", "tasks", "store", "measure", "kinds", "analysis")
HARNESS_FOLDERS += ("run", "testing", "commands", "lm_eval", "cli")
ORDER = ["consistentee", *(f"consistentee.{name}" for name in LIBRARY_FOLDERS), "baselines"]
ORDER += ["benchmarks", *(f"benchmarks.{name}" for name in HARNESS_FOLDERS)]
"""Packages and their folders: each imports from itself and from those before it; a package's own files come first."""
PUBLIC_MODULES = {"consistentee", "consistentee.signals", "consistentee.training"}
"""Modules that a method may import from, baselines included."""


def modules() -> dict[str, Path]:
    """Return the modules of the three packages by their dotted names; measurements under micro/ are tests."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    parts = {path: path.relative_to(ROOT).with_suffix("").parts for path in files if "micro" not in path.parts}
    return {".".join(p for p in place if p != "__init__"): path for path, place in parts.items()}


def imports_of(path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """Yield the project's modules that a file imports, anywhere in it: in functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else str(node.module) for name in members)


def place_of(module: str) -> int:
    """Return the place in the order of the longest name in it that a module lies under."""
    return max(place for place, name in enumerate(ORDER) if f"{module}.".startswith(f"{name}."))


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """For every module those of the project that it imports."""
    known = modules()
    return {name: (set(imports_of(path, known)) & set(known)) - {name} for name, path in known.items()}


def test_packages_and_folders_depend_one_way(graph):
    assert all(ROOT.joinpath(*name.split("."), "__init__.py").is_file() for name in ORDER)
    wrong = {(name, other) for name, others in graph.items() for other in others if place_of(other) > place_of(name)}
    lazy = {(name, other) for name, other in wrong if name in PUBLIC_MODULES and other.startswith("consistentee.")}
    assert wrong - lazy == set()


def test_baselines_import_public_names_alone(graph):
    """Names of other packages, such as torch, are not restricted."""
    internal = {name: others - PUBLIC_MODULES for name, others in graph.items() if name.startswith("baselines")}
    assert {name: others for name, others in internal.items() if others} == {}
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "baselines").glob("*.py")]
    attributes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    of_modules = {(node.value.id, node.attr) for node in attributes if isinstance(node.value, ast.Name)}
    public = {"ee": consistentee.__all__, "training": consistentee.training.__all__}
    assert [name for module, name in of_modules if module in public and name not in public[module]] == []


def test_imports_have_no_cycle(graph):
    list(TopologicalSorter(graph).static_order())


def test_importing_packages_and_finding_methods_does_not_import_torch():
    used = "ee.Method, ee.TokenMethod, ee.get_method, ee.TokenRecipe(), ee.Recipe()"
    imported = "import sys, baselines, benchmarks, consistentee.progress, consistentee as ee"
    code = f"{imported}; {used}; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_test_imports_a_private_name():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "tests").rglob("*.py")]
    imports = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [alias.name for node in imports for alias in node.names if alias.name.startswith("_")]
