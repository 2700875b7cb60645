"""Training of decoders: exits, on cached states, and the backbone, with losses through the LM head."""

import math
from dataclasses import replace

import pytest
import torch
from comparing import changed_parts, same_weights
from torch.nn import functional

from benchmarks.testing.tiny import make_text_task
from consistentee.traces.token_trace import collate_rows, record_tokens
from consistentee.training import decoder_backbone
from consistentee.training.decoder import DrawnTokens, exit_loss, train_exits, train_last_token_exit, training_rows
from consistentee.training.decoder_backbone import (
    DrawnRows,
    exit_weights,
    joint_loss,
    last_exit_loss,
    skip_probability,
    states_with_layer_dropout,
    weighted_cross_entropy,
)
from consistentee.training.recipe import TokenRecipe, drawn

RECIPE = TokenRecipe(exit_batch_size=16, exit_learning_rate=2e-2)
TUNING = TokenRecipe(exit_steps=3, exit_batch_size=16, trains="all", backbone_steps=3, backbone_learning_rate=3e-3)
ROWS = [([2, 7, 9], [30, 31, 3]), ([2, 8], [40, 3])]


def loss_of_exits(model, task, target):
    """Return the mean loss of the exits below L on test tokens that may exit."""
    rows = training_rows(model, replace(task, train=task.test), RECIPE)
    trace = record_tokens(model, rows)
    batch = DrawnTokens(trace, trace.may_exit)
    with torch.no_grad():
        return exit_loss(target, model, batch.batch(torch.arange(len(batch)), 0)).item()


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
    assert changed_parts(model, before) == {"exit_adapters"}
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
        model.logits(layer, batch.answer_states[:, i]).log_softmax(-1) for i, layer in enumerate((1, 3, 4))
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


def test_heads_learn_from_tokens_that_may_exit(tiny_decoder):
    trace = record_tokens(tiny_decoder(), [(prompt, [*response, 20, 21, 22]) for prompt, response in ROWS])
    assert torch.equal(RECIPE.tokens_for_heads(trace), trace.may_exit), "as many as there are"
    few = replace(RECIPE, head_tokens=7).tokens_for_heads(trace)
    assert len(few.unique()) == 7
    assert (trace.step[few] > 0).all()


def test_a_decoder_without_early_exits_needs_no_training(tiny_decoder):
    model = tiny_decoder(exit_layers=())
    before = model.clone_weights()
    train_exits(model, make_text_task(), RECIPE)
    assert not changed_parts(model, before)


class TestCrossEntropyThroughTheHead:
    @pytest.fixture
    def parts(self):
        torch.manual_seed(0)
        states, head = torch.randn(11, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
        return states, head, torch.randint(30, (11,)), torch.rand(11)

    def gradients(self, loss, parts):
        return loss.detach(), *torch.autograd.grad(loss * 3, parts[:2])

    @pytest.mark.parametrize("kind", ["tokens", "distributions"])
    def test_weighted_cross_entropy_equals_torchs(self, parts, monkeypatch, kind):
        monkeypatch.setattr(decoder_backbone, "_TOKENS_AT_A_TIME", 4)
        states, head, targets, weights = parts
        wanted = targets if kind == "tokens" else torch.randn(11, 30).softmax(dim=-1)
        stock = (functional.cross_entropy(states @ head.T, wanted, reduction="none") * weights).sum()
        ours = self.gradients(weighted_cross_entropy(states, head, wanted, weights), parts)
        for found, theirs in zip(ours, self.gradients(stock, parts), strict=True):
            torch.testing.assert_close(found, theirs)

    def test_bfloat16_rounds_products_alone(self, parts):
        exact = self.gradients(weighted_cross_entropy(*parts), parts)
        rough = self.gradients(weighted_cross_entropy(*parts, "bfloat16"), parts)
        assert {tensor.dtype for tensor in rough} == {torch.float32}
        for ours, theirs in zip(rough, exact, strict=True):
            assert not torch.equal(ours, theirs)
            torch.testing.assert_close(ours, theirs, atol=0.1, rtol=0.05)


class TestLosses:
    @pytest.mark.parametrize("adapter", ["low-rank", "head", "shared"])
    def test_joint_loss_by_hand_leaves_prompts_and_padding_out(self, tiny_decoder, adapter):
        model = tiny_decoder(exit_layers=(2,), adapter=adapter)
        expected = 0.0
        for tokens, targets in (([2, 7, 9, 30, 31], {2: 30, 3: 31, 4: 3}), ([2, 8, 40], {1: 40, 2: 3})):
            mask = torch.ones(1, len(tokens), dtype=torch.bool)
            states = model.exit_states(torch.tensor([tokens]), mask).answer_states[0]
            for column, target in targets.items():
                for index, layer in enumerate((2, 4)):
                    logits = model.logits(layer, states[column, index])
                    expected += functional.cross_entropy(logits, torch.tensor(target)).item() * layer / 6 / 5
        batch = collate_rows(model, ROWS)
        assert joint_loss("depth", 0.0, 0.0, model, batch).item() == pytest.approx(expected, rel=1e-4)
        batch.tokens[~batch.padding_mask] = 11
        assert joint_loss("depth", 0.0, 0.0, model, batch).item() == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("adapter", ["low-rank", "head", "shared"])
    def test_exits_are_taught_by_the_last_which_learns_labels(self, tiny_decoder, adapter):
        model = tiny_decoder(exit_layers=(2,), adapter=adapter)
        batch = collate_rows(model, ROWS)
        states = model.exit_states(batch.tokens, batch.padding_mask).answer_states[batch.gives_response]
        early, last = model.logits(2, states[:, 0]), model.logits(4, states[:, 1])
        taught = functional.cross_entropy(early, last.detach().softmax(dim=-1))
        labels = [functional.cross_entropy(logits, batch.targets) for logits in (early, last)]
        expected = (0.7 * taught + 0.3 * labels[0]) * 2 / 6 + labels[1] * 4 / 6
        found = joint_loss("depth", 0.7, 0.0, model, batch)
        torch.testing.assert_close(found, expected)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        gradients = [torch.autograd.grad(loss, weights, allow_unused=True) for loss in (found, expected)]
        for ours, theirs in zip(*gradients, strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs)

    def test_the_last_exit_alone_is_the_stock_models_loss(self, tiny_decoder):
        model = tiny_decoder(exit_layers=(4,), adapter="shared")
        batch = collate_rows(model, ROWS)
        logits = model.stock_logits(batch.tokens, batch.padding_mask)[batch.gives_response]
        expected = functional.cross_entropy(logits, batch.targets)
        for loss in (last_exit_loss(model, batch), joint_loss("depth", 0.7, 0.0, model, batch)):
            torch.testing.assert_close(loss, expected)

    def test_weights_of_exits(self):
        assert [exit_weights((1, 3), power) for power in (0, 1, 2)] == [[0.5, 0.5], [0.25, 0.75], [0.1, 0.9]]

    def test_deeper_layers_are_dropped_more_often(self, tiny_decoder):
        """p = dropout * (2 ** ((l - 1) / (L - 1)) - 1)."""
        assert skip_probability(1, 5, 0.2) == 0
        assert skip_probability(3, 5, 0.2) == pytest.approx(0.2 * (math.sqrt(2) - 1))
        assert skip_probability(5, 5, 0.2) == pytest.approx(0.2)
        model = tiny_decoder()
        batch = collate_rows(model, ROWS)
        stock = model.exit_states(batch.tokens, batch.padding_mask).answer_states
        assert torch.equal(states_with_layer_dropout(model, batch, 0.0), stock)
        torch.manual_seed(1)
        passes = torch.stack([states_with_layer_dropout(model, batch, 1.0) for _ in range(60)])
        assert torch.equal(passes[:, :, :, 3], passes[:, :, :, 2]), "layer 4 is skipped for certain"
        skipped = (passes[:, :, :, 1] == passes[:, :, :, 0]).flatten(2).all(-1)  # [passes, rows]: layer 2
        assert float(skipped.double().mean()) == pytest.approx(skip_probability(2, 4, 1.0), abs=0.13)
        assert (skipped[:, 0] != skipped[:, 1]).any(), "rows skip layers together"


class TestTheStage:
    @pytest.mark.parametrize(("family", "precision"), [("llama", "bfloat16"), ("gpt2", "float32")])
    def test_middle_layers_learn_to_predict_through_the_models_own_head(self, tiny_decoder, family, precision):
        model, task = tiny_decoder(family, adapter="shared"), make_text_task()
        before = model.clone_weights()
        recipe = replace(TUNING, backbone_steps=20, exit_weights="equal", precision=precision, group_by_length=True)

        @torch.no_grad()
        def losses():
            trace = record_tokens(model, training_rows(model, replace(task, train=task.test), recipe))
            logits = [model.logits(layer, trace.answer_states[:, i]) for i, layer in enumerate(model.exit_layers)]
            return torch.stack([functional.cross_entropy(of_exit, trace.targets) for of_exit in logits])

        first = losses()
        trace = train_exits(model, task, recipe)
        assert changed_parts(model, before) == {"backbone"}
        assert (losses() < first - 0.2).all()
        again = record_tokens(model, training_rows(model, task, recipe))
        assert trace.answer_states.dtype == torch.float16
        found = trace.answer_states.float()  # not of layers in bfloat16
        torch.testing.assert_close(found, again.answer_states, atol=2e-2, rtol=2e-2)

    def test_low_rank_updates_leave_stock_layers(self, tiny_decoder, tmp_path):
        models = [tiny_decoder(), tiny_decoder()]
        before, names = models[0].clone_weights(), list(models[0].state_dict())
        recipe = replace(TUNING, trains="lora", backbone_learning_rate=1e-2, precision="bfloat16", store=tmp_path)
        for model in models:
            train_exits(model, make_text_task(), recipe)
        weights = models[0].state_dict()
        assert list(weights) == names
        learned = {name for name, tensor in weights.items() if not torch.equal(tensor, before[name])}
        assert {name.split(".")[0] for name in learned} == {"backbone", "exit_adapters"}
        assert all("self_attn" in name for name in learned if name.startswith("backbone"))
        assert same_weights(*models), "from the store"

    def test_decoders_with_other_exits_share_the_training_of_the_last_one(self, tiny_decoder, tmp_path, monkeypatch):
        steps, real = [], DrawnRows.batch
        monkeypatch.setattr(DrawnRows, "batch", lambda source, rows, at: steps.append(at) or real(source, rows, at))
        recipe = replace(TUNING, store=tmp_path)
        others = (tiny_decoder(), tiny_decoder(exit_layers=(2,), adapter="shared", closing_layers=1))
        for model in others:
            before = model.clone_weights()
            train_last_token_exit(model, make_text_task(), recipe)
            assert changed_parts(model, before) == {"backbone"}
            assert not any(module.training for module in model.modules())
        assert len(steps) == TUNING.backbone_steps
        assert same_weights(*(model.backbone for model in others))

    def test_rows_without_a_response_are_not_drawn(self, tiny_decoder):
        source = DrawnRows(tiny_decoder(), [([2, 7], []), *ROWS], draws=6, seed=0)
        assert 0 not in source.numbers
        assert source.batch(torch.tensor([0, 1]), 1).targets.numel() == 5

    def test_few_rows_may_be_traced_of_those_that_the_backbone_learns_from(self, tiny_decoder):
        trace = train_exits(tiny_decoder(), make_text_task(), replace(TUNING, traced_rows=4))
        assert trace.row.unique().tolist() == [0, 1, 2, 3]
