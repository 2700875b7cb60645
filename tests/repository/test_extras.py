"""The core works without the extras, importing it costs nothing, and what lacks an extra names it."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions, requires
from typing import get_args

import pytest
from classifiers_on_disk import save_classifier, write_rows
from documents import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from small_suite import write_task, write_text_task

import consistentee
from consistentee import extras


@pytest.fixture(scope="module")
def folder(tiny_backbone, tmp_path_factory):
    """A task of each kind, a classifier, and rows for it."""
    folder = tmp_path_factory.mktemp("core")
    write_task(folder, "toy")
    write_text_task(folder, "toy-text")
    save_classifier(folder / "classifier")
    (folder / "backbone").symlink_to(tiny_backbone("bert"))
    write_rows(folder / "rows.csv")
    (folder / "rows.parquet").touch()
    return folder


WITHOUT_EXTRAS = """
from without_extras import hide_extras
hide_extras()
import json, os, consistentee
from command_line import call
public = [getattr(consistentee, name) for name in consistentee.__all__]
os.chdir({folder!r})
done = [call(*words) for words in {commands}]
print(json.dumps([(one.exit_code, one.output) for one in done]))
"""


def test_public_names_need_the_core_alone_and_what_lacks_an_extra_names_it_in_one_sentence(folder):
    commands = {
        "`consistentee run` needs": ["run", "quick"],
        "`consistentee table` needs": ["table", f"{ROOT}/results/quick"],
        "`consistentee verify` needs": ["verify", f"{ROOT}/results/quick"],
        "a task of texts, needs": ["train", "toy-text.yaml", "--method", "calm-tokens-softmax", "--out", "decoder"],
        "rows.parquet needs": ["accelerate", "classifier", "rows.parquet"],
    }
    program = WITHOUT_EXTRAS.format(folder=str(folder), commands=list(commands.values()))
    printed = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT / "tests", text=True)
    for expected, (code, output) in zip(commands, json.loads(printed.splitlines()[-1]), strict=True):
        assert (code, expected in output) == (2, True), output
        assert output.endswith('run: pip install "consistentee[bench]"\n')
        assert output.count("\n") == 1


def test_importing_the_package_imports_nothing_else():
    """So it takes no longer than Python itself, however long torch and transformers take."""
    code = "import sys; before = set(sys.modules); import consistentee; print(*set(sys.modules) - before)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    packages = {name.partition(".")[0] for name in printed.split()}
    assert packages - sys.stdlib_module_names == {"consistentee"}
    with pytest.raises(AttributeError, match="nothing"):
        _ = consistentee.nothing


def imported_modules(folder: str, *, anywhere: bool) -> Iterator[str]:
    """Yield the first names of what the files of a package import, in functions too or at once alone."""
    for path in (ROOT / folder).rglob("*.py"):
        if "micro" in path.parts:  # tests, which are not installed
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree) if anywhere else tree.body:
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield str(node.module).partition(".")[0]


def undeclared(modules: set[str], packages: set[str], owners: Mapping[str, list[str]]) -> set[str]:
    """Return the modules that neither these packages bring nor Python, nor this project; ``owners`` of all modules."""
    others = modules - sys.stdlib_module_names - {"consistentee", "baselines", "benchmarks"}
    return {module for module in others if not packages & set(map(canonicalize_name, owners.get(module, [module])))}


def test_every_import_is_declared_by_the_core_or_an_extra():
    wanted = map(Requirement, requires("consistentee"))
    core = {canonicalize_name(each.name) for each in wanted if each.marker is None}
    extra = {canonicalize_name(name) for one in get_args(extras.Extra) for name in extras.packages_of(one)}
    owners = packages_distributions()
    for folder, at_once in (("consistentee", core), ("baselines", core), ("benchmarks", core | extra)):
        assert undeclared(set(imported_modules(folder, anywhere=False)), at_once, owners) - {"pytest"} == set()
        assert undeclared(set(imported_modules(folder, anywhere=True)), core | extra, owners) - {"pytest"} == set()
