"""What is recorded of a machine, and what is not; what a result's key depends on."""

import getpass
import json
import os
from pathlib import Path

import pytest

from benchmarks.store import keys as fingerprint
from benchmarks.store.environment import command_line, describe_conditions, describe_environment
from benchmarks.store.keys import FileHashes, cell_key, code_fingerprint
from benchmarks.store.spec import CellSpec
from consistentee.errors import UserError
from consistentee.training.recipe import RecipeSettings

SPEC = CellSpec(
    task="sst2",
    backbone="minilm-l6",
    method="pabee",
    label="pabee",
    parameters={},
    seed=0,
    recipe=RecipeSettings(),
    validation_rows=None,
    test_rows=None,
    budgets=(0.5,),
    bootstrap_resamples=100,
)
METHOD = '"""A method."""\nfrom consistentee import NeverExit\n\nclass Mine:\n    """Docs."""\n    x = 1  # why\n'


def test_environment_is_json_and_tells_what_matters_and_nobodys_name():
    text = json.dumps(describe_environment() | describe_conditions())
    values = json.loads(text)
    assert values["libraries"]["torch"]
    assert values["cores_usable"] >= 1
    assert len(values["load_average"]) == 3
    assert str(Path.home()) + os.sep not in text
    assert os.uname().nodename not in text
    assert f"/{getpass.getuser()}/" not in text


def test_command_line_loses_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside, outside = tmp_path / "out" / "quick", Path("/somewhere/else/data")
    arguments = ["/usr/bin/consistentee", "run", "quick", "--out", str(inside), f"--data={outside}", "--seeds", "1"]
    assert command_line(arguments) == "consistentee run quick --out out/quick --data=data --seeds 1"


def test_file_hashes_are_remembered_until_the_file_changes(tmp_path, monkeypatch):
    file, cache = tmp_path / "weights", tmp_path / "deep" / "cache.json"
    file.write_text("one")
    hashes = FileHashes(cache)
    first = hashes.sha256(file)
    hashes.save()
    again = FileHashes(cache)
    monkeypatch.setattr(fingerprint.hashlib, "file_digest", None)  # reading again would fail
    assert again.sha256(file) == first
    monkeypatch.undo()
    file.write_text("two!")
    assert again.sha256(file) != first
    cache.write_text("{broken")
    assert FileHashes(cache).sha256(file) == again.sha256(file)


def test_key_depends_on_what_matters_alone():
    key = cell_key(SPEC, "t", {"files": {}})
    assert cell_key(SPEC.model_copy(update={"label": "another name"}), "t", {"files": {}}) == key
    assert cell_key(SPEC.model_copy(update={"backbone": "/a/b", "task": "/c"}), "t", {"files": {}}) == key
    others = [
        cell_key(SPEC, "other", {"files": {}}),
        cell_key(SPEC, "t", {"files": {"w": "1"}}),
        *(
            cell_key(SPEC.model_copy(update=change), "t", {"files": {}})
            for change in (
                {"seed": 1},
                {"method": "static"},
                {"parameters": {"tolerance": 0.2}},
                {"recipe": RecipeSettings(epochs=9)},
                {"test_rows": 10},
                {"budgets": (0.25,)},
            )
        ),
    ]
    assert len({key, *others}) == 1 + len(others)


def test_key_depends_on_library_versions(monkeypatch):
    before = cell_key(SPEC, "t", {})
    monkeypatch.setattr(fingerprint, "version", lambda name: "0.0")
    assert cell_key(SPEC, "t", {}) != before


def fingerprint_of(path: Path, source: str) -> str:
    path.write_text(source)
    for cached in (code_fingerprint, fingerprint._tree_of, fingerprint._code_hash):
        cached.cache_clear()
    return code_fingerprint(f"{path}:Mine")


def test_code_fingerprint_sees_code_not_comments(tmp_path):
    path = tmp_path / "mine.py"
    first = fingerprint_of(path, METHOD)
    assert fingerprint_of(path, METHOD.replace("Docs", "Other docs").replace("# why", "# because")) == first
    assert fingerprint_of(path, METHOD.replace("x = 1", "x = 2")) != first
    with pytest.raises(UserError, match="cannot be read as Python"):
        fingerprint_of(path, "class :")
    with pytest.raises(UserError, match="no such method file"):
        code_fingerprint(f"{tmp_path / 'none.py'}:Mine")
    with pytest.raises(UserError, match="unknown method 'pabe'"):
        code_fingerprint("pabe")


def test_imports_are_followed_through_the_project():
    reached = fingerprint._reachable({"consistentee.methods.consistent_ee"})
    assert {
        "consistentee.methods.policy",
        "consistentee.methods.reward",
        "consistentee.training.loop",
        "consistentee.rules.exit_rule",
    } <= reached
    assert "baselines.pabee" not in reached
    assert "consistentee.methods.policy" not in fingerprint._reachable({"baselines.pabee"})


def test_a_file_that_imports_the_whole_library_depends_on_all_of_it(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import consistentee as ee\n")
    assert {"consistentee.methods.policy", "consistentee.traces.instance_trace"} <= fingerprint._project_imports(
        path, ""
    )
