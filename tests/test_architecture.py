"""Dependencies run one way: benchmarks -> baselines -> consistentee; and importing the packages costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("consistentee", "baselines", "benchmarks")
MAY_IMPORT = {
    "consistentee": {"consistentee"},
    "baselines": {"consistentee"},
    "benchmarks": {"consistentee", "baselines", "benchmarks"},
}


def imported_packages(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names} & set(PACKAGES)


def source_files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_dependencies_run_one_way(package):
    files = source_files(package)
    assert files
    for path in files:
        assert imported_packages(path) <= MAY_IMPORT[package], path


def test_the_check_can_fail(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("from benchmarks.kinds import classification\nimport baselines.pabee\n")
    assert imported_packages(path) == {"benchmarks", "baselines"}


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_does_not_import_torch(package):
    code = f"import sys, {package}; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_resolve():
    import consistentee

    for name in consistentee.__all__:
        assert getattr(consistentee, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = consistentee.nothing
