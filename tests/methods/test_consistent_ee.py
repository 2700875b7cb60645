"""ConsistentEE on instances: its policies, its stages, its options; the ladder and the distilled variant."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import make_task

from consistentee.methods.consistent_ee import distilled, instances
from consistentee.methods.consistent_ee.distilled import JointDistillation
from consistentee.methods.consistent_ee.instances import ConsistentEE
from consistentee.methods.consistent_ee.ladder import ConsistentEELadder
from consistentee.methods.method import get_method
from consistentee.methods.policy import POLICY, PriceLadder, policy_logit, policy_outputs, policy_spec, rung_logits
from consistentee.methods.reward import exit_shares
from consistentee.signals import confidence_features
from consistentee.traces.instance_trace import record_outputs, record_trace
from consistentee.traces.walk import replay, sweep
from consistentee.training import encoder
from consistentee.training.encoder import layer_losses, training_source
from consistentee.training.recipe import Recipe

RECIPE = Recipe(epochs=1, batch_size=16, learning_rate=1e-3, head_learning_rate=1e-2, max_length=16, frozen_steps=4)
LADDER = ConsistentEELadder(rungs=3, lowest_price=0.01, highest_price=1.0)


@pytest.fixture
def with_policy(tiny_model):
    """Return a function: method -> a model with random weights of the method's policy."""

    def add(method):
        model = tiny_model()
        head = model.add_head(POLICY, method.policy_spec())
        generator = torch.Generator().manual_seed(2)
        head.load_state_dict({n: torch.randn(t.shape, generator=generator) for n, t in head.state_dict().items()})
        return model

    return add


def exits_of(probabilities, threshold):
    wants_out = torch.cat([probabilities[:, :-1] > threshold, torch.ones(len(probabilities), 1).bool()], dim=1)
    return wants_out.int().argmax(dim=1) + 1


def test_papers_policy_has_the_papers_shape(tiny_model):
    model = tiny_model()
    head = model.add_head(POLICY, policy_spec("state", outputs=1))
    first, _, last = head.modules_by_layer[0]
    assert len(head.modules_by_layer) == model.num_layers
    assert (first.in_features, first.out_features, last.in_features, last.out_features) == (model.width, 32, 32, 1)
    assert last.bias.item() == pytest.approx(-1.5), "a policy starts from low exit probabilities"


def test_confidence_features_by_hand():
    probs = torch.tensor([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    features = confidence_features(probs, torch.tensor([0, 0]), previous=torch.tensor([0, 2]))
    torch.testing.assert_close(features[0, :2], torch.tensor([0.7, 0.5]))
    torch.testing.assert_close(features[1, 1:3], torch.tensor([0.0, 1.0]))
    assert features[:, 3].tolist() == [1.0, 0.0]
    assert confidence_features(probs, torch.tensor([0, 0]), torch.tensor([-1, -1]))[:, 3].tolist() == [0.0, 0.0]
    of_candidates = confidence_features(probs, torch.tensor([40_000, 7]), previous=torch.tensor([40_000, 0]))
    assert of_candidates[:, 3].tolist() == [1.0, 0.0], "tokens agree, and not places among the candidates"


class TestPrices:
    def test_a_higher_price_never_lowers_the_exit_probability(self):
        output = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 5
        drawn = torch.stack([policy_logit(output[:, :2], log_alpha) for log_alpha in (-9.0, -3.0, 0.0, 2.0)], dim=1)
        assert (drawn.diff(dim=1) >= 0).all()
        assert (rung_logits(output).diff(dim=1) > 0).all()
        assert torch.equal(rung_logits(output)[:, 0], output[:, 0])

    def test_no_price_never_exits_and_an_infinite_one_always(self):
        output = torch.tensor([[40.0, 3.0], [-40.0, -200.0], [0.0, 0.0]])  # the weight of the second underflows
        assert (policy_logit(output, -math.inf).sigmoid() == 0).all()
        assert (policy_logit(output, math.inf).sigmoid() == 1).all()

    def test_a_ladder_is_even_by_logarithms_and_the_nearest_rung_decides(self):
        ladder = PriceLadder(3, 0.01, 1.0)
        assert ladder.knob_values == pytest.approx((1e6, 1.0, 0.1, 0.01, 0.0))
        output = torch.tensor([[0.5, 1.0, 2.0]])
        for price, rung in ((0.012, 0), (0.2, 1), (0.5, 2), (20.0, 2)):
            assert ladder.rule("state", price).logit(output, None) == rung_logits(output)[:, rung]

    @pytest.mark.parametrize("reads", ["state", "state+confidence"])
    def test_rule_follows_the_probabilities_that_were_trained(self, with_policy, reads):
        """Training computes P(exit) of all prices and layers at once, the rule of one price, layer by layer."""
        task, method = make_task(), replace(LADDER, policy_reads=reads)
        model = with_policy(method)
        outputs, trace = record_outputs(model, model.tokenize(task.test.texts)), record_trace(model, task.test)
        with torch.no_grad():
            policies = method.prices.policies(policy_outputs(model.head(POLICY), outputs.pooled, outputs.logits))
        exits = sweep([method.rule(model, price) for price in method.prices.prices], trace)
        assert [alpha[0].item() for alpha, _ in policies] == pytest.approx(list(method.prices.prices))
        for (_, probabilities), found in zip(policies, exits, strict=True):
            assert torch.equal(exits_of(probabilities, 0.5), found)
        assert exits.unique().numel() > 1

    def test_the_threshold_of_one_price_is_the_knob(self, with_policy):
        task, method = make_task(), ConsistentEE()
        model = with_policy(method)
        outputs = record_outputs(model, model.tokenize(task.test.texts))
        with torch.no_grad():
            [(alpha, p)] = method.prices.policies(policy_outputs(model.head(POLICY), outputs.pooled, outputs.logits))
        threshold = p[:, 0].median().item()  # half of the rows exit at layer 1
        found = replay(method.rule(model, threshold), record_trace(model, task.test))
        assert torch.equal(found, exits_of(p, threshold))
        assert found.unique().numel() > 1
        assert (alpha == 0.05).all()


class TestStages:
    def test_they_are_run_as_asked_and_stage_2_trains_the_policy_alone(self, tiny_model, monkeypatch):
        run, real, states = [], instances.run_stage, []

        def record(model, source, stage, recipe):
            run.append((stage.name, stage.epochs))
            real(model, source, stage, recipe)
            states.append(model.clone_weights())

        for module in (instances, encoder):
            monkeypatch.setattr(module, "run_stage", record)
        ConsistentEE(joint_epochs=3).fit(tiny_model(), make_task(), RECIPE)
        assert run == [("joint", 1), ("policy", 4), ("exit-consistent", 3), ("policy", 4)]
        assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())

    def test_a_higher_price_gives_earlier_exits(self, tiny_model):
        recipe, averages = replace(RECIPE, frozen_steps=60, frozen_learning_rate=3e-2), []
        for alpha in (0.0, 5.0):
            method = ConsistentEE(reward="vanilla", joint_epochs=0, alpha=alpha)
            model = method.fit(tiny_model(), make_task(), recipe)
            averages.append(replay(method.rule(model, 0.5), record_trace(model, make_task().test)).double().mean())
        assert averages[1] == 1
        assert averages[0] > 1.5


class TestDistilled:
    def test_shares_are_where_rows_exit(self):
        sure_early = torch.tensor([[9.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
        sure_late = torch.tensor([[0.1, 0.0], [0.1, 0.0], [8.0, 0.0], [1.0, 0.0]])
        torch.manual_seed(0)
        doubt = 1 - torch.stack([sure_early, sure_late]).softmax(dim=-1).amax(dim=-1)
        shares = torch.stack([exit_shares(doubt, 0.8) for _ in range(200)]).mean(dim=0)
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(2))
        assert (shares >= 0.2 / 4 - 1e-6).all(), "no exit forgets a row"
        assert shares.argmax(dim=1).tolist() == [0, 2]
        torch.testing.assert_close(exit_shares(doubt, 0.0), torch.full((2, 4), 0.25))

    def test_teacher_and_labels_share_the_loss(self, tiny_model):
        model, task = tiny_model(), make_task()
        batch = training_source(model, task, RECIPE).batch(torch.arange(6), 0)
        logits = model(batch.tokens).logits
        teacher = torch.full((6, logits.shape[-1]), 1 / logits.shape[-1]).log()

        def loss(share):
            return distilled.taught_loss(JointDistillation(at_exit=0.0, distilled=share), teacher, model, batch)

        divergence = (teacher.exp().unsqueeze(1) * (teacher.unsqueeze(1) - logits.log_softmax(dim=-1))).sum(dim=-1)
        torch.testing.assert_close(loss(0.0), layer_losses(logits, batch.labels).mean())
        torch.testing.assert_close(loss(1.0), divergence.mean())
        torch.testing.assert_close(loss(0.25), 0.75 * loss(0.0) + 0.25 * loss(1.0))


def test_the_published_values(tiny_model):
    """State alone, an unbiased start, REINFORCE with 8 rollouts, two epochs each of stages 2 and 3, exit at 0.5."""
    method = get_method("consistentee-paper")
    assert (method.policy_reads, method.estimator, method.rollouts) == ("state", "reinforce", 8)
    assert (method.policy_epochs, method.joint_epochs, method.refit_policy) == (2, 2, False)
    model = tiny_model()
    model.add_head("policy", method.policy_spec())
    assert model.head("policy").modules_by_layer[0][-1].bias.item() == 0
    assert 0.5 in method.knob_values(model)


def test_stage_2_takes_the_epochs_of_the_paper(tiny_model, monkeypatch):
    stages = []
    for module in (encoder, instances):
        monkeypatch.setattr(module, "run_stage", lambda model, source, stage, recipe: stages.append(stage))
    get_method("consistentee-paper").fit(tiny_model(), make_task(), Recipe(epochs=3, max_length=32))
    joint, policy, consistent = stages
    assert (policy.epochs, policy.batch_size, policy.learning_rate) == (2, 32, 3e-4)
    assert (joint.epochs, consistent.epochs, consistent.learning_rate) == (3, 2, 3e-5)
