"""The engine's calls of a rule, for instances that are classified and for tokens being decoded."""

from collections.abc import Callable

import pytest
import torch
from conftest import random_prompts, random_texts
from torch import Tensor

from consistentee.engine.classify import classify
from consistentee.engine.generate import generate
from consistentee.rules.exit_rule import ExitRule


@pytest.fixture(params=["instances", "tokens"])
def exits_of(request, tiny_model, tiny_decoder) -> Callable[..., Tensor]:
    """Return a function: (rule, number of texts, batch size) -> the exit layers of all rows."""

    def run(rule: ExitRule, texts: int = 2, batch_size: int = 16) -> Tensor:
        if request.param == "instances":
            return classify(tiny_model(), random_texts(texts), rule, batch_size=batch_size).exit_layers
        written = generate(tiny_decoder(), random_prompts(texts), rule, max_new_tokens=5, batch_size=batch_size)
        return torch.cat(written.exit_layers)

    return run


class CountingState(ExitRule):
    """Keeps each row's key in its state and checks at every layer that state and rows still belong together."""

    def start(self, rows, num_layers):
        return {"key": torch.full((rows,), -1)}

    def should_exit(self, view, state):
        assert view.layer == 1 or torch.equal(state["key"], view.row_keys)
        state["key"] = view.row_keys
        return view.row_keys % view.num_layers < view.layer


def test_state_follows_its_row(exits_of):
    assert exits_of(CountingState(), texts=40).unique().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("answer", [torch.tensor([1.0, 0.0]), torch.tensor(True), torch.tensor([True])], ids=str)
def test_a_rule_that_does_not_answer_each_row_is_named(exits_of, answer):
    class Sloppy(ExitRule):
        def should_exit(self, view, state):
            return answer

    with pytest.raises(ValueError, match=r"Sloppy.should_exit must return bool \[2\]"):
        exits_of(Sloppy())


def test_a_rule_without_a_decision_is_named(exits_of):
    class Empty(ExitRule):
        pass

    with pytest.raises(NotImplementedError, match="Empty does not define should_exit"):
        exits_of(Empty())
