"""Token-level exits: only live tokens run, and that equals the stock layer on all tokens with exited ones put back."""

import pytest
import torch
from conftest import TOKEN_EXIT_FAMILIES, VOCABULARY, make_task, random_texts
from hypothesis import given, strategies as st
from torch import Tensor

from consistentee.backbones.encoders import layers_run, stepper_for
from consistentee.backbones.token_exits import TokenExitStepper
from consistentee.data.encoding import Batch, Encoding
from consistentee.engine.classify import classify
from consistentee.errors import UserError
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.rules.exit_rule import NeverExit
from consistentee.traces.instance_trace import record_trace

LAYERS = 4


def mixed_schedule(last: int = LAYERS) -> Tensor:
    """Exit layers 1..last, mixed over the vocabulary."""
    return torch.randint(1, last + 1, (len(VOCABULARY),), generator=torch.Generator().manual_seed(5))


def full_depth() -> Tensor:
    return torch.full((len(VOCABULARY),), LAYERS)


def stock_layers_with_exited_tokens_put_back(model: MultiExitModel, batch: Batch) -> list[Tensor]:
    """Hidden states of all layers, each layer run by the stock module on all tokens."""
    stepper = stepper_for(model.backbone)
    exits = model.stepper.token_exits.schedule[batch.input_ids].unsqueeze(-1)
    hidden, context = stepper.begin(batch)
    states = []
    for layer in range(1, model.num_layers + 1):
        hidden = torch.where(exits >= layer, stepper.step(layer, hidden, context), hidden)
        states.append(hidden)
    return states


def stepped(model: MultiExitModel, batch: Batch) -> list[Tensor]:
    hidden, context = model.stepper.begin(batch)
    states = []
    for layer in range(1, model.num_layers + 1):
        hidden = model.stepper.step(layer, hidden, context)
        states.append(hidden)
    return states


def batch_of(model: MultiExitModel, count: int = 9) -> Batch:
    return model.collate(model.tokenize(random_texts(count, seed=4)))


@pytest.mark.parametrize(("last", "count"), [(2, 1), (LAYERS, 9)])
@pytest.mark.parametrize("family", TOKEN_EXIT_FAMILIES)
def test_every_layer_equals_the_stock_layer_with_exited_tokens_put_back(tiny_model, family, last, count):
    model = tiny_model(family)
    model.use_stepper(TokenExitStepper.over(model.stepper, mixed_schedule(last)))
    batch = batch_of(model, count)
    real = batch.padding_mask.unsqueeze(-1)
    with torch.no_grad():
        for ours, expected in zip(
            stepped(model, batch), stock_layers_with_exited_tokens_put_back(model, batch), strict=True
        ):
            torch.testing.assert_close(ours * real, expected * real, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "mpnet", "albert"])
def test_gradients_are_those_of_the_stock_layers(tiny_model, family):
    model = tiny_model(family)
    model.use_stepper(TokenExitStepper.over(model.stepper, mixed_schedule()))
    batch = batch_of(model)
    real = batch.padding_mask.unsqueeze(-1)
    gradients = []
    for states in (stepped(model, batch), stock_layers_with_exited_tokens_put_back(model, batch)):
        model.zero_grad(set_to_none=True)
        (states[-1] * real).square().sum().backward()
        gradients.append({n: p.grad for n, p in model.backbone.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], expected, rtol=1e-3, atol=1e-4, msg=name)


def test_while_all_tokens_are_live_the_stock_layer_runs_and_later_layers_run_on_no_more_than_is_live(tiny_model):
    model = tiny_model("bert")
    schedule = full_depth()
    schedule[VOCABULARY.index("w0")] = 2
    model.use_stepper(TokenExitStepper.over(model.stepper, schedule))
    batch = model.collate(model.tokenize(["w1 w0 w0", "w0"]))
    whole, queries, keys = [], [], []
    for number, layer in enumerate(model.backbone.encoder.layer, start=1):
        layer.register_forward_hook(lambda *_, number=number: whole.append(number))
        layer.attention.self.query.register_forward_hook(lambda _, args, __: queries.append(args[0].shape[:-1]))
        layer.attention.self.key.register_forward_hook(lambda _, args, __: keys.append(args[0].shape[:-1]))
    stepped(model, batch)
    assert whole == [1, 2]
    assert queries == [(2, 5), (2, 5), (5,), (5,)], "[CLS] w1 [SEP], [CLS] [SEP]"
    assert keys == [(2, 5)] * 4, "tokens that have exited are attended to"


@given(
    st.lists(st.lists(st.integers(1, LAYERS), min_size=1, max_size=9), min_size=1, max_size=5),
    st.integers(1, LAYERS),
)
def test_layers_run_is_the_mean_over_tokens_of_what_comes_first(token_exits, row_exit):
    live = torch.tensor([[sum(t >= layer for t in row) for layer in range(1, LAYERS + 1)] for row in token_exits])
    expected = [sum(min(t, row_exit) for t in row) / len(row) for row in token_exits]
    exits = torch.full((len(token_exits),), row_exit)
    assert layers_run(live, exits).tolist() == pytest.approx(expected)
    assert layers_run(None, exits).tolist() == [row_exit] * len(token_exits)


def test_live_tokens_are_counted_row_by_row(tiny_model):
    model = tiny_model("bert")
    assert model.stepper.live_tokens([Encoding([2, 3])]) is None
    schedule = full_depth()
    schedule[[5, 6]] = torch.tensor([1, 3])
    model.use_stepper(TokenExitStepper.over(model.stepper, schedule))
    rows = [Encoding([2, 5, 5, 3]), Encoding([6]), Encoding([5])]
    assert model.stepper.live_tokens(rows).tolist() == [[4, 2, 2, 2], [1, 1, 1, 0], [1, 0, 0, 0]]
    nothing = classify(model, [], NeverExit())
    assert len(nothing.layers_run) == len(nothing.predictions) == 0


def test_the_schedule_is_saved_with_the_model(tiny_model, tmp_path):
    model, split = tiny_model("bert"), make_task().test
    before = model.fingerprint()
    model.use_stepper(TokenExitStepper.over(model.stepper, mixed_schedule()))
    assert model.fingerprint(with_heads=False) != before
    model.save_pretrained(tmp_path / "model")
    again = MultiExitModel.from_pretrained(tmp_path / "model")
    assert torch.equal(again.stepper.token_exits.schedule, mixed_schedule())
    trace, expected = record_trace(again, split), record_trace(model, split)
    assert torch.equal(trace.live_tokens, expected.live_tokens)
    assert torch.equal(trace.logits, expected.logits)


@pytest.mark.parametrize(
    ("schedule", "fault"),
    [(torch.ones(3), r"\[64\]"), (torch.zeros(64), r"1\.\.4"), (torch.full((64,), LAYERS + 1), r"1\.\.4")],
)
def test_schedules_that_do_not_fit_are_refused(tiny_model, schedule, fault):
    with pytest.raises(ValueError, match=fault):
        TokenExitStepper.over(tiny_model("bert").stepper, schedule)


def test_models_whose_layers_have_no_known_parts_are_refused(tiny_model):
    with pytest.raises(UserError, match="not supported for architecture 'modernbert'"):
        TokenExitStepper.over(tiny_model("modernbert").stepper, full_depth())
    model = tiny_model("albert")
    group = model.backbone.encoder.albert_layer_groups[0].albert_layers
    group.append(group[0])
    with pytest.raises(UserError, match="one layer each"):
        model.stepper.parts(1)
