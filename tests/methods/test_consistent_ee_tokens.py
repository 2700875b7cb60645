"""ConsistentEE on tokens: its reward, its stages, its rule; the ladder of prices and the tuned variant."""

from dataclasses import replace

import pytest
import torch
from comparing import changed_parts
from torch.nn import functional

from benchmarks.testing.tiny import make_text_task
from consistentee import HeadSpec, TokenRecipe, UserError, record_tokens, sweep
from consistentee.methods.consistent_ee import tokens
from consistentee.methods.consistent_ee.paper import POLICY, ConsistentEEPaper
from consistentee.methods.consistent_ee.tokens import (
    ALWAYS,
    ConsistentEETokens,
    ConsistentEETokensLadder,
    memorized_exit_layer,
)
from consistentee.models.encoder import LayerOutputs
from consistentee.training import FeatureBatch, decoder
from consistentee.training.decoder import DrawnTokens, exit_answers

RECIPE = TokenRecipe(exit_steps=4, exit_batch_size=16, head_steps=6, head_batch_size=16, head_tokens=60)
ROWS = [([2, 7, 9], [30, 31, 3]), ([2, 8], [40, 3])]
LONG_ROWS = [(prompt, [*response[:1], *range(20, 60)]) for prompt, response in ROWS]
LADDER = ConsistentEETokensLadder(rungs=3, lowest_price=0.01, highest_price=1.0)


def with_random_policy(model, method):
    """Add the policy of a method to a model, drawn so that tokens exit at different layers."""
    head = model.add_head(POLICY, HeadSpec(outputs=len(method.prices)))
    generator = torch.Generator().manual_seed(2)
    head.load_state_dict({n: torch.randn(t.shape, generator=generator) for n, t in head.state_dict().items()})
    return model


def all_states(trace):
    """Return all tokens of a trace as one batch, in their order."""
    return DrawnTokens(trace, torch.arange(len(trace))).batch(torch.arange(len(trace)), 0)


def test_memorized_exit_layer_by_hand():
    correct = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0]], dtype=torch.bool)
    assert memorized_exit_layer(correct, (6, 12, 30)).tolist() == [6, 12, 30, 30, 30]


class TestAnswers:
    def test_by_hand(self, tiny_decoder):
        model = tiny_decoder(exit_layers=(2,))
        trace = record_tokens(model, ROWS)
        logits = torch.stack([model.logits(layer, trace.answer_states[:, i]) for i, layer in enumerate((2, 4))], dim=1)
        named = logits.argmax(-1)
        answers = exit_answers(trace)
        assert torch.equal(answers.predictions, named)
        expected = -logits.log_softmax(-1).gather(-1, trace.targets[:, None, None].expand(-1, 2, 1)).squeeze(-1)
        torch.testing.assert_close(answers.losses, expected)
        assert torch.equal(answers.correct, named == trace.targets[:, None])

    def test_they_are_stored_and_depend_on_the_exits(self, tiny_decoder, tmp_path, monkeypatch):
        model = tiny_decoder()
        trace = record_tokens(model, ROWS)
        first = exit_answers(trace, store=tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(model, "logits", lambda *_: pytest.fail("the store was not used"))
            assert torch.equal(exit_answers(trace, store=tmp_path).losses, first.losses)
        with torch.no_grad():
            for parameter in model.exit_adapters.parameters():
                parameter.add_(0.1)
        assert not torch.equal(exit_answers(trace, store=tmp_path).losses, first.losses)


class TestStages:
    @pytest.mark.parametrize("estimator", [{}, {"estimator": "reinforce", "rollouts": 5}])
    def test_objective_is_that_of_classification_on_the_same_tensors(self, tiny_decoder, estimator):
        """If every layer is an exit, a token is a row and its next token a label."""
        method = ConsistentEETokens(alpha=0.3, **estimator)
        model = with_random_policy(tiny_decoder(), method)
        trace = record_tokens(model, LONG_ROWS)
        answers, batch = exit_answers(trace), all_states(trace)
        hardness = memorized_exit_layer(answers.correct, model.exit_layers)
        torch.manual_seed(0)
        loss = method.policy_stage_loss(answers, hardness, model, batch)

        logits = torch.stack(
            [model.logits(layer, batch.answer_states[:, i]) for i, layer in enumerate(model.exit_layers)], dim=1
        )
        outputs = LayerOutputs(batch.answer_states, model.state(batch.answer_states), logits)
        of_rows = ConsistentEEPaper(alpha=0.3, **(estimator or {"estimator": "exact"}))
        torch.manual_seed(0)
        rows = FeatureBatch(outputs, trace.targets, torch.arange(len(trace)), 0)
        torch.testing.assert_close(loss, of_rows.policy_stage_loss(hardness, model, rows))

    def test_reward_counts_true_layers(self, tiny_decoder, monkeypatch):
        method, given = ConsistentEETokens(alpha=0.5), []
        model = with_random_policy(tiny_decoder(exit_layers=(3,)), method)
        trace = record_tokens(model, ROWS)
        answers, hardness = exit_answers(trace), torch.tensor([3, 4, 3, 4, 3])
        monkeypatch.setattr(tokens, "exact_policy_loss", lambda p, reward: given.append(reward) or p.sum())
        method.policy_stage_loss(answers, hardness, model, all_states(trace))
        price = 0.5 * (1 - hardness / 4)
        expected = -answers.losses - torch.stack([price * 3, price * 4], dim=1)
        torch.testing.assert_close(given[0], expected)

    def test_third_stage_trains_exits_and_fits_the_policy_again(self, tiny_decoder, monkeypatch):
        run, real = [], decoder.run_stage
        monkeypatch.setattr(
            decoder, "run_stage", lambda m, source, stage, r: run.append(stage.name) or real(m, source, stage, r)
        )
        models = [tiny_decoder(), tiny_decoder()]
        for model, steps in zip(models, (0, 5), strict=True):
            ConsistentEETokens(consistent_steps=steps).fit(model, make_text_task(), RECIPE)
        assert run == ["exits", "policy", "exits", "policy", "exit-consistent", "policy"]
        assert changed_parts(models[0], models[1].state_dict()) == {"exit_adapters", "exit_heads"}

    def test_exits_learn_at_drawn_exits_alone(self, tiny_decoder):
        method = ConsistentEETokens()
        model = with_random_policy(tiny_decoder(exit_layers=(2,)), method)
        trace = record_tokens(model, ROWS)
        batch, policy = all_states(trace), model.head(POLICY)
        wanted = functional.cross_entropy(model.logits(2, batch.answer_states[:, 0]), batch.targets)
        for bias, expected in ((1e4, wanted), (-1e4, torch.tensor(0.0))):  # all tokens exit at layer 2, or none
            filled = {n: torch.full_like(t, bias) * (t.dim() == 1) for n, t in policy.state_dict().items()}
            policy.load_state_dict(filled)
            torch.testing.assert_close(method.exit_consistent_loss("label", model, batch), expected)

    def test_exits_without_weights_have_no_third_stage(self, tiny_decoder):
        with pytest.raises(UserError, match="consistent_steps"):
            ConsistentEETokens(consistent_steps=2).fit(tiny_decoder(adapter="shared"), make_text_task(), RECIPE)


class TestPrices:
    def test_a_ladder_is_even_by_logarithms_and_the_nearest_rung_decides(self, tiny_decoder):
        assert LADDER.knob_values(None) == pytest.approx((1e6, 1.0, 0.1, 0.01, 0.0))
        for price, rung in ((0.012, 0), (0.2, 1), (0.5, 2), (20.0, 2)):
            assert LADDER.rule(tiny_decoder(), price).rungs == [rung]

    def test_rules_follow_the_policies_that_were_trained(self, tiny_decoder):
        """Training computes P(exit) of all prices and exits at once, the rule of one price, exit by exit."""
        model = with_random_policy(tiny_decoder(exit_layers=(1, 3)), LADDER)
        trace = record_tokens(model, LONG_ROWS)
        with torch.no_grad():
            policies = LADDER.policies(model, all_states(trace))
        exits = sweep([LADDER.rule(model, price) for price in LADDER.prices], trace)
        for p, found in zip(policies, exits, strict=True):
            assert (p[:, -1] == 1).all()
            expected = torch.tensor([1, 3, 4])[(p > 0.5).int().argmax(dim=1)]
            assert torch.equal(found[trace.may_exit], expected[trace.may_exit])
        assert exits[:, trace.may_exit].unique().numel() > 1

    def test_a_rising_price_is_that_of_its_step_and_stays_on_the_ladder(self, tiny_decoder):
        model, rising = (
            with_random_policy(tiny_decoder(exit_layers=(1, 3)), LADDER),
            replace(LADDER, price_rise=100.0, horizon=5),
        )
        trace = record_tokens(model, LONG_ROWS)
        at_prices = sweep([LADDER.rule(model, price) for price in (0.01, 0.1, 1.0)], trace)
        steps = trace.step.clamp_max(4)
        for knob, rungs in {0.01: (0, 0, 0, 1, 1), 0.1: (0, 1, 1, 1, 2), 1.0: (1, 1, 2, 2, 2)}.items():
            wanted = at_prices.gather(0, torch.tensor(rungs)[steps].unsqueeze(0))[0]
            assert torch.equal(sweep([rising.rule(model, knob)], trace)[0], wanted)
        assert not torch.equal(at_prices[0], at_prices[2]), "equal exits at all prices show nothing"
        for never_or_always in (0.0, ALWAYS):
            rules = [method.rule(model, never_or_always) for method in (LADDER, rising)]
            assert torch.equal(*sweep(rules, trace))
