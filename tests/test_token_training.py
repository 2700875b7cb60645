"""Training exits on tokens: what learns, and from which tokens (test_training.py: the loop and the store)."""

from dataclasses import replace

import pytest
import torch
from conftest import make_text_task
from torch.nn import functional

from consistentee.models.decoder import MultiExitDecoder
from consistentee.models.heads import HeadSpec
from consistentee.traces.token_rows import collate_rows
from consistentee.traces.token_trace import record_tokens
from consistentee.training.recipe import TokenRecipe
from consistentee.training.token_sources import DrawnRows, DrawnTokens, drawn
from consistentee.training.token_stages import (
    exit_loss,
    exit_weights,
    joint_loss,
    train_exits,
    train_last_exit,
    train_learned_head,
)

RECIPE = TokenRecipe(
    exit_steps=30, exit_batch_size=16, exit_learning_rate=1e-2, head_steps=20, head_batch_size=16, backbone_steps=3
)
ROWS = [([2, 7, 9], [30, 31, 3]), ([2, 8], [40, 3])]


def changed(model, before):
    """Return the parts of the model whose weights are not what they were."""
    return {name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def loss_of_exits(model, task, target):
    """Return the mean loss of the exits below L on test tokens that may exit."""
    rows = RECIPE.training_rows(model, replace(task, train=task.test))
    trace = record_tokens(model, rows)
    batch = DrawnTokens(trace, trace.may_exit, len(trace.may_exit), seed=0)
    with torch.no_grad():
        return exit_loss(target, model, batch.batch(torch.arange(len(batch)), 0)).item()


@pytest.mark.parametrize("adapter", ["norm", "low-rank", "head"])
def test_least_squares_start_is_nearer_to_the_full_model(tiny_decoder_backbone, adapter):
    task, losses = make_text_task(), []
    for start in ("stock", "least squares"):
        model = MultiExitDecoder.from_backbone(str(tiny_decoder_backbone("llama")), adapter=adapter)
        before = model.clone_weights()
        train_exits(model, task, replace(RECIPE, exit_steps=0, exit_start=start))
        assert changed(model, before) == (set() if start == "stock" else {"exit_adapters"})
        losses.append(loss_of_exits(model, task, "full model"))
    assert losses[1] < losses[0] - 0.1


@pytest.mark.parametrize("target", ["label", "full model"])
def test_exits_learn_and_the_backbone_does_not(tiny_decoder, target):
    model, task = tiny_decoder(), make_text_task()
    before, loss_before = model.clone_weights(), loss_of_exits(model, task, target)
    train_exits(model, task, replace(RECIPE, target=target, exit_start="stock"))
    assert changed(model, before) == {"exit_adapters"}
    assert loss_of_exits(model, task, target) < loss_before - 0.3
    assert not model.training


def test_exit_loss_by_hand(tiny_decoder):
    """Two exits below L, after layers 1 and 3: their weights are 1/4 and 3/4."""
    model = tiny_decoder(exit_layers=(1, 3))
    trace = record_tokens(model, ROWS)
    batch = DrawnTokens(trace, trace.may_exit, 3, seed=0).batch(torch.arange(3), 0)
    first, third, last = (model.logits(layer, batch.hidden[:, i]).log_softmax(-1) for i, layer in enumerate((1, 3, 4)))
    label = -(first + 3 * third)[torch.arange(3), batch.targets].mean() / 4
    full = -(last.exp() * (first + 3 * third)).sum(-1).mean() / 4
    torch.testing.assert_close(exit_loss("label", model, batch), label)
    torch.testing.assert_close(exit_loss("full model", model, batch), full)


def test_joint_loss_by_hand_leaves_prompts_and_padding_out(tiny_decoder):
    model = tiny_decoder(exit_layers=(2,))
    expected = 0.0
    for tokens, targets in (([2, 7, 9, 30, 31], {2: 30, 3: 31, 4: 3}), ([2, 8, 40], {1: 40, 2: 3})):
        states = model.hidden_states(torch.tensor([tokens]), torch.ones(1, len(tokens), dtype=torch.bool))[0]
        for column, target in targets.items():
            for index, layer in enumerate((2, 4)):
                logits = model.logits(layer, states[column, index])
                expected += functional.cross_entropy(logits, torch.tensor(target)).item() * layer / 6 / 5
    batch = collate_rows(model, ROWS)
    assert joint_loss(model, batch).item() == pytest.approx(expected, rel=1e-4)
    batch.tokens[~batch.padding_mask] = 11
    assert joint_loss(model, batch).item() == pytest.approx(expected, rel=1e-4)
    states = model.hidden_states(batch.tokens, batch.padding_mask)
    states[~batch.gives_response] = 100.0
    assert joint_loss(model, batch, states).item() == pytest.approx(expected, rel=1e-4)


def test_first_tokens_of_responses_teach_no_exit(tiny_decoder, monkeypatch):
    used = []
    real = DrawnTokens.batch

    def watched(self, rows, step):
        used.append(self.trace.step[self.tokens[rows]])
        return real(self, rows, step)

    monkeypatch.setattr(DrawnTokens, "batch", watched)
    train_exits(tiny_decoder(), make_text_task(), RECIPE)
    assert len(used) == RECIPE.exit_steps
    assert torch.cat(used).min() == 1


def test_every_number_is_drawn_before_one_is_drawn_again():
    numbers = torch.tensor([3, 5, 8])
    draws = drawn(numbers, 8, seed=1)
    assert sorted(draws[:3].tolist()) == sorted(draws[3:6].tolist()) == [3, 5, 8]
    assert len(draws) == 8
    assert torch.equal(draws, drawn(numbers, 8, seed=1))
    assert not len(drawn(numbers[:0], 5, seed=1))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_whole_backbone_can_learn(tiny_decoder, family):
    model = tiny_decoder(family)
    before = model.clone_weights()
    recipe = replace(RECIPE, trains="all", backbone_steps=30, backbone_learning_rate=3e-3, target="label")
    task = make_text_task()
    loss_before = loss_of_exits(model, task, "label")
    trace = train_exits(model, task, recipe)
    assert changed(model, before) == {"backbone", "exit_adapters"}
    assert loss_of_exits(model, task, "label") < loss_before - 0.3
    again = record_tokens(model, recipe.training_rows(model, task))
    torch.testing.assert_close(trace.hidden.float(), again.hidden, atol=2e-2, rtol=2e-2)


def test_low_rank_updates_leave_stock_layers(tiny_decoder, tmp_path):
    models = [tiny_decoder(), tiny_decoder()]
    before, names = models[0].clone_weights(), list(models[0].state_dict())
    recipe = replace(RECIPE, trains="lora", backbone_learning_rate=1e-2, store=tmp_path)
    for model in models:
        train_exits(model, make_text_task(), recipe)
    weights = models[0].state_dict()
    assert list(weights) == names
    learned = {name for name, tensor in weights.items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in learned} == {"backbone", "exit_adapters"}
    assert all("self_attn" in name for name in learned if name.startswith("backbone"))
    assert all(torch.equal(tensor, models[1].state_dict()[name]) for name, tensor in weights.items()), "from the store"


def test_the_last_exit_can_learn_alone(tiny_decoder):
    model = tiny_decoder()
    before = model.clone_weights()
    train_last_exit(model, make_text_task(), replace(RECIPE, trains="all"))
    assert changed(model, before) == {"backbone"}


def test_a_method_may_bring_a_loss_of_its_own(tiny_decoder):
    asked = []

    def loss(model, batch):
        asked.append(len(batch.targets))
        return joint_loss(model, batch) * 2

    train_exits(tiny_decoder(), make_text_task(), replace(RECIPE, trains="all"), backbone_loss=loss)
    assert len(asked) == RECIPE.backbone_steps


def test_learned_heads_train_alone(tiny_decoder):
    model = tiny_decoder()
    trace = train_exits(model, make_text_task(), RECIPE)
    model.add_head("confidence", HeadSpec(shared=True))
    before = model.clone_weights()
    tokens = RECIPE.tokens_for_heads(trace)

    def loss(model, batch):
        return model.head("confidence")(1, model.state(batch.hidden[:, 0])).square().mean()

    train_learned_head(trace, tokens, loss, RECIPE, head="confidence")
    assert changed(model, before) == {"exit_heads"}


def test_tokens_for_heads_are_few_and_may_exit(tiny_decoder):
    model = tiny_decoder()
    trace = record_tokens(model, RECIPE.training_rows(model, make_text_task()))
    few = replace(RECIPE, head_tokens=7).tokens_for_heads(trace)
    assert len(few.unique()) == 7
    assert (trace.step[few] > 0).all()
    assert torch.equal(RECIPE.tokens_for_heads(trace), trace.may_exit), "all there are"


def test_a_decoder_without_early_exits_needs_no_training(tiny_decoder):
    model = tiny_decoder(exit_layers=())
    before = model.clone_weights()
    train_exits(model, make_text_task(), RECIPE)
    assert not changed(model, before)


def test_exit_weights_grow_with_depth():
    assert exit_weights((1, 3)) == [0.25, 0.75]


def test_rows_without_a_response_are_not_drawn(tiny_decoder):
    source = DrawnRows(tiny_decoder(), [([2, 7], []), *ROWS], draws=6, seed=0)
    assert 0 not in source.numbers
    assert source.batch(torch.tensor([0, 1]), 0).targets.numel() == 5


def test_the_model_notes_how_long_texts_were(tiny_decoder):
    model = tiny_decoder()
    train_exits(model, make_text_task(), replace(RECIPE, exit_steps=1, max_new_tokens=5))
    assert (model.description.max_prompt_tokens, model.description.max_new_tokens) == (16, 5)
