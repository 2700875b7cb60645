"""Training exits on tokens: what learns, and from which tokens (test_training.py: the loop and the store)."""

from dataclasses import replace

import pytest
import torch
from conftest import make_text_task

from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.heads import HeadSpec
from consistentee.traces.token_trace import record_tokens
from consistentee.training.decoder import DrawnTokens, exit_loss, train_exits, train_learned_head, training_rows
from consistentee.training.recipe import TokenRecipe, drawn

RECIPE = TokenRecipe(
    exit_steps=15, exit_batch_size=16, exit_learning_rate=2e-2, head_steps=5, head_batch_size=16, backbone_steps=3
)
ROWS = [([2, 7, 9], [30, 31, 3]), ([2, 8], [40, 3])]


def changed(model, before):
    """Return the parts of the model whose weights are not what they were."""
    return {name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def loss_of_exits(model, task, target):
    """Return the mean loss of the exits below L on test tokens that may exit."""
    rows = training_rows(model, replace(task, train=task.test), RECIPE)
    trace = record_tokens(model, rows)
    batch = DrawnTokens(trace, trace.may_exit)
    with torch.no_grad():
        return exit_loss(target, model, batch.batch(torch.arange(len(batch)), 0)).item()


@pytest.mark.parametrize("adapter", ["norm", "low-rank", "head"])
def test_exits_start_nearer_to_the_full_model_than_stock_ones(tiny_decoder_backbone, adapter):
    model, task = MultiExitDecoder.from_backbone(str(tiny_decoder_backbone("llama")), adapter=adapter), make_text_task()
    before, stock = model.clone_weights(), loss_of_exits(model, task, "full model")
    train_exits(model, task, replace(RECIPE, exit_steps=0))
    assert changed(model, before) == {"exit_adapters"}
    assert loss_of_exits(model, task, "full model") < stock - 0.1


@pytest.mark.parametrize("target", ["label", "full model"])
def test_exits_learn_and_neither_backbone_nor_first_tokens_take_part(tiny_decoder, monkeypatch, target):
    model, task = tiny_decoder(), make_text_task()
    before, loss_before = model.clone_weights(), loss_of_exits(model, task, target)
    places, real = [], DrawnTokens.batch

    def watched(source, rows, step):
        places.append(source.trace.step[source.tokens[rows]])
        return real(source, rows, step)

    settings = {"target": target, "exit_steps": 30, "max_new_tokens": 5}
    with monkeypatch.context() as patch:
        patch.setattr(DrawnTokens, "batch", watched)
        train_exits(model, task, replace(RECIPE, **settings))
    assert (model.description.max_prompt_tokens, model.description.max_new_tokens) == (16, 5)
    assert changed(model, before) == {"exit_adapters"}
    assert loss_of_exits(model, task, target) < loss_before - 0.3
    assert not model.training
    assert len(places) == 30
    assert torch.cat(places).min() == 1


def test_exit_loss_by_hand(tiny_decoder):
    """Two exits below L, after layers 1 and 3: their weights are 1/4 and 3/4."""
    model = tiny_decoder(exit_layers=(1, 3))
    trace = record_tokens(model, ROWS)
    batch = DrawnTokens(trace, trace.may_exit[:3]).batch(torch.arange(3), 0)
    first, third, last = (
        model.logits(layer, batch.speaking[:, i]).log_softmax(-1) for i, layer in enumerate((1, 3, 4))
    )
    label = -(first + 3 * third)[torch.arange(3), batch.targets].mean() / 4
    full = -(last.exp() * (first + 3 * third)).sum(-1).mean() / 4
    torch.testing.assert_close(exit_loss("label", model, batch), label)
    torch.testing.assert_close(exit_loss("full model", model, batch), full)


def test_every_number_is_drawn_before_one_is_drawn_again():
    numbers = torch.tensor([3, 5, 8])
    draws = drawn(numbers, 8, seed=1)
    assert sorted(draws[:3].tolist()) == sorted(draws[3:6].tolist()) == [3, 5, 8]
    assert len(draws) == 8
    assert torch.equal(draws, drawn(numbers, 8, seed=1))
    assert not len(drawn(numbers[:0], 5, seed=1))


def test_learned_heads_train_alone(tiny_decoder):
    model = tiny_decoder()
    trace = train_exits(model, make_text_task(), RECIPE)
    model.add_head("confidence", HeadSpec(shared=True))
    before = model.clone_weights()
    tokens = RECIPE.tokens_for_heads(trace)
    assert torch.equal(tokens, trace.may_exit), "as many as there are"
    few = replace(RECIPE, head_tokens=7).tokens_for_heads(trace)
    assert len(few.unique()) == 7
    assert (trace.step[few] > 0).all()

    def loss(model, batch):
        return model.head("confidence")(1, model.state(batch.speaking[:, 0])).square().mean()

    train_learned_head(trace, tokens, loss, RECIPE, head="confidence")
    assert changed(model, before) == {"exit_heads"}


def test_a_decoder_without_early_exits_needs_no_training(tiny_decoder):
    model = tiny_decoder(exit_layers=())
    before = model.clone_weights()
    train_exits(model, make_text_task(), RECIPE)
    assert not changed(model, before)
