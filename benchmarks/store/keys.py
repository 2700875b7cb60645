"""What a result depends on, as hashes: code, weights, library versions. Cheap enough to check at every start."""

import ast
import hashlib
import importlib.util
import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.store.folders import write_text
from benchmarks.store.spec import BaseCellSpec, canonical_json, label_of
from consistentee.errors import UserError, unknown_name
from consistentee.methods.method import ENTRY_POINT_GROUP, TOKEN_ENTRY_POINT_GROUP, available_methods

PROJECT_PACKAGES = ("consistentee", "baselines", "benchmarks")
KEY_LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "numpy",
    "scipy",
    "scikit-learn",
    "consistentee",
)


@dataclass(frozen=True)
class CellCode:
    """The code that runs in every cell of a kind, beside the method's own.

    Attributes:
        method_group: entry points of the methods.
        library: modules, with all that they import.
        harness: modules, without what they import.
        libraries: installed ones, whose versions count.
    """

    method_group: str
    library: tuple[str, ...]
    harness: tuple[str, ...]
    libraries: tuple[str, ...] = KEY_LIBRARIES


CLASSIFICATION_CODE = CellCode(
    ENTRY_POINT_GROUP,
    library=(
        "consistentee.engine.classify",
        "consistentee.data.metrics",
        "consistentee.traces.instance_trace",
        "consistentee.training.loop",
    ),
    harness=(
        "benchmarks.kinds.classification",
        "benchmarks.measure.flops",
        "benchmarks.measure.intervals",
        "benchmarks.measure.signals",
    ),
)
GENERATION_CODE = CellCode(
    TOKEN_ENTRY_POINT_GROUP,
    library=(
        "consistentee.methods.calibration",
        "consistentee.engine.generate",
        "consistentee.engine.speculation",
        "consistentee.data.prompts",
        "consistentee.data.text_metrics",
        "consistentee.traces.token_trace",
        "consistentee.training.token_stages",
    ),
    harness=(
        "benchmarks.kinds.calibration_study",
        "benchmarks.kinds.generation",
        "benchmarks.kinds.decoding",
        "benchmarks.measure.decoding_flops",
        "benchmarks.measure.text_scores",
        "benchmarks.kinds.generation_selection",
    ),
    libraries=(*KEY_LIBRARIES, "rouge-score"),
)

# What these give a cell (weights and pooling, the knowledge that a name is wrong) is in its key or not in its results.
_COVERED_OTHERWISE = ("consistentee.backbones.catalog", "consistentee.backbones.wheels", "consistentee.errors")


class FileHashes:
    """SHA-256 of files, remembered in one JSON file by path, size and time of change."""

    def __init__(self, cache_file: Path) -> None:
        self._cache_file = cache_file
        self._known: dict[str, list[Any]] = self._load()
        self._changed = False

    def _load(self) -> dict[str, list[Any]]:
        try:
            known = json.loads(self._cache_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # nothing but time is lost with this file
            return {}
        return known if isinstance(known, dict) else {}

    def sha256(self, path: Path) -> str:
        """Return the hash of a file, read only if it changed since the last time."""
        status = path.stat()
        entry = [status.st_size, status.st_mtime_ns]
        known = self._known.get(str(path))
        if not (isinstance(known, list) and known[:2] == entry):
            with path.open("rb") as file:
                known = [*entry, hashlib.file_digest(file, "sha256").hexdigest()]
            self._known[str(path)] = known
            self._changed = True
        return str(known[2])

    def save(self) -> None:
        """Write the cache, if there is anything new."""
        if self._changed:
            write_text(self._cache_file, json.dumps(self._known, indent=1))
            self._changed = False


def backbone_identity(name: str, hashes: FileHashes) -> dict[str, Any]:
    """Return what identifies a backbone: its files' hashes, and how it is pooled. Fetches it if need be."""
    from consistentee.backbones.catalog import resolve

    found = resolve(name)
    files = file_hashes(Path(found.path), hashes)
    return {"pooling": found.pooling, "pooler": found.pooler, "files": files}


def file_hashes(folder: Path, hashes: FileHashes) -> dict[str, str]:
    """Return the hashes of the files of a pretrained model, by their place in its folder."""
    files = sorted(p for p in folder.rglob("*") if p.suffix in {".json", ".safetensors", ".txt", ".model"})
    return {path.relative_to(folder).as_posix(): hashes.sha256(path) for path in files}


def cell_key(
    spec: BaseCellSpec, task_fingerprint: str, backbone: dict[str, Any], code: CellCode = CLASSIFICATION_CODE
) -> str:
    """Return the key of a cell: a hash of all that its results depend on.

    Args:
        spec: the cell; labels and paths are left out, because a name changes no result.
        task_fingerprint: of the rows used.
        backbone: what identifies it, such as :func:`backbone_identity`.
        code: what runs in it.
    """
    described = spec.model_dump(mode="json", exclude={"label", "backbone", *spec.names_of_rows})
    parts = {
        "spec": {**described, "method": label_of(spec.method)},
        "task": task_fingerprint,
        "backbone": backbone,
        "code": code_fingerprint(spec.method, code),
        "libraries": library_versions(code.libraries),
        "python": platform.python_version_tuple()[:2],
    }
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def modules_fingerprint(modules: Iterable[str]) -> str:
    """Return a hash of the code of some modules, without what they import."""
    return hashlib.sha256(canonical_json(_code_of(modules)).encode()).hexdigest()


def _code_of(modules: Iterable[str]) -> dict[str, str]:
    return {module: _code_hash(path) for module in modules if (path := _source_of(module)) is not None}


def library_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Return the installed versions, without importing anything; None for what is not installed."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def code_fingerprint(method: str, code: CellCode = CLASSIFICATION_CODE) -> str:
    """Return a hash of the code behind a method's results: its module, what that imports, and what always runs.

    Found by reading sources, never by importing them. Comments, docstrings and formatting do not count.
    """
    if ".py:" in method:
        path = Path(method.rpartition(":")[0])
        if not path.is_file():
            raise UserError(f"no such method file: {path}")
        own, start = _code_hash(path), _project_imports(path, "")
    else:
        methods = available_methods(code.method_group)
        if method not in methods:
            raise unknown_name("method", method, methods)
        own, start = "", {methods[method].module}
    reached = _reachable(start | set(code.library)) | set(code.harness)
    return hashlib.sha256(canonical_json([own, _code_of(reached)]).encode()).hexdigest()


def _reachable(modules: set[str]) -> set[str]:
    seen: set[str] = set()
    waiting = set(modules)
    while waiting:
        module = waiting.pop()
        path = _source_of(module)
        if module in seen or module in _COVERED_OTHERWISE or path is None:
            continue
        seen.add(module)
        waiting |= _project_imports(path, module)
    return seen


@cache
def _source_of(module: str) -> Path | None:
    """Return the file of a module, or None if there is none; finds it by its path, without importing anything."""
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return Path(spec.origin) if spec and spec.origin and not rest else None
    *parents, name = spec.submodule_search_locations[0], *rest
    folder = Path(*parents)
    candidates = (folder / f"{name}.py", folder / name / "__init__.py") if rest else (Path(name) / "__init__.py",)
    return next((path for path in candidates if path.is_file()), None)


@cache
def _tree_of(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as Python: {error}") from error


def _project_imports(path: Path, module: str) -> set[str]:
    """Return the modules of this project, or of the module's own package, that a file imports, anywhere in it."""
    packages = {*PROJECT_PACKAGES, module.partition(".")[0]}
    found: set[str] = set()
    for node in ast.walk(_tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, f"{module}.__init__" if path.name == "__init__.py" else module)
            if base.partition(".")[0] in packages:
                members = {f"{base}.{alias.name}" for alias in node.names}
                only_modules = all(_source_of(member) is not None for member in members)
                found |= members if only_modules else {base, *members}
    # A file that imports the package itself may use all of it, through its lazy names.
    return {name for name in found if name.partition(".")[0] in packages} | _all_of_the_library(found)


def _absolute(node: ast.ImportFrom, module: str) -> str:
    if not node.level:
        return node.module or ""
    package = module.split(".")[: -node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


def _all_of_the_library(imports: set[str]) -> set[str]:
    if "consistentee" not in imports:
        return set()
    origin = _source_of("consistentee")
    assert origin is not None
    files = [path.relative_to(origin.parent).with_suffix("") for path in origin.parent.rglob("*.py")]
    return {f"consistentee.{'.'.join(path.parts)}" for path in files if path.name != "__init__"}


@cache
def _code_hash(path: Path) -> str:
    tree = _tree_of(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            _drop_docstring(node)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _drop_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        node.body = node.body[1:]
