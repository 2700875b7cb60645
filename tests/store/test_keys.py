"""Keys of results: settings, rows, weights and versions, and not the code, which may move."""

import json

import pytest
from documents import ROOT
from pydantic import TypeAdapter
from records_by_hand import cell_spec

from baselines.deebert import DeeBERT
from benchmarks.specs.base import CellSpec, DecodingTimingSpec, ExitSpec, TimingSpec
from benchmarks.specs.method_files import method_version
from benchmarks.store import keys
from benchmarks.store.hashes import hash_model
from benchmarks.store.keys import key_parts, stale_reason
from consistentee import UserError, versions
from consistentee.training.recipe import RecipeSettings, TokenRecipeSettings

SPEC = cell_spec()
BACKBONE: dict[str, object] = {"files": {"weights": "1" * 64}, "pooling": "mean"}
PARTS = key_parts(SPEC, "rows", BACKBONE)
METHOD = '''"""A method."""
from baselines.deebert import DeeBERT

class Mine(DeeBERT):
    """Docs."""
    x = 1  # why
'''


@pytest.fixture(autouse=True)
def fresh_versions():
    method_version.cache_clear()
    yield
    method_version.cache_clear()


def changed(**changes: object) -> CellSpec:
    return SPEC.model_copy(update=changes)


def test_how_a_backbones_files_came_changes_no_key(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    expected = hash_model(tmp_path)
    (tmp_path / ".cache").mkdir()
    for hidden in (".complete.json", ".cache/download.json"):
        (tmp_path / hidden).write_text("{}")
    assert hash_model(tmp_path) == expected != {}


def test_settings_change_the_key_and_names_do_not():
    assert key_parts(changed(label="another name"), "rows", BACKBONE).key == PARTS.key
    assert key_parts(changed(backbone="/a/b", task="/c"), "rows", BACKBONE).key == PARTS.key
    changes = (
        {"seed": 1},
        {"method": "static"},
        {"parameters": {"tolerance": 0.2}},
        {"recipe": RecipeSettings(epochs=9)},
        {"test_rows": 10},
        {"validation_rows": 9},
    )
    others = [
        key_parts(SPEC, "other rows", BACKBONE),
        key_parts(SPEC, "rows", {"files": {"weights": "2"}}),
        *(key_parts(changed(**change), "rows", BACKBONE) for change in changes),
    ]
    assert len({PARTS.key, *(other.key for other in others)}) == 1 + len(others)


@pytest.mark.parametrize(
    ("raise_version", "reason"),
    [
        (lambda patch: patch.setitem(versions.ENGINE_VERSION, "classification", 2), "engine_version was 1, is 2"),
        (lambda patch: patch.setattr(keys, "TRAINING_VERSION", 2), "training_version was 1, is 2"),
        (lambda patch: patch.setattr(keys, "method_version", lambda name: 3), "method_version was 2, is 3"),
    ],
)
def test_a_raised_version_makes_another_key_and_names_itself(monkeypatch, raise_version, reason):
    raise_version(monkeypatch)
    raised = key_parts(SPEC, "rows", BACKBONE)
    assert raised.key != PARTS.key
    assert stale_reason(PARTS, raised) == reason


def test_a_users_file_counts_by_its_code_and_what_it_derives_from_and_not_by_its_comments(tmp_path, monkeypatch):
    path = tmp_path / "mine.py"

    def version_of(source: str) -> int | str:
        path.write_text(source)
        method_version.cache_clear()
        return method_version(f"{path}:Mine")

    first = version_of(METHOD)
    assert version_of(METHOD.replace("Docs", "Other docs").replace("# why", "# because")) == first
    assert version_of(METHOD.replace("x = 1", "x = 2")) != first
    with monkeypatch.context() as patch:
        patch.setattr(DeeBERT, "version", DeeBERT.version + 1)
        assert version_of(METHOD) != first
    with pytest.raises(UserError, match="cannot be read as Python"):
        version_of("class :")
    with pytest.raises(UserError, match="no such method file"):
        method_version(f"{tmp_path / 'none.py'}:Mine")
    with pytest.raises(UserError, match="unknown method 'pabe'"):
        method_version("pabe")


def test_every_part_that_differs_is_named():
    other = key_parts(
        changed(recipe=RecipeSettings(epochs=9), seed=1), "others", {"files": {"weights": "2" * 64}, "pooling": "mean"}
    )
    settings = "rows was rows, is others; recipe.epochs was none, is 9; seed was 0, is 1"
    assert stale_reason(PARTS, other) == f"backbone.files.weights changed; {settings}"
    assert stale_reason(PARTS, PARTS) == ""


def test_the_code_is_hashed_for_records_and_changes_no_key(tmp_path, monkeypatch):
    monkeypatch.setattr(keys, "_PROJECT", tmp_path)
    found = set()
    for source in ("x = 1", "x = 2"):
        (tmp_path / "baselines").mkdir(exist_ok=True)
        (tmp_path / "baselines" / "mine.py").write_text(source)
        keys.code_hash.cache_clear()
        found.add((keys.code_hash(), key_parts(SPEC, "rows", BACKBONE).key))
    keys.code_hash.cache_clear()
    assert len({code for code, _ in found}) == 2
    assert {key for _, key in found} == {PARTS.key}


def test_defaults_are_those_that_keys_leave_out():
    """A setting at its default is not in a key: where a default changes, a version has to say so."""
    models = (RecipeSettings, TokenRecipeSettings, ExitSpec, TimingSpec, DecodingTimingSpec)
    now = {
        "versions": {"training": versions.TRAINING_VERSION, "timing": versions.TIMING_VERSION},
        "defaults": {model.__name__: TypeAdapter(model).dump_python(model(), mode="json") for model in models},
    }
    held = json.loads((ROOT / "tests/golden/defaults.json").read_text())
    assert now == held, (
        "defaults are others than those in tests/golden/defaults.json. A new setting whose default does what was done "
        "before: add it there. A default that changed: raise TRAINING_VERSION (or TIMING_VERSION), say why in "
        "docs/versions.md, and write the file anew."
    )
