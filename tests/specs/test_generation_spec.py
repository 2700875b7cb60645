"""GenerationSuite: what a suite of generation may say, and the cells it stands for."""

from pathlib import Path

import pytest
import yaml

from benchmarks.specs.generation import GenerationCellSpec, GenerationSuite
from benchmarks.specs.suites import Filters, expand, load_suite
from benchmarks.store.keys import key_parts
from consistentee.errors import UserError
from consistentee.methods.method import get_method
from consistentee.methods.token_methods import TokenMethod

SUITE = {
    "name": "small",
    "kind": "generation",
    "description": "d",
    "tasks": ["alpaca", "xsum"],
    "backbones": ["smollm2-135m"],
    "seeds": [0],
    "methods": ["token-full", {"method": "calm-tokens-softmax", "label": "calm", "grid": {"tau": [0.0, 4.0]}}],
}


def suite(**changes: object) -> GenerationSuite:
    return GenerationSuite.model_validate({**SUITE, **changes})


def cell(**changes: object) -> GenerationCellSpec:
    found = expand(suite(**changes))[0]
    assert isinstance(found, GenerationCellSpec)
    return found


def written(folder: Path, **changes: object) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**SUITE, **changes}))
    return path


def test_cells_train_on_their_own_task_or_on_a_common_one():
    assert {(c.task, c.train_on) for c in expand(suite())} == {("alpaca", "alpaca"), ("xsum", "xsum")}
    common = expand(suite(train_on="alpaca"))
    assert {(c.task, c.train_on) for c in common} == {("alpaca", "alpaca"), ("xsum", "alpaca")}
    assert len(common) == 2 * (1 + 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": {"epochs": 3}}, "recipe: unknown key 'epochs'"),
        ({"exits": {"adapter": "linear"}}, "exits.adapter"),
        ({"exits": {"closing_layers": 2}}, "closing_layers have adapter 'shared', not 'low-rank'"),
        (
            {"exits": {"adapter": "shared", "layers": [4, 8], "closing_layers": 4}},
            "fewer than the 4 layers of the first",
        ),
        ({"max_new_tokens": 1}, "max_new_tokens"),
        ({"test_prompts": 0}, "test_prompts"),
        ({"methods": ["token-full", "token-full"]}, "label 'token-full' is used by two entries"),
        ({"task_overrides": {"alpaka": {"test_prompts": 8}}}, "unknown task of task_overrides 'alpaka'.*mean 'alpaca'"),
        ({"timing": {"rounds": -1}}, "timing.rounds"),
        ({"timing": {"regrouped": [{"batch_size": 8, "in_flight": 8}]}}, "8 in flight must be more than a batch, 8"),
        ({"timing": {"regrouped": [{"batch_size": 8, "in_flight": 32}]}}, "must be among batch_sizes"),
    ],
)
def test_faults_are_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load_suite(written(tmp_path, **changes))


def test_methods_of_classification_are_no_methods_of_generation():
    with pytest.raises(UserError, match="pabee is a method of classification, and suite 'small' is of generation"):
        expand(suite(), Filters(methods=["pabee"]))


def test_key_depends_on_what_is_decoded_and_not_on_names(tmp_path):
    method = tmp_path / "mine.py"
    method.write_text("class Mine: ...\n")

    def key(**changes: object) -> str:
        entry = {"method": f"{method}:Mine", "label": str(changes.pop("label", "mine"))}
        return key_parts(cell(methods=[entry], **changes), "rows", {"files": {}}).key

    assert key() == key(label="other") == key(tasks=["dolly"]) == key(train_on="dolly")
    assert key() == key(chat_template="never")
    others = [{"max_new_tokens": 24}, {"exits": {"rank": 4}}, {"recipe": {"exit_steps": 3}}, {"batch_size": 4}]
    others += [{"chat_template": "auto"}]
    assert len({key(), *(key(**change) for change in others)}) == 1 + len(others)


@pytest.mark.parametrize(
    "name",
    [
        "quick-decoding",
        "decoding-methods",
        "decoding-closing-layers",
        "decoding-batches",
        "paper-llama-7b",
    ],
)
def test_methods_of_suites_that_come_along_take_their_parameters(name):
    found = load_suite(name)
    assert isinstance(found, GenerationSuite)
    for spec in expand(found):
        assert isinstance(get_method(spec.method, **spec.parameters), TokenMethod)
