"""Finding methods by name, entry point or file; tasks, knobs and parameters that are refused."""

from functools import partial
from importlib.metadata import EntryPoint

import pytest

from benchmarks.testing.tiny import make_task, make_text_task
from consistentee import Recipe, TokenRecipe, UserError
from consistentee.methods import method
from consistentee.methods.method import TOKEN_ENTRY_POINT_GROUP, available_methods, get_method, train_method

MINE = """
from dataclasses import dataclass
from typing import ClassVar
from baselines.pabee import PABEE

@dataclass(frozen=True)
class Mine(PABEE):
    name: ClassVar[str] = "mine"
    scale: float = 1.0
"""


def test_methods_and_tasks_of_different_kinds_are_refused(tiny_model, tiny_decoder):
    with pytest.raises(UserError, match="deebert answers with labels, and task 'toy-text' asks for texts"):
        train_method(get_method("deebert"), tiny_model(), make_text_task(), Recipe())
    with pytest.raises(UserError, match=r"token-full lets tokens exit.*'toy' asks for labels"):
        train_method(get_method("token-full"), tiny_decoder(), make_task(), TokenRecipe())


def test_registered_methods_have_their_names():
    for name in available_methods() | available_methods(TOKEN_ENTRY_POINT_GROUP):
        assert get_method(name).name == name


def test_a_method_in_a_file(tmp_path, tiny_model, monkeypatch):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    monkeypatch.chdir(tmp_path)
    method = get_method("mine.py:Mine", scale=0.5)
    assert method.parameters["scale"] == 0.5
    model = train_method(method, tiny_model(), make_task(), Recipe(epochs=1, max_length=24))
    assert model.description.method_name == f"{path}:Mine"
    assert model.description.method_parameters == method.parameters
    assert (model.description.task_name, model.description.max_length) == ("toy", 24)


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        (MINE, "Mein", "unknown class in .*'Mein'; did you mean 'Mine'"),
        ("1 / 0", "Mine", "cannot be imported: ZeroDivisionError"),
        ("import nothing_like_it", "Mine", "cannot be imported: ModuleNotFoundError"),
        ("Mine = 3", "Mine", "not a subclass of consistentee.Method"),
        ("import consistentee\nclass Mine(consistentee.Method): name = 'mine'", "Mine", "does not define.*paper"),
    ],
)
def test_broken_files_are_named(tmp_path, source, name, message):
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(UserError, match=message):
        get_method(f"{path}:{name}")


def test_a_method_that_was_removed_is_named_with_its_successor():
    with pytest.raises(UserError, match="'consistentee-curve' was removed; use consistentee-held-out, or commit a1548"):
        get_method("consistentee-curve")
    for successor in set(method.REMOVED.values()):
        assert get_method(successor).name == successor


def test_a_broken_entry_point_is_named(monkeypatch):
    broken = EntryPoint("gone", "no_such_package:Gone", "consistentee.methods")
    monkeypatch.setattr(method, "available_methods", lambda *_: {"gone": broken})
    with pytest.raises(UserError, match=r"method 'gone'.*cannot be imported: ModuleNotFoundError: No module named"):
        get_method("gone")


def test_stages_of_a_users_method_are_told_apart_by_its_file(tmp_path, tiny_model):
    def told(costs: str) -> str:
        path = tmp_path / f"mine{costs}.py"
        path.write_text(
            "from dataclasses import dataclass\n"
            "from baselines.deebert import DeeBERT\n\n\n"
            "@dataclass(frozen=True)\nclass Mine(DeeBERT):\n"
            f"    def cost_of_answers(self, outputs, labels):\n        return {costs}\n\n"
            "    def fit(self, model, task, recipe):\n        raise RuntimeError(recipe.method)\n"
        )
        with pytest.raises(RuntimeError, match="deebert 2 ") as error:
            train_method(get_method(f"{path}:Mine"), tiny_model(), make_task(), Recipe())
        return str(error.value)

    assert told("1") == told("1") != told("2")


NO_POLICY = {"leave_by": "entropy", "joint_epochs": 0, "policy_dropout": False}
OF_THE_POLICY = {"alpha": 1, "reward": "vanilla", "estimator": "exact", "rollouts": 4, "policy_epochs": 3}
REFUSED = [
    ("beem", {"held_out": 1.0}, "held_out"),
    ("calm-tokens-softmax", {"candidates": 1}, "candidates"),
    *((f"calm-tokens-{by}", {"tau": 0, "horizon": 9}, "horizon has no effect") for by in ("softmax", "classifier")),
    ("cascade-bert", {"folds": 1}, "folds"),
    ("cascade-bert", {"margin_weight": 0, "folds": 4}, "folds has no effect"),
    ("cascade-bert", {"margin_weight": 0, "margin": 0.2}, "margin has no effect"),
    ("cosee", {"ranking": 0, "margin": 0.2}, "margin has no effect here, because ranking is 0"),
    ("cosee", {"sharpness": 0, "thresholds": 4}, "thresholds has no effect"),
    ("consistentee-paper", {"alpha": "a lot"}, "alpha"),
    ("consistentee-paper", {"rollouts": 1}, "rollouts"),
    ("consistentee-paper", {"estimator": "exact", "rollouts": 4}, "rollouts has no effect"),
    ("consistentee-paper", {"joint_epochs": 0, "joint_batch_size": 16}, "joint_batch_size has no effect"),
    ("consistentee-paper", {"reward": "hardnes"}, "reward"),
    ("consistentee-paper", {"alpha": 0, "reward": "vanilla"}, "reward has no effect here, because alpha is 0"),
    *(("consistentee-paper", NO_POLICY | {name: other}, f"{name} has no") for name, other in OF_THE_POLICY.items()),
    ("consistentee-paper", {**NO_POLICY, "policy_dropout": True}, "set policy_dropout to False"),
    ("joint-distillation", {"at_exit": 1.5}, "at_exit"),
    ("consistentee-tokens", {"rollouts": 8}, "rollouts has no effect"),
    ("consistentee-tokens", {"alpha": 0, "reward": "vanilla"}, "reward has no effect"),
    ("consistentee-tokens-ladder", {"lowest_price": 2.0, "highest_price": 1.0}, "ladder"),
    ("consistentee-tokens-ladder", {"rungs": 1}, "rungs"),
    ("consistentee-tokens-ladder", {"horizon": 9}, "horizon has no effect"),
    ("consistentee-tokens-ladder", {"price_rise": 0.0}, "price_rise"),
    ("eenet", {"budget": 3}, "budget"),
    ("fastbert", {"classifier": "linear", "learning_rate": 1e-3}, "learning_rate has no effect"),
    ("hashee", {"max_layer": 1, "buckets": 1}, "buckets has no effect"),
    ("kangaroo", {"threshold": 1.5}, "threshold"),
    ("kangaroo", {"draft_tokens": 1, "threshold": 0.5}, "threshold has no effect"),
    ("leebert", {"weight_rate": 0, "weight_every": 4}, "weight_every has no effect"),
    ("palbert", {"near_prior": 0, "rate": 0.2}, "rate has no effect"),
    ("swift", {"search_tokens": 1}, "search_tokens"),
    ("swift", {"max_sets": 60, "max_failures": 59}, "max_failures has no effect"),
]


@pytest.mark.parametrize(("name", "parameters", "word"), REFUSED, ids=str)
def test_a_parameter_out_of_range_or_without_effect_is_refused(name, parameters, word):
    for make in (partial(get_method, name), type(get_method(name))):
        with pytest.raises(UserError, match=word):
            make(**parameters)
