"""Training a decoder's backbone: losses at its exits, through the LM head; precision, batches, resuming, the store."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import make_text_task
from torch.nn import functional

from consistentee.errors import UserError
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.traces.token_rows import collate_rows
from consistentee.traces.token_trace import record_tokens
from consistentee.training import checkpoints, loop
from consistentee.training.decoder import head_loss
from consistentee.training.decoder_backbone import (
    ExitLosses,
    exit_weights,
    joint_loss,
    last_exit_loss,
    skip_probability,
    states_with_layer_dropout,
    taught_loss,
)
from consistentee.training.decoder_backbone import train_backbone
from consistentee.training.head_loss import weighted_cross_entropy
from consistentee.training.sources import DrawnRows, StepRows
from consistentee.training.decoder import train_exits, train_last_exit
from consistentee.training.recipe import TokenRecipe

RECIPE = TokenRecipe(exit_steps=5, exit_batch_size=16, trains="all", backbone_steps=3, backbone_learning_rate=3e-3)
ROWS = [([2, 7, 9], [30, 31, 3]), ([2, 8], [40, 3])]
DEPTH = ExitLosses("depth", "all", 0.0)


def step_rows(model, number=0, done=0.0):
    return StepRows(**vars(collate_rows(model, ROWS)), number=number, done=done)


def changed(model, before):
    """Return the parts of the model whose weights are not what they were."""
    return {name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def same(first, second):
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


class TestCrossEntropyThroughTheHead:
    @pytest.fixture
    def parts(self):
        torch.manual_seed(0)
        states, head = torch.randn(11, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
        return states, head, torch.randint(30, (11,)), torch.rand(11)

    def gradients(self, loss, parts):
        found = torch.autograd.grad(loss * 3, parts[:2])
        return loss.detach(), *found

    def test_it_is_torchs_own(self, parts, monkeypatch):
        monkeypatch.setattr(head_loss, "CHUNK", 4)
        states, head, targets, weights = parts
        stock = (functional.cross_entropy(states @ head.T, targets, reduction="none") * weights).sum()
        for ours, theirs in zip(
            self.gradients(weighted_cross_entropy(*parts), parts), self.gradients(stock, parts), strict=True
        ):
            torch.testing.assert_close(ours, theirs)

    def test_distributions_as_targets_are_torchs_too(self, parts, monkeypatch):
        monkeypatch.setattr(head_loss, "CHUNK", 4)
        states, head, _, weights = parts
        wanted = torch.randn(11, 30).softmax(dim=-1)
        stock = (functional.cross_entropy(states @ head.T, wanted, reduction="none") * weights).sum()
        ours = self.gradients(weighted_cross_entropy(states, head, wanted, weights), parts)
        for found, theirs in zip(ours, self.gradients(stock, parts), strict=True):
            torch.testing.assert_close(found, theirs)

    def test_in_bfloat16_products_alone_are_rough(self, parts):
        exact = self.gradients(weighted_cross_entropy(*parts), parts)
        rough = self.gradients(weighted_cross_entropy(*parts, "bfloat16"), parts)
        assert {tensor.dtype for tensor in rough} == {torch.float32}
        for ours, theirs in zip(rough, exact, strict=True):
            assert not torch.equal(ours, theirs)
            torch.testing.assert_close(ours, theirs, atol=0.1, rtol=0.05)

    def test_a_frozen_head_gets_no_gradient(self, parts):
        states, head, targets, weights = parts
        loss = weighted_cross_entropy(states, head.detach(), targets, weights)
        loss.backward()
        assert states.grad is not None
        assert head.grad is None

    def test_what_is_nearly_impossible_has_a_finite_loss(self):
        head, target = torch.tensor([[0.0], [900.0]]), torch.tensor([0])
        assert weighted_cross_entropy(torch.ones(1, 1), head, target, torch.ones(1)) == 900.0


class TestLosses:
    @pytest.mark.parametrize("adapter", ["low-rank", "head", "shared"])
    def test_joint_loss_by_hand_leaves_prompts_and_padding_out(self, tiny_decoder, adapter):
        model = tiny_decoder(exit_layers=(2,), adapter=adapter)
        expected = 0.0
        for tokens, targets in (([2, 7, 9, 30, 31], {2: 30, 3: 31, 4: 3}), ([2, 8, 40], {1: 40, 2: 3})):
            states = model.exit_states(torch.tensor([tokens]), torch.ones(1, len(tokens), dtype=torch.bool)).speaking[0]
            for column, target in targets.items():
                for index, layer in enumerate((2, 4)):
                    logits = model.logits(layer, states[column, index])
                    expected += functional.cross_entropy(logits, torch.tensor(target)).item() * layer / 6 / 5
        batch = step_rows(model)
        assert joint_loss(DEPTH, model, batch).item() == pytest.approx(expected, rel=1e-4)
        batch.tokens[~batch.padding_mask] = 11
        assert joint_loss(DEPTH, model, batch).item() == pytest.approx(expected, rel=1e-4)

    def test_the_last_exit_alone_is_the_stock_models_loss(self, tiny_decoder):
        model = tiny_decoder()
        batch = step_rows(model)
        says = model.stock_logits(batch.tokens, batch.padding_mask)[batch.gives_response]
        torch.testing.assert_close(last_exit_loss(model, batch), functional.cross_entropy(says, batch.targets))

    @pytest.mark.parametrize("adapter", ["low-rank", "head", "shared"])
    def test_exits_are_taught_by_the_last_which_learns_labels(self, tiny_decoder, adapter):
        model = tiny_decoder(exit_layers=(2,), adapter=adapter)
        batch = step_rows(model)
        states = model.exit_states(batch.tokens, batch.padding_mask).speaking[batch.gives_response]
        early, last = model.logits(2, states[:, 0]), model.logits(4, states[:, 1])
        taught = functional.cross_entropy(early, last.detach().softmax(dim=-1))
        labels = [functional.cross_entropy(says, batch.targets) for says in (early, last)]
        expected = (0.7 * taught + 0.3 * labels[0]) * 2 / 6 + labels[1] * 4 / 6
        found = taught_loss(0.7, DEPTH, model, batch)
        torch.testing.assert_close(found, expected)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        for ours, theirs in zip(
            torch.autograd.grad(found, weights, allow_unused=True),
            torch.autograd.grad(expected, weights, allow_unused=True),
            strict=True,
        ):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs)

    def test_the_last_exit_alone_has_nobody_to_teach(self, tiny_decoder):
        model = tiny_decoder(exit_layers=(4,), adapter="shared")
        batch = step_rows(model)
        torch.testing.assert_close(taught_loss(0.7, DEPTH, model, batch), last_exit_loss(model, batch))

    def test_weights_by_depth_and_alike(self):
        assert exit_weights((1, 3)) == [0.25, 0.75]
        assert exit_weights((1, 3), power=2) == [0.1, 0.9]
        assert exit_weights((1, 3), power=0) == [0.5, 0.5]
        assert ExitLosses("equal", "all", 0.0).weights_at((1, 2, 4), 7, 0.9).tolist() == pytest.approx([1 / 3] * 3)

    def test_rotating_exits_learn_in_turn_beside_the_last(self):
        losses = ExitLosses("depth", "rotational", 0.0)
        weights = [losses.weights_at((1, 3, 4), step, 0.0).tolist() for step in range(3)]
        assert weights[0] == weights[2] == pytest.approx([1 / 5, 0, 4 / 5])
        assert weights[1] == pytest.approx([0, 3 / 7, 4 / 7])

    def test_exits_join_one_by_one_from_the_deepest(self):
        losses = ExitLosses("equal", "gradual", 0.0)
        learning = [losses.weights_at((1, 2, 3, 4), 0, done).count_nonzero().item() for done in (0, 0.13, 0.26, 0.4, 1)]
        assert learning == [1, 2, 3, 4, 4]
        assert losses.weights_at((1, 2, 3, 4), 0, 0.13).tolist() == pytest.approx([0, 0, 0.5, 0.5])

    def test_every_setting_is_a_stage_of_its_own_and_is_trained_once(self, tiny_decoder, tmp_path):
        changes = [
            {},
            {"exit_weights": "equal"},
            {"exit_curriculum": "rotational"},
            {"layer_dropout": 0.9},
            {"taught_share": 0.5},
        ]
        weights = []
        for change in (*changes, changes[1]):
            model = tiny_decoder()
            train_exits(model, make_text_task(), replace(RECIPE, store=tmp_path, exit_steps=0, **change))
            weights.append(model.state_dict())
        assert len(list(tmp_path.glob("backbone-all-*.safetensors"))) == len(changes)
        assert same(weights[1], weights[-1])
        assert not any(same(weights[0], other) for other in weights[1:])


class TestLayerDropout:
    def test_deeper_layers_are_skipped_more_often(self):
        """p = dropout * (2 ** ((l - 1) / (L - 1)) - 1)."""
        assert skip_probability(1, 5, 0.2) == 0
        assert skip_probability(3, 5, 0.2) == pytest.approx(0.2 * (math.sqrt(2) - 1))
        assert skip_probability(5, 5, 0.2) == pytest.approx(0.2)

    def test_states(self, tiny_decoder):
        model = tiny_decoder()
        batch = step_rows(model)
        stock = model.exit_states(batch.tokens, batch.padding_mask).speaking
        assert torch.equal(states_with_layer_dropout(model, batch, 0.0), stock)
        torch.manual_seed(0)
        always = states_with_layer_dropout(model, batch, 1.0)  # layer 4 is skipped for certain
        assert torch.equal(always[:, :, 3], always[:, :, 2])
        torch.manual_seed(1)
        passes = torch.stack([states_with_layer_dropout(model, batch, 1.0) for _ in range(120)])
        skipped = (passes[:, :, :, 1] == passes[:, :, :, 0]).flatten(2).all(-1)  # [passes, rows]: layer 2
        assert float(skipped.double().mean()) == pytest.approx(skip_probability(2, 4, 1.0), abs=0.09)
        assert (skipped[:, 0] != skipped[:, 1]).any(), "rows skip layers together"


class TestTheStage:
    @pytest.mark.parametrize("family", ["llama", "gpt2"])
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_middle_layers_learn_to_speak_through_the_models_own_head(self, tiny_decoder, family, precision):
        model, task = tiny_decoder(family, adapter="shared"), make_text_task()
        before = model.clone_weights()
        recipe = replace(RECIPE, backbone_steps=30, exit_weights="equal", precision=precision, group_by_length=True)

        @torch.no_grad()
        def losses():
            trace = record_tokens(model, recipe.training_rows(model, replace(task, train=task.test)))
            says = [model.logits(layer, trace.states(i, trace.may_exit)) for i, layer in enumerate(model.exit_layers)]
            return torch.stack([functional.cross_entropy(logits, trace.targets[trace.may_exit]) for logits in says])

        first = losses()
        trace = train_exits(model, task, recipe)
        assert changed(model, before) == {"backbone"}
        assert (losses() < first - 0.3).all()
        again = record_tokens(model, recipe.training_rows(model, task))
        assert trace.speaking.dtype == torch.float16
        both = trace.speaking.float(), again.speaking
        torch.testing.assert_close(*both, atol=2e-2, rtol=2e-2)  # neither is in bfloat16

    def test_low_rank_updates_leave_stock_layers(self, tiny_decoder, tmp_path):
        models = [tiny_decoder(), tiny_decoder()]
        before, names = models[0].clone_weights(), list(models[0].state_dict())
        recipe = replace(RECIPE, trains="lora", backbone_learning_rate=1e-2, precision="bfloat16", store=tmp_path)
        for model in models:
            train_exits(model, make_text_task(), recipe)
        weights = models[0].state_dict()
        assert list(weights) == names
        learned = {name for name, tensor in weights.items() if not torch.equal(tensor, before[name])}
        assert {name.split(".")[0] for name in learned} == {"backbone", "exit_adapters"}
        assert all("self_attn" in name for name in learned if name.startswith("backbone"))
        assert same(weights, models[1].state_dict()), "from the store"

    def test_the_last_exit_can_learn_alone(self, tiny_decoder):
        model = tiny_decoder()
        before = model.clone_weights()
        train_last_exit(model, make_text_task(), RECIPE)
        assert changed(model, before) == {"backbone"}

    def test_decoders_with_other_exits_share_what_the_last_one_learns_alone(self, tiny_decoder, tmp_path, monkeypatch):
        steps, real = [], DrawnRows.batch

        def counted(source, rows, step):
            steps.append(step)
            return real(source, rows, step)

        monkeypatch.setattr(DrawnRows, "batch", counted)
        recipe = replace(RECIPE, store=tmp_path)
        others = (tiny_decoder(), tiny_decoder(exit_layers=(2,), adapter="shared", closing_layers=1))
        for model in others:
            train_last_exit(model, make_text_task(), recipe)
            assert not any(module.training for module in model.modules())
        assert len(steps) == RECIPE.backbone_steps
        assert same(*(model.backbone.state_dict() for model in others))

    def test_a_method_may_bring_a_loss_of_its_own(self, tiny_decoder):
        asked = []

        def loss(model, batch):
            asked.append(len(batch.targets))
            return last_exit_loss(model, batch) * 2

        model = tiny_decoder()
        train_backbone(model, RECIPE.training_rows(model, make_text_task()), RECIPE, loss)
        assert len(asked) == RECIPE.backbone_steps

    def test_interrupted_it_ends_as_if_it_had_not_been(self, tiny_decoder, tmp_path, monkeypatch):
        monkeypatch.setattr(loop, "CHECKPOINT_STEPS", 3)
        settings = {"precision": "bfloat16", "group_by_length": True, "exit_curriculum": "gradual"}
        recipe = replace(RECIPE, backbone_steps=8, layer_dropout=0.3, **settings)

        def trained(**changes):
            model = tiny_decoder(adapter="shared")
            train_exits(model, make_text_task(), replace(recipe, **changes))
            return model.state_dict()

        straight, steps, real = trained(), [], DrawnRows.batch

        def interrupted(source, rows, step):
            steps.append(step)
            if len(steps) == 6:
                raise KeyboardInterrupt
            return real(source, rows, step)

        monkeypatch.setattr(DrawnRows, "batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(store=tmp_path)
        assert same(straight, trained(store=tmp_path))
        assert steps == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7], "training goes on from the last checkpoint"

    def test_a_restart_goes_on_from_the_stage_of_a_recipe_without(self, tiny_decoder, tmp_path, monkeypatch):
        drawn, real = [], DrawnRows.batch

        def watched(source, rows, step):
            drawn.append(source.numbers[rows].tolist())
            return real(source, rows, step)

        monkeypatch.setattr(DrawnRows, "batch", watched)

        def trained(restarts, store):
            model = tiny_decoder(adapter="shared")
            train_exits(model, make_text_task(), replace(RECIPE, backbone_restarts=restarts, store=store))
            return model.state_dict()

        once, taken = trained(0, tmp_path), len(drawn)
        twice = trained(1, tmp_path)
        assert len(drawn) == 2 * taken, "the first run comes from the store"
        assert drawn[:taken] != drawn[taken:], "rows are drawn anew"
        assert not same(once, twice)
        assert same(twice, trained(1, None)), "as from the start"

    def test_a_checkpoint_is_due_after_some_minutes_too(self, tiny_decoder, tmp_path, monkeypatch):
        written = []
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
        for module in (loop, checkpoints):
            monkeypatch.setattr(module, "save_tensors", lambda tensors, _: written.append(tensors.get("step")))
        train_last_exit(tiny_decoder(), make_text_task(), replace(RECIPE, store=tmp_path))
        assert written == [1, 2, None], "the last one is the stage's result"

    def test_few_rows_may_be_traced_of_those_that_the_backbone_learns_from(self, tiny_decoder):
        model, task = tiny_decoder(), make_text_task()
        trace = train_exits(model, task, replace(RECIPE, traced_rows=4))
        assert trace.row.unique().tolist() == [0, 1, 2, 3]


class TestRows:
    def test_rows_of_like_length_make_a_batch(self, tiny_decoder, monkeypatch):
        padding, real = {}, DrawnRows.batch
        for grouped in (False, True):
            seen = padding.setdefault(grouped, [])

            def watched(source, rows, step, seen=seen):
                batch = real(source, rows, step)
                seen.append((~batch.padding_mask).sum().item())
                return batch

            monkeypatch.setattr(DrawnRows, "batch", watched)
            recipe = replace(RECIPE, backbone_steps=8, group_by_length=grouped)
            train_last_exit(tiny_decoder(), make_text_task(), recipe)
        assert sum(padding[True]) < 0.5 * sum(padding[False])

    def test_rows_without_a_response_are_not_drawn(self, tiny_decoder):
        source = DrawnRows(tiny_decoder(), [([2, 7], []), *ROWS], steps=3, batch_size=2, seed=0)
        assert 0 not in source.numbers
        batch = source.batch(torch.tensor([0, 1]), 1)
        assert batch.targets.numel() == 5
        assert (batch.number, batch.done) == (1, pytest.approx(1 / 3))


def test_layers_alone_are_computed_in_bfloat16_and_only_for_the_time_being(tiny_decoder):
    model = tiny_decoder()
    batch = collate_rows(model, ROWS)
    plain = model.exit_states(batch.tokens, batch.padding_mask).speaking
    with model.layers_in("bfloat16"):
        rough = model.exit_states(batch.tokens, batch.padding_mask).speaking
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, plain)
    torch.testing.assert_close(rough[batch.padding_mask], plain[batch.padding_mask], atol=0.4, rtol=0.05)
    assert torch.equal(model.exit_states(batch.tokens, batch.padding_mask).speaking, plain)
    with pytest.raises(UserError, match="no exit adapter"):
        MultiExitDecoder.head_weight(model, 9)
