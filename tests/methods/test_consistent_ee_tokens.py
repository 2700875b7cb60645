"""ConsistentEE on tokens: its reward, its stages, its rule; and that it is the method of classification, on tokens."""

from dataclasses import replace

import pytest
import torch
from conftest import make_text_task
from torch.nn import functional

from consistentee.errors import UserError
from consistentee.methods.consistent_ee import tokens as consistent_ee_tokens
from consistentee.methods.consistent_ee.instances import ConsistentEE
from consistentee.methods.consistent_ee.tokens import (
    ConsistentEETokens,
    exit_consistent_loss,
    memorized_exit_layer,
    policy_stage_loss,
    token_policy_spec,
)
from consistentee.methods.policy import POLICY
from consistentee.methods.reward import rewards
from consistentee.training.token_answers import exit_answers
from consistentee.models.encoder.multi_exit_model import LayerOutputs
from consistentee.traces.token_trace import record_tokens
from consistentee.traces.walk import replay
from consistentee.training.decoder import stages as token_training
from consistentee.training.sources import DrawnTokens
from consistentee.training.recipe import TokenRecipe

RECIPE = TokenRecipe(
    exit_steps=10, exit_batch_size=16, exit_learning_rate=1e-2, head_steps=10, head_batch_size=16, head_tokens=60
)
ROWS = [([2, 7, 9], [30, 31, 3]), ([2, 8], [40, 3])]
READS = ["state", "state+confidence", "confidence"]


def add_random_policy(model, reads, conditioned=False):
    head = model.add_head(POLICY, token_policy_spec(reads, conditioned))
    generator = torch.Generator().manual_seed(2)
    head.load_state_dict({n: torch.randn(t.shape, generator=generator) for n, t in head.state_dict().items()})


def all_states(trace):
    """Return all tokens of a trace as one batch, in their order."""
    source = DrawnTokens(trace, torch.arange(len(trace)), len(trace), seed=0)
    return source.batch(source.tokens.argsort(), 0)


def test_memorized_exit_layer_by_hand():
    correct = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0]], dtype=torch.bool)
    assert memorized_exit_layer(correct, (6, 12, 30)).tolist() == [6, 12, 30, 30, 30]


def test_answers_by_hand(tiny_decoder):
    model = tiny_decoder(exit_layers=(2,))
    trace = record_tokens(model, ROWS)
    logits = torch.stack([model.logits(layer, trace.speaking[:, i]) for i, layer in enumerate((2, 4))], dim=1)
    named = logits.argmax(-1)
    answers = exit_answers(trace, with_confidence=True)
    assert torch.equal(answers.predictions, named)
    for judge, wanted in (("label", trace.targets), ("full model", named[:, 1])):
        expected = -logits.log_softmax(-1).gather(-1, wanted[:, None, None].expand(-1, 2, 1)).squeeze(-1)
        torch.testing.assert_close(answers.losses(judge), expected)
        assert torch.equal(answers.correct(judge), named == wanted[:, None])
    assert torch.equal(answers.confidence[:, 1, 3], (named[:, 0] == named[:, 1]).float())
    assert exit_answers(trace).confidence is None


def test_answers_are_stored_and_depend_on_the_exits(tiny_decoder, tmp_path, monkeypatch):
    model = tiny_decoder()
    trace = record_tokens(model, ROWS)
    first = exit_answers(trace, store=tmp_path)
    monkeypatch.setattr(model, "logits", lambda *_: pytest.fail("the store was not used"))
    assert exit_answers(trace, store=tmp_path).confidence is None
    assert torch.equal(exit_answers(trace, store=tmp_path).label_losses, first.label_losses)
    monkeypatch.undo()
    with torch.no_grad():
        for parameter in model.exit_adapters.parameters():
            parameter.add_(0.1)
    assert not torch.equal(exit_answers(trace, store=tmp_path).label_losses, first.label_losses)


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("estimator", ["exact", "reinforce"])
def test_objective_is_that_of_classification_on_the_same_tensors(tiny_decoder, reads, estimator):
    """Where every layer is an exit, a token is a row and its next token a label."""
    model = tiny_decoder()
    trace = record_tokens(model, [(prompt, [*response, *range(20, 60)]) for prompt, response in ROWS])
    add_random_policy(model, reads)
    answers, batch = exit_answers(trace, with_confidence=reads != "state"), all_states(trace)
    hardness = memorized_exit_layer(answers.correct("label"), model.exit_layers)
    method = ConsistentEETokens(alpha=0.3, policy_reads=reads, estimator=estimator)
    torch.manual_seed(0)
    loss = policy_stage_loss(method, answers, hardness, model, batch)

    logits = torch.stack(
        [model.logits(layer, batch.speaking[:, i]) for i, layer in enumerate(model.exit_layers)], dim=1
    )
    outputs = LayerOutputs(batch.speaking, model.state(batch.speaking), logits)
    classification = ConsistentEE(alpha=0.3, policy_reads=reads, estimator=estimator, rollouts=method.rollouts)
    probabilities = classification.ask_policy(model, outputs, torch.full((len(trace),), 0.3))
    costs = classification.cost_of_answers(outputs, trace.targets)
    torch.manual_seed(0)
    expected = classification.policy_loss(probabilities, rewards(costs, 0.3, hardness))
    torch.testing.assert_close(loss, expected)


def test_reward_counts_true_layers(tiny_decoder, monkeypatch):
    model = tiny_decoder(exit_layers=(3,))
    trace = record_tokens(model, ROWS)
    add_random_policy(model, "state")
    answers = exit_answers(trace)
    given = []
    monkeypatch.setattr(ConsistentEETokens, "policy_loss", lambda _, p, reward: given.append(reward) or p.sum())
    hardness = torch.tensor([3, 4, 3, 4, 3])
    policy_stage_loss(ConsistentEETokens(alpha=0.5), answers, hardness, model, all_states(trace))
    price = 0.5 * (1 - hardness / 4)
    expected = -answers.label_losses - torch.stack([price * 3, price * 4], dim=1)
    torch.testing.assert_close(given[0], expected)


def test_prompts_and_first_tokens_are_outside_of_the_reward(tiny_decoder, monkeypatch):
    asked = []
    real = consistent_ee_tokens.exit_answers
    monkeypatch.setattr(
        consistent_ee_tokens, "exit_answers", lambda trace, *a, **k: asked.append(trace) or real(trace, *a, **k)
    )
    model = ConsistentEETokens().fit(tiny_decoder(), make_text_task(), RECIPE)
    (trace,) = asked
    assert len(trace) == RECIPE.head_tokens
    assert trace.step.min() == 1
    responses = {token for _, response in RECIPE.training_rows(model, make_text_task()) for token in response[1:]}
    assert set(trace.targets.tolist()) <= responses


@pytest.mark.parametrize("reads", READS)
def test_rule_follows_the_probabilities_that_were_trained(tiny_decoder, reads):
    model = tiny_decoder(exit_layers=(1, 3))
    trace = record_tokens(model, [(prompt, [*response, *range(20, 60)]) for prompt, response in ROWS])
    add_random_policy(model, reads)
    method = ConsistentEETokens(policy_reads=reads)
    confidence = exit_answers(trace, with_confidence=reads != "state").confidence
    with torch.no_grad():
        p = method.ask_policy(model, all_states(trace), confidence, torch.ones(len(trace)))
    first = p[:, 0].sort().values
    threshold = first[len(first) // 2 : len(first) // 2 + 2].mean().item()  # between two values, on neither
    leaves = torch.cat([p[:, :-1] > threshold, torch.ones(len(p), 1, dtype=torch.bool)], dim=1)
    expected = torch.tensor([1, 3, 4])[leaves.int().argmax(dim=1)].where(trace.step > 0, torch.tensor(4))
    assert expected.unique().numel() > 1
    assert torch.equal(replay(method.rule(model, threshold), trace), expected)


def test_policy_stage_trains_the_policy_alone(tiny_decoder):
    models = [tiny_decoder(), tiny_decoder()]
    for model, steps in zip(models, (0, 10), strict=True):
        ConsistentEETokens().fit(model, make_text_task(), replace(RECIPE, head_steps=steps))
    first, second = (model.state_dict() for model in models)
    assert {name.split(".")[0] for name in first if not torch.equal(first[name], second[name])} == {"exit_heads"}


def test_third_stage_trains_exits_and_fits_the_policy_again(tiny_decoder, monkeypatch):
    run = []
    real = token_training.run_stage
    monkeypatch.setattr(
        token_training, "run_stage", lambda m, source, stage, r: run.append(stage.name) or real(m, source, stage, r)
    )
    models = [tiny_decoder(), tiny_decoder()]
    for model, steps in zip(models, (0, 10), strict=True):
        ConsistentEETokens(consistent_steps=steps).fit(model, make_text_task(), RECIPE)
    assert run == ["exits", "policy", "exits", "policy", "exit-consistent", "policy"]
    first, second = (model.state_dict() for model in models)
    parts = {name.split(".")[0] for name in first if not torch.equal(first[name], second[name])}
    assert parts == {"exit_adapters", "exit_heads"}


def test_exit_consistent_loss_by_hand(tiny_decoder):
    """A policy that always leaves at layer 3 asks that exit alone to be right; one that never leaves asks none."""
    model = tiny_decoder(exit_layers=(1, 3))
    trace = record_tokens(model, ROWS)
    answers, batch = exit_answers(trace), all_states(trace)
    model.add_head(POLICY, token_policy_spec("state", conditioned=False))
    losses = {}
    for name, biases in {"third": (-50.0, 50.0), "never": (-50.0, -50.0)}.items():
        with torch.no_grad():
            for layer, bias in zip((1, 3), biases, strict=True):
                model.head(POLICY).modules_by_layer[layer - 1].bias.fill_(bias)
        losses[name] = exit_consistent_loss(ConsistentEETokens(), "label", answers, model, batch)
    expected = functional.cross_entropy(model.logits(3, batch.speaking[:, 1]), batch.targets)
    torch.testing.assert_close(losses["third"], expected)
    assert losses["never"] == 0
    losses["never"].backward()


@pytest.mark.parametrize(
    "options",
    [
        {"estimator": "reinforce"},
        {"reward": "vanilla"},
        {"reward_loss": "error"},
        {"judged_by": "full model"},
        {"policy_reads": "state+confidence"},
        {"policy_reads": "confidence", "consistent_steps": 2},
    ],
    ids=str,
)
def test_every_option_trains(tiny_decoder, options):
    method = ConsistentEETokens(**options)
    model = method.fit(tiny_decoder(), make_text_task(), RECIPE)
    trace = record_tokens(model, ROWS)
    assert set(replay(method.rule(model, 0.5), trace).tolist()) <= set(model.exit_layers)


def test_what_an_exit_costs_is_judged_by_labels_or_the_full_model(tiny_decoder):
    answers = exit_answers(record_tokens(tiny_decoder(), ROWS))
    named, label = answers.predictions, answers.targets.unsqueeze(1)
    assert (named != label).any()
    assert (named != named[:, -1:]).any()
    by_label = ConsistentEETokens(reward_loss="error").costs(answers)
    by_full_model = ConsistentEETokens(reward_loss="error", judged_by="full model").costs(answers)
    assert torch.equal(by_label, (named != label).float())
    assert torch.equal(by_full_model, (named != named[:, -1:]).float())
    assert torch.equal(ConsistentEETokens(judged_by="full model").costs(answers), answers.full_model_losses)
    assert torch.equal(ConsistentEETokens().costs(answers), answers.label_losses)


def test_exits_without_weights_have_no_third_stage(tiny_decoder):
    with pytest.raises(UserError, match="have no weights of their own with adapter='shared'; leave consistent_steps"):
        ConsistentEETokens(consistent_steps=2).fit(tiny_decoder(adapter="shared"), make_text_task(), RECIPE)


def test_a_higher_price_gives_earlier_exits(tiny_decoder):
    recipe = replace(RECIPE, head_steps=150, head_learning_rate=3e-2)
    averages = []
    for alpha in (0.0, 5.0):
        method = ConsistentEETokens(alpha=alpha, reward="vanilla")
        model = method.fit(tiny_decoder(), make_text_task(), recipe)
        trace = record_tokens(model, recipe.training_rows(model, make_text_task()))
        averages.append(replay(method.rule(model, 0.5), trace)[trace.may_exit].double().mean().item())
    assert averages[1] < 1.2
    assert averages[0] > 1.5


def test_a_decoder_without_early_exits_needs_no_policy(tiny_decoder):
    model = ConsistentEETokens().fit(tiny_decoder(exit_layers=()), make_text_task(), RECIPE)
    assert replay(ConsistentEETokens().rule(model, 0.5), record_tokens(model, ROWS)).tolist() == [4] * 5
