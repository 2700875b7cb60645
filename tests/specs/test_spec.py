"""Suites of both kinds: what their YAML may say, and the cells they stand for."""

from dataclasses import replace
from datetime import date
from itertools import product
from pathlib import Path

import pytest
import yaml
from hypothesis import given, strategies as st

from benchmarks.specs.base import GenerationSuite, SuiteSpec, folder_name, label_of
from benchmarks.specs.method_files import method_version
from benchmarks.specs.schema import read_yaml
from benchmarks.specs.suites import Filters, expand, list_suites, load_suite
from benchmarks.store.keys import key_parts
from benchmarks.tasks.loader import list_tasks
from consistentee.errors import UserError
from consistentee.methods.method import TOKEN_ENTRY_POINT_GROUP, available_methods, get_method, method_class_of

SUITE = {
    "name": "small",
    "description": "d",
    "tasks": ["sst2", "rte"],
    "backbones": ["minilm-l6"],
    "seeds": [0, 1],
    "methods": [
        "full",
        {"method": "consistentee-paper", "label": "ours", "grid": {"alpha": [0.01, 0.1], "rollouts": [4, 8]}},
    ],
}
OF_TEXTS = {
    **SUITE,
    "kind": "generation",
    "tasks": ["alpaca", "xsum"],
    "backbones": ["smollm2-135m"],
    "methods": ["token-full", {"method": "calm-tokens-softmax", "label": "calm", "grid": {"tau": [0.0, 4.0]}}],
}
REGROUPED = {"batch_size": 8, "in_flight": 32}


def suite(**changes: object) -> SuiteSpec:
    return SuiteSpec.model_validate({**SUITE, **changes})


def suite_of_texts(**changes: object) -> GenerationSuite:
    return GenerationSuite.model_validate({**OF_TEXTS, **changes})


def test_a_task_may_have_seeds_of_its_own():
    more = suite(task_overrides={"rte": {"seeds": [0, 1, 2]}}, seeds=[0])
    assert {(cell.task, cell.seed) for cell in expand(more)} == {("sst2", 0), ("rte", 0), ("rte", 1), ("rte", 2)}
    assert {cell.seed for cell in expand(more, Filters(seeds=[7]))} == {7}


def test_versions_read_from_source_equal_those_of_the_classes():
    methods = available_methods() | available_methods(TOKEN_ENTRY_POINT_GROUP)
    assert {name: method_version(name) for name in methods} == {n: method_class_of(n).version for n in methods}


def written(folder: Path, **changes: object) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**SUITE, **changes}))
    return path


def test_paths_in_a_suite_start_at_its_folder(tmp_path, monkeypatch):
    (tmp_path / "suites" / "model").mkdir(parents=True)
    (tmp_path / "suites" / "mine.yaml").write_text("name: tickets")
    (tmp_path / "suites" / "gate.py").write_text('class Gate:\n    name: ClassVar[str] = "gate"\n')
    (tmp_path / "suites" / "model" / "config.json").touch()
    changes = {"tasks": ["mine.yaml", "rte"], "backbones": ["model"], "methods": ["full", "gate.py:Gate"]}
    suite_file = tmp_path / "suites" / "s.yaml"
    suite_file.write_text(yaml.safe_dump({**SUITE, **changes, "task_overrides": {"mine.yaml": {"seeds": [3]}}}))
    monkeypatch.chdir(tmp_path)
    loaded = load_suite("suites/s.yaml")
    assert (loaded.tasks, loaded.backbones) == (("suites/mine.yaml", "rte"), ("suites/model",))
    labels = [(entry.method, entry.label) for entry in loaded.methods]
    assert labels == [("full", "full"), ("suites/gate.py:Gate", "gate")]
    assert loaded.seeds_for("suites/mine.yaml") == (3,)
    assert expand(loaded, Filters(tasks=["./suites/mine.yaml"], methods=["gate"]))[0].seed == 3
    monkeypatch.chdir(tmp_path / "suites")
    assert load_suite("s.yaml").tasks == ("mine.yaml", "rte")
    by_name = expand(loaded := load_suite("s.yaml"), Filters(tasks=["tickets"]))
    assert {(cell.task, cell.name.split(" · ")[0], cell.folder.parts[0]) for cell in by_name} == {
        ("mine.yaml", "tickets", "tickets")
    }
    (tmp_path / "suites" / "mine.yaml").write_text("name: rte")
    with pytest.raises(UserError, match=r"mine\.yaml and rte are both called 'rte'"):
        expand(loaded)


@pytest.mark.parametrize("field", ["tasks", "backbones"])
def test_two_that_tables_would_call_the_same_are_refused(field):
    fields = {"name": "s", "description": "", "tasks": ["rte"], "backbones": ["b"], "seeds": [0], "methods": ["full"]}
    fields[field] = ["/one/final", "/two/final"] if field == "backbones" else ["/one/train.csv", "/two/train.csv"]
    with pytest.raises(UserError, match=r"are both called '(final|train)'"):
        expand(SuiteSpec.model_validate(fields))


def test_a_method_of_a_file_is_labelled_by_the_name_that_its_class_states(tmp_path):
    file = tmp_path / "mine.py"
    classes = "class Mine(PABEE):\n name = 'my-gate'\nclass Child(Mine):\n pass\nclass Copy:\n name = 'deebert'\n"
    file.write_text(f"from baselines.pabee import PABEE\n{classes}")
    assert [label_of(name) for name in (f"{file}:Mine", f"{file}:Child", "deebert")] == ["my-gate", "Child", "deebert"]
    assert key_parts(expand(suite(), Filters(methods=[f"{file}:Mine"]))[0], "", {}).settings["method"] == "Mine"
    with pytest.raises(UserError, match="is called 'deebert', as another method is; change its `name`"):
        expand(suite(), Filters(methods=[f"{file}:Copy"]))


@pytest.mark.parametrize("name", sorted(list_suites()))
def test_suites_that_come_along_are_valid_and_name_what_exists(name):
    loaded = load_suite(name)
    assert loaded.name == name
    assert set(loaded.tasks) <= set(list_tasks())
    assert {entry.method for entry in loaded.methods} <= set(available_methods(loaded.method_group))
    assert set(loaded.task_overrides) <= set(loaded.tasks)
    assert expand(loaded)
    for entry in loaded.methods:
        for parameters in filter(None, entry.combinations()):
            get_method(entry.method, **parameters)  # fails for one that it lacks


def test_grid_expands_to_cells_that_share_a_label():
    cells = expand(suite())
    assert len(cells) == 2 * 2 * (1 + 4)
    ours = [cell for cell in cells if cell.label == "ours" and cell.task == "rte" and cell.seed == 1]
    assert [cell.parameters for cell in ours] == [
        {"alpha": alpha, "rollouts": rollouts} for alpha in (0.01, 0.1) for rollouts in (4, 8)
    ]
    assert len({cell.folder for cell in cells}) == len(cells)


def test_filters_choose_and_add():
    spec = suite()
    cells = expand(spec, Filters(tasks=["rte"], methods=["ours", "pabee"], backbones=["other/model"], seeds=[7]))
    assert {(c.task, c.backbone, c.seed) for c in cells} == {("rte", "other/model", 7)}
    assert [cell.label for cell in cells] == ["ours"] * 4 + ["pabee"]
    added = expand(spec, Filters(methods=["some/mine.py:Mine"]))
    assert {(cell.label, cell.method) for cell in added} == {("Mine", "some/mine.py:Mine")}
    assert expand(spec, Filters(methods=["consistentee-paper"])) == expand(spec, Filters(methods=["ours"]))
    with pytest.raises(UserError, match="free is a method of generation, and suite"):
        expand(suite(), Filters(methods=["free"]))


def test_an_entry_may_have_tasks_of_its_own_and_runs_on_others_if_it_is_named():
    spec = suite(methods=["full", {"method": "pabee", "tasks": ["rte"]}], seeds=[0])
    assert {(cell.task, cell.label) for cell in expand(spec)} == {("sst2", "full"), ("rte", "full"), ("rte", "pabee")}
    assert [cell.label for cell in expand(spec, Filters(tasks=["mrpc"]))] == ["full"]
    assert [cell.task for cell in expand(spec, Filters(methods=["pabee"]))] == ["sst2", "rte"]


def test_a_recipe_of_an_entry_stands_over_that_of_a_task_and_of_the_suite():
    spec = suite(
        tasks=["sst2", "rte"],
        recipe={"epochs": 2, "batch_size": 8},
        task_overrides={"rte": {"recipe": {"epochs": 6, "learning_rate": 1e-5}}},
        methods=["deebert", {"method": "deebert", "label": "longer", "recipe": {"epochs": 9}}],
    )
    found = {(cell.task, cell.label): cell.recipe for cell in expand(spec)}
    assert [found[key].epochs for key in product(("sst2", "rte"), ("deebert", "longer"))] == [2, 9, 6, 9]
    assert found["rte", "longer"] == replace(spec.recipe, epochs=9, learning_rate=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"seeds": [0, -1]}, r"seeds\.1: Input should be greater than or equal to 0"),
        ({"methods": ["full", "full"]}, "label 'full' is used by two entries"),
        ({"methods": [{"method": "pabee", "grid": {"tolerance": []}}]}, "grid.tolerance: List should have at least 1"),
        ({"methods": [{"method": "full", "tasks": ["ret"]}]}, "unknown task of methods.full 'ret'; did you mean 'rte'"),
        ({"task_overrides": {"ret": {"seeds": [1]}}}, "unknown task of task_overrides 'ret'; did you mean 'rte'"),
        ({"tasks": ["rte", "sst2", "rte"]}, "tasks: .*'rte' is listed twice"),
        ({"methods": [{"method": "pabee", "grid": {"tolerance": [2, 1, 2]}}]}, "grid.tolerance: .*2 is listed twice"),
        ({"methods": ["pabee", {"method": "pabee", "label": "p", "recipe": {"epochs": 3}}]}, "differ in their label"),
        ({"timing": {"rounds": -1}}, "timing.rounds"),
        ({**OF_TEXTS, "recipe": {"epochs": 3}}, "recipe: unknown key 'epochs'"),
        ({**OF_TEXTS, "exits": {"adapter": "linear"}}, "exits.adapter"),
        ({**OF_TEXTS, "exits": {"closing_layers": 2}}, "closing_layers have adapter 'shared', not 'low-rank'"),
        (
            {**OF_TEXTS, "exits": {"adapter": "shared", "layers": [4, 8], "closing_layers": 4}},
            "fewer than the 4 layers of the first",
        ),
        ({"timing": {"regrouped": [{**REGROUPED, "in_flight": 8}]}}, "8 in flight must be more than a batch, 8"),
        ({"timing": {"regrouped": [REGROUPED]}}, "must be among batch_sizes"),
        # A malformed item is named alone: that it leaves a list empty is no fault of its own.
        ({"methods": [None]}, r"a suite: methods\.0: an entry is a method's name, or a mapping [^;]*; got None$"),
        ({"methods": [{"method": "full", "grid": {"since": [date(2024, 1, 2)]}}]}, r"since\.0: input was not [^;]*$"),
    ],
)
def test_faults_are_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load_suite(written(tmp_path, **changes))


def test_cells_of_texts_train_on_their_own_task_or_on_a_common_one():
    assert {(c.task, c.train_on) for c in expand(suite_of_texts())} == {("alpaca", "alpaca"), ("xsum", "xsum")}
    common = expand(suite_of_texts(train_on="alpaca"))
    assert {(c.task, c.train_on) for c in common} == {("alpaca", "alpaca"), ("xsum", "alpaca")}
    assert len(common) == 2 * 2 * (1 + 2)


def test_key_depends_on_what_is_decoded_and_not_on_names(tmp_path):
    method = tmp_path / "mine.py"
    method.write_text("from baselines.free import FREE\n\nclass Mine(FREE): ...\n")

    def key(**changes: object) -> str:
        entry = {"method": f"{method}:Mine", "label": str(changes.pop("label", "mine"))}
        return key_parts(expand(suite_of_texts(methods=[entry], **changes))[0], "rows", {"files": {}}).key

    assert key() == key(label="other") == key(tasks=["dolly"]) == key(train_on="dolly") == key(chat_template="never")
    others = [{"max_new_tokens": 24}, {"exits": {"rank": 4}}, {"recipe": {"exit_steps": 3}}, {"batch_size": 4}]
    others += [{"chat_template": "auto"}]
    assert len({key(), *(key(**change) for change in others)}) == 1 + len(others)


def test_all_faults_of_recipes_are_named(tmp_path):
    methods = [{"method": "full", "recipe": {"epohcs": 1}}, {"method": "pabee", "recipe": {"epochs": "x"}}]
    overrides = {task: {"recipe": {"max_length": 1}} for task in ("sst2", "rte")}
    with pytest.raises(UserError) as raised:
        load_suite(written(tmp_path, methods=methods, task_overrides=overrides))
    places = ["task_overrides.rte.recipe.max_length", "task_overrides.sst2.recipe.max_length"]
    places += ["methods.pabee.recipe.epochs"]
    sentence = str(raised.value)
    assert "methods.full.recipe: unknown key 'epohcs'; did you mean 'epochs'?; " in sentence
    assert sentence.count(";") == 4
    assert all(f" {place}: " in sentence for place in places)


def test_file_faults(tmp_path):
    with pytest.raises(UserError, match="no such suite file"):
        load_suite(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("- a list")
    with pytest.raises(UserError, match="must hold a mapping"):
        load_suite(broken)
    broken.write_text("name: one\nrecipe: {epochs: 1, epochs: 2}\n")
    with pytest.raises(UserError, match=r"broken\.yaml is not valid YAML: the key 'epochs' is written twice .*line 2"):
        load_suite(broken)


def test_a_key_that_is_merged_in_may_be_written_again():
    assert read_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}") == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}
    assert read_yaml("1: number\n'1': text") == {1: "number", "1": "text"}


@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=40))
def test_folder_names_are_safe_and_unique(first, second):
    for name in (first, second):
        assert "/" not in folder_name(name)
        assert folder_name(name) not in {"", ".", ".."}
    assert (folder_name(first) == folder_name(second)) == (first == second)
