"""Views of tokens that rules read, and the keys of tokens."""

import pytest
import torch
from conftest import random_prompts

from consistentee.errors import UserError
from consistentee.models.heads import HeadSpec
from consistentee.traces.token_view import TokenView, prompt_key, token_key

PROMPTS = random_prompts(4, seed=6)


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.randn(3, 1, 32, generator=torch.Generator().manual_seed(1))


def view_of(model, hidden, layer=2, past=None) -> TokenView:
    return TokenView(model, layer, hidden, 5, [11, 12, 13], past=past)


def test_what_a_rule_reads(tiny_decoder, hidden):
    model = tiny_decoder()
    model.add_head("policy", HeadSpec())
    view = view_of(model, hidden)
    assert (view.layer, view.num_layers, view.rows, view.places) == (2, 4, 3, [5, 5, 5])
    assert torch.equal(view.hidden, hidden)
    assert torch.equal(view.pooled, model.state(hidden[:, 0]))
    assert torch.equal(view.logits, model.logits(2, hidden[:, 0]))
    assert torch.equal(view.predictions, view.logits.argmax(dim=-1))
    assert torch.equal(view.head("policy"), model.head("policy")(2, view.pooled))
    assert view.row_keys.tolist() == [token_key(key, 5) for key in (11, 12, 13)]
    with pytest.raises(UserError, match="true labels"):
        _ = view.labels


def test_rows_may_be_at_steps_of_their_own(tiny_decoder, hidden):
    view = TokenView(tiny_decoder(), 2, hidden, [5, 1, 9], [11, 12, 13])
    assert view.steps.tolist() == [5, 1, 9]
    assert view.row_keys.tolist() == [token_key(11, 5), token_key(12, 1), token_key(13, 9)]
    assert view_of(tiny_decoder(), hidden).steps.tolist() == [5, 5, 5]


def test_logits_are_computed_for_those_who_leave_alone(tiny_decoder, hidden, monkeypatch):
    model = tiny_decoder()
    rows = []
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda layer, states: (rows.append(len(states)), logits(layer, states))[1])
    expected = view_of(model, hidden).logits[[0, 2]]
    torch.testing.assert_close(view_of(model, hidden).logits_of(lambda rows: rows[[0, 2]]), expected)
    view = view_of(model, hidden)
    _ = view.probs
    torch.testing.assert_close(view.logits_of(lambda rows: rows[[0, 2]]), expected)
    assert rows == [3, 2, 3]


def test_history_is_the_states_at_the_exits_so_far(tiny_decoder, hidden):
    model = tiny_decoder()
    with pytest.raises(UserError, match="reads_history"):
        _ = view_of(model, hidden).history
    past = torch.randn(3, 1, 32)
    history = view_of(model, hidden, past=past).history
    assert torch.equal(history, torch.stack([past[:, 0], model.state(hidden[:, 0])], dim=1))


def test_keys_tell_prompts_and_steps_apart():
    keys = {token_key(prompt_key(prompt), step) for prompt in ([1], [1, 2], [2, 1]) for step in range(1000)}
    assert len(keys) == 3000
    assert all(0 <= key < 2**31 for key in keys)
    assert sum(key < 2**30 for key in keys) == pytest.approx(1500, abs=150)
