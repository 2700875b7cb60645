"""Scores, losses, schedules and exit networks of methods of classification: formulas by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from hypothesis import given, strategies as st
from tensors_by_hand import trace_of
from torch.nn import functional

from baselines.beem import BEEM, EXPERTS, ExpertsRule
from baselines.cosee import COSEE, exit_weights, normalised_energy, ranking_loss, simulated_exits
from baselines.de3_bert import distance_ratio
from baselines.e2cm import ClassMeansClassifier, put_means
from baselines.eenet import fit_thresholds
from baselines.gpfee import imitation_loss
from baselines.hashee import HashEE, frequency_buckets
from baselines.jei_dnn import MassRule, certainty, exit_loss, exit_masses, gate_loss
from baselines.leebert import LeeBERT, alignment, lessons
from baselines.palbert import divergence, geometric
from baselines.product_of_experts import ProductOfExperts
from baselines.sweet import exit_layers, separate_loss
from benchmarks.testing.cases import RECIPE
from benchmarks.testing.tiny import VOCABULARY, make_task
from consistentee import HeadSpec, MultiExitModel, Recipe, UserError, get_method, record_trace, replay, sweep
from consistentee.data.encoding import Encoding
from consistentee.models.classifiers import ClassifierSpec, RecordedLayer
from consistentee.training import TokenSource
from consistentee.training.encoder import BACKBONE_AND_CLASSIFIERS, hold_out, layer_losses, training_source

ROWS, LAYERS = 16, 5


def test_the_largest_scores_exit_first_and_equal_ones_together():
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.3], [0.8, 0.9], [0.1, 0.2]])
    assert fit_thresholds(scores, torch.tensor([0.5, 0.5])).item() == pytest.approx(0.8)
    scores = torch.tensor([[0.5, 0.9], [0.5, 0.8], [0.5, 0.7], [0.1, 0.6], [0.1, 0.2]])
    scores = torch.cat([scores, torch.zeros(5, 1)], dim=1)
    assert fit_thresholds(scores, torch.tensor([0.2, 0.8, 0.0])).tolist() == pytest.approx([0.5, 0.2])


@given(st.integers(0, 2**31), st.floats(0.05, 1))
def test_exit_masses_sum_to_1(seed, scale):
    gates = torch.rand(ROWS, LAYERS - 1, generator=torch.Generator().manual_seed(seed)) * scale
    masses = exit_masses(gates)
    torch.testing.assert_close(masses.sum(dim=1), torch.ones(ROWS))
    for row in range(ROWS):
        for layer in range(LAYERS - 1):
            by_hand = max(0.0, min(gates[row, layer].item(), 1 - gates[row, :layer].sum().item()))
            assert masses[row, layer].item() == pytest.approx(by_hand, abs=1e-6)


def test_a_gate_reads_four_numbers_of_certainty():
    read = certainty(torch.tensor([[0.6, 0.3, 0.1]]))
    squared = [0.36 / 0.46, 0.09 / 0.46, 0.01 / 0.46]
    entropies = [-sum(p * math.log(p) for p in probs) for probs in ([0.6, 0.3, 0.1], squared)]
    torch.testing.assert_close(read, torch.tensor([[0.6, entropies[0], 0.3, entropies[1]]]))


def test_gates_learn_from_the_cheapest_exit_on():
    """At price 1.2 and three layers, a layer costs 0.4: the best exits are 2, 1 and 3."""
    losses = torch.tensor([[1.0, 0.5, 0.4], [0.3, 0.2, 0.1], [2.0, 2.0, 0.1]])
    gates = torch.tensor([[0.5, -1.0], [2.0, 0.1], [-0.3, 0.7]])
    weight = torch.tensor([2.0, 0.5])  # two negatives to one positive, one to two
    reached = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    signs = functional.logsigmoid(gates) * reached * weight + functional.logsigmoid(-gates) * (1 - reached)
    torch.testing.assert_close(gate_loss(gates, losses, 1.2), -signs.sum(dim=1).mean())


def test_exit_losses_are_weighted_by_mass_and_keep_their_sum():
    losses = torch.tensor([[1.0, 2.0, 4.0], [0.5, 0.1, 0.4]]).requires_grad_()
    masses = torch.tensor([[0.0, 0.75, 0.25], [1.0, 0.0, 0.0]])
    loss = exit_loss(losses, masses)
    assert loss.item() == pytest.approx((7.0 + 1.0) / 2)
    loss.backward()
    torch.testing.assert_close(losses.grad, masses * 8 / (2.5 + 0.5) / 2)
    assert exit_loss(torch.zeros(2, 3), masses).item() == 0, "no division by zero"


def test_jei_dnn_exits_where_half_of_the_remaining_mass_exits(tiny_model):
    model = tiny_model()
    gate = model.add_head("gate", HeadSpec(extra_inputs=4, reads_pooled=False))
    with torch.no_grad():
        for module, bias in zip(gate.modules_by_layer, (0.4, 0.4, 0.5, 0.5), strict=True):
            module.weight.zero_()
            module.bias.fill_(math.log(bias / (1 - bias)))
    trace = trace_of(torch.randn(2, 4, 3), model.width, gate=gate)
    for share, layer in ((0.39, 1), (0.41, 2), (0.66, 2), (0.67, 3), (1.0, 3), (1.001, 4)):  # 0.4, 0.4 / 0.6, 1
        assert replay(MassRule(share), trace).tolist() == [layer] * 2


def test_the_prior_of_palbert_is_geometric_and_the_divergence_from_itself_is_zero():
    prior = geometric(0.1, 3)
    assert prior.tolist() == pytest.approx([0.1, 0.09, 0.81]), "the last layer takes the rest"
    assert divergence(prior.repeat(5, 1), prior).item() == pytest.approx(0, abs=1e-6)
    certain = torch.tensor([[0.0, 1.0, 0.0]])
    torch.testing.assert_close(divergence(certain, prior), -torch.tensor(0.09).log())


def test_the_distance_ratio_is_zero_at_a_prototype_and_half_between_two():
    nearest, second = torch.tensor([0.0, 1.0, 2.0, 0.0]), torch.tensor([3.0, 4.0, 2.0, 0.0])
    assert distance_ratio(nearest, second).tolist() == [0, 0.125, 0.5, 0.5]


def test_scores_of_beem_add_up_while_the_answer_stays_and_start_again_where_it_changes(tiny_model):
    model = tiny_model()
    model.add_factors(EXPERTS, torch.tensor([0.5, 1.0, 2.0, 7.0]))
    changes_at_layer_3 = [[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.1, 0.7, 0.2], [0.2, 0.5, 0.3]]
    stays = [[0.9, 0.1, 0.0], [0.9, 0.1, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    trace = trace_of(torch.tensor([changes_at_layer_3, stays]).log(), model.width, **{EXPERTS: model.head(EXPERTS)})
    scores = [[0.5 * 0.8, 0.5 * 0.8 + 0.6, 2 * 0.7], [0.5 * 0.9, 0.5 * 0.9 + 0.9, 0.5 * 0.9 + 0.9 + 2.0]]
    for row, layer in ((0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)):
        for share, expected in ((0.999, layer), (1.001, layer + 1)):
            assert replay(ExpertsRule(share * scores[row][layer - 1]), trace)[row] == expected
    assert BEEM().rule(model, 0.5).threshold == pytest.approx((0.5 + 1.0 + 2.0) / 2), "half of the largest score"


def test_berxit_exits_by_confidence_too(tiny_model):
    model = get_method("berxit").fit(tiny_model(), make_task(), RECIPE)
    trace = record_trace(model, make_task().test, max_length=32)
    exits = sweep([get_method("berxit", signal="top_probability").rule(model, 0.6)], trace)[0]
    confident = trace.logits.softmax(dim=-1).amax(dim=-1)[:, :-1] > 0.4
    expected = torch.where(confident.any(dim=1), confident.int().argmax(dim=1) + 1, 4)
    assert exits.tolist() == expected.tolist()


METHOD = LeeBERT(held_out=0.3, weight_every=2)


def test_simulated_exits_of_cosee_are_the_exits_of_its_rule_on_the_energy():
    energy, method = normalised_energy(torch.tensor([[0.0, 0.0, 0.0], [10.0, 0.0, 0.0]])), COSEE()
    torch.testing.assert_close(energy, torch.tensor([1 / 4, 1 / (1 + 2 + math.exp(10))]))
    logits = torch.randn(64, 6, 3, generator=torch.Generator().manual_seed(0)).cumsum(dim=1)
    trace = trace_of(logits)
    simulated = simulated_exits(normalised_energy(trace.logits), torch.tensor(method.knob.values))
    assert simulated.unique().tolist() == [1, 2, 3, 4, 5, 6]
    replayed = [replay(method.rule(SimpleNamespace(description=None), knob), trace) for knob in method.knob.values]
    assert torch.equal(simulated, torch.stack(replayed))


def test_weights_of_cosee_by_hand():
    weights = exit_weights(torch.tensor([[1], [3]]), num_layers=3, sharpness=math.log(2))
    expected = (torch.tensor([[4.0, 2.0, 1.0]]) + torch.tensor([[1.0, 2.0, 4.0]])) / 7 / 2
    torch.testing.assert_close(weights, expected)


def test_ranking_by_hand():
    signals = torch.tensor([[0.1, 0.5, 0.0], [0.3, 0.5, 0.0], [0.6, 0.5, 9.0]])
    correct = torch.tensor([[True, True, False], [True, True, True], [False, True, True]])
    # Layer 1: 0.2 - 0.6 + 0.5; layer 2 has no hard row; layer 3 is the last.
    assert ranking_loss(signals, correct, margin=0.5).item() == pytest.approx(0.1 / 2)
    assert ranking_loss(signals, correct, margin=0.3).item() == 0


def test_lessons_by_hand():
    probs = torch.tensor([[0.8, 0.2], [0.5, 0.5]])
    logits = probs.log().unsqueeze(0)
    terms = lessons(logits, logits, torch.tensor([0]))
    first_from_second = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    second_from_first = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    expected = [[-math.log(0.8), first_from_second], [second_from_first, -math.log(0.5)]]
    torch.testing.assert_close(terms, torch.tensor(expected))


def test_alignment_equals_the_inner_products_of_gradients(tiny_model):
    model = tiny_model()
    trained_on, held_out_rows = hold_out(training_source(model, make_task(), RECIPE), METHOD.held_out)
    batch, held_out = trained_on.batch(torch.arange(16), 0), held_out_rows.batch(torch.arange(12), 0)
    parameters = [p for name, p in model.named_parameters() if name.startswith(BACKBONE_AND_CLASSIFIERS)]

    def gradient(loss):
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([each.flatten() for each in found])

    outer = gradient(layer_losses(model(held_out.tokens).logits, held_out.labels).mean())
    exact = torch.empty(model.num_layers, model.num_layers)
    for pupil, teacher in torch.cartesian_prod(*[torch.arange(model.num_layers)] * 2).tolist():
        logits = model(batch.tokens).logits
        term = lessons(logits, logits.detach(), batch.labels)[pupil, teacher]
        exact[pupil, teacher] = gradient(term) @ outer / outer.norm()
    assert (exact > 0).any()
    assert (exact < 0).any()
    torch.testing.assert_close(alignment(model, batch, held_out), exact, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("name", ["deebert", "berxit", "sweet", "ztw"])
def test_exits_that_learn_by_themselves_have_their_own_poolers(tiny_model, name):
    model = tiny_model(pooling="cls", pooler="shared")
    get_method(name).fit(model, make_task(rows=8), replace(RECIPE, epochs=1, frozen_steps=1))
    assert model.description.pooler == "per_exit"


def test_an_exit_of_sweet_trains_only_the_layers_since_the_one_before(tiny_model):
    model = tiny_model()
    assert exit_layers(model) == (1, 2, 4)
    batch = training_source(model, make_task(), RECIPE).batch(torch.arange(8), 0)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        separate_loss(exit_layers(model), model, batch).backward()
        weights = [model.stepper.layer_module(layer).parameters() for layer in range(1, 5)]
        return [torch.cat([w.grad.flatten() for w in of_layer if w.grad is not None]) for of_layer in weights]

    before = gradients()
    assert all(gradient.any() for gradient in before)
    for classifier in (model.classifiers[1], model.classifiers[3]):  # without these exits nothing reaches 2 to 4
        torch.nn.init.zeros_(classifier.weight)
    after = gradients()
    assert [bool(gradient.any()) for gradient in after] == [True, False, False, False]
    assert torch.equal(after[0], before[0])


CLS, SEP = VOCABULARY.index("[CLS]"), VOCABULARY.index("[SEP]")


def test_buckets_have_equal_numbers_of_the_tokens_seen():
    counts = torch.tensor([0, 9, 1, 1, 2, 0])  # by rank: 1, 4, 2, 3, then what never occurs
    assert frequency_buckets(counts, 2)[[1, 4, 2, 3]].tolist() == [0, 0, 1, 1]
    assert frequency_buckets(counts, 3)[[1, 4, 2, 3]].tolist() == [0, 1, 2, 3]  # one is left over
    assert frequency_buckets(counts, 1)[[1, 4, 2, 3]].tolist() == [0] * 4
    assert frequency_buckets(counts, 8)[[1, 4, 2, 3]].tolist() == [0, 1, 2, 3]  # fewer tokens than buckets


def test_the_schedule_is_the_one_of_the_authors_code(tiny_model):
    """Worked out by hand; with as many buckets as layers the rest is clamped, with fewer it goes one step on."""
    model = tiny_model("bert")
    rows = [Encoding([CLS, 10, 10, 10, 11, 12, 13, 14, SEP]), Encoding([CLS, 10, 11, 12, SEP])]
    source = TokenSource(model, rows, torch.tensor([0, 1]))
    tokens = [10, 11, 12, 13, 14, 40, CLS, SEP]  # from frequent to unseen, and the special ones
    schedules = {p: HashEE(*p).schedule(model, source) for p in ((None, None), (None, 2), (3, None), (3, 2), (1, None))}
    assert {p: schedule[tokens].tolist() for p, schedule in schedules.items()} == {
        (None, None): [1, 2, 3, 4, 4, 4, 4, 4],
        (None, 2): [1, 1, 3, 3, 4, 4, 4, 4],  # two each at layers 1 and 3; the fifth would be at 5, past the last
        (3, None): [1, 2, 3, 3, 3, 3, 3, 3],
        (3, 2): [1, 1, 2, 2, 3, 3, 3, 3],
        (1, None): [1] * 8,
    }


@pytest.mark.parametrize(
    ("parameters", "fault"),
    [
        ({"max_layer": 5}, r"max_layer must lie in 1\.\.4"),
        ({"max_layer": 0}, "max_layer"),
        ({"max_layer": 2, "buckets": 3}, r"1\.\.2"),
        ({"buckets": 0}, "buckets"),
    ],
)
def test_parameters_that_do_not_fit_the_model_are_refused(tiny_model, parameters, fault):
    with pytest.raises(UserError, match=fault):
        HashEE(**parameters).fit(tiny_model("bert"), make_task(), Recipe(epochs=1))


def first_exit(model: MultiExitModel) -> ClassMeansClassifier:
    model.use_classifier(ClassifierSpec("class-means", at_last_layer=False))
    return cast(ClassMeansClassifier, model.classifier(1))


def on_a_line(model: MultiExitModel, *places: float) -> torch.Tensor:
    vectors = torch.zeros(len(places), model.width)
    vectors[:, 0] = torch.tensor(places)
    return vectors


@pytest.mark.parametrize("far", [0, 4096])
def test_distances_are_divided_by_their_mean_over_all_rows(tiny_model, far):
    """Means at 1 and 6; the rows are 1, 1, 4 and 6 from the first on average 3, from the second 3; also far from 0."""
    model = tiny_model(num_labels=2)
    classifier = first_exit(model)
    put_means(classifier, far + on_a_line(model, 0, 2, 5, 7), torch.tensor([0, 0, 1, 1]))
    assert classifier.means[:, 0].tolist() == [far + 1, far + 6]
    assert classifier.mean_distances.tolist() == [(1 + 1 + 4 + 6) / 4, (6 + 4 + 1 + 1) / 4]
    said = classifier(RecordedLayer(far + on_a_line(model, 4).unsqueeze(1)))
    torch.testing.assert_close(said, torch.tensor([[-3 / 3, -2 / 3]]))


def test_a_class_without_rows_is_never_answered(tiny_model):
    model = tiny_model()
    classifier = first_exit(model)
    put_means(classifier, on_a_line(model, 1, 3), torch.tensor([0, 2]))
    said = classifier(RecordedLayer(on_a_line(model, 0.01, 2.9).unsqueeze(1)))
    assert said.softmax(dim=-1)[:, 1].tolist() == [0, 0]
    assert said.argmax(dim=-1).tolist() == [0, 2]


def test_imitation_is_one_minus_the_cosine_over_all_pairs(tiny_model):
    model = tiny_model()
    model.use_classifier(ClassifierSpec("past-future", width=16))
    pooled = torch.randn(5, model.num_layers, model.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for t in range(1, model.num_layers):
            for parameter in model.classifier(t).predictor.parameters():
                parameter.zero_()  # every later state is predicted to be the current one
    cosine = functional.cosine_similarity(pooled[:, :, None], pooled[:, None], dim=-1)
    pairs = [1 - cosine[:, t, later] for t in range(4) for later in range(t + 1, 4)]
    torch.testing.assert_close(imitation_loss(model, pooled), torch.stack(pairs).mean())


@torch.no_grad()
def test_ensembles_of_ztw_answer_as_a_plain_loop(tiny_model):
    model, generator = tiny_model(), torch.Generator().manual_seed(0)
    model.use_classifier(ClassifierSpec("ensemble", at_last_layer=False))
    for weight in model.classifiers.parameters():
        weight.normal_(generator=generator)  # far from those that they start with
    pooled = torch.randn(model.num_layers, model.width, generator=generator)  # of one row
    said, before = [], None
    for layer in range(1, model.num_layers):
        weights, inputs = model.classifier(layer).state_dict(), pooled[layer - 1]
        if before is not None:
            spread = (before - before.mean()) / (before.var(correction=0) + 1e-5).sqrt()
            inputs = torch.cat([inputs, spread])
        before = weights["output.weight"] @ inputs + weights["output.bias"]
        said.append(before.log_softmax(dim=0))
        total = sum(weights["exponents"][j].exp() * said[j] for j in range(layer))
        answer = model.classifier(layer)(RecordedLayer(pooled[None, :layer]))[0]
        torch.testing.assert_close(answer, total / layer + weights["bias"])


def test_a_product_multiplies_the_exits_so_far(tiny_model):
    model = ProductOfExperts().fit(tiny_model(), make_task(), RECIPE)
    joint = get_method("pabee").fit(tiny_model(), make_task(), RECIPE)
    history = torch.randn(5, 3, model.width)
    said = torch.stack([joint.classifier(t)(RecordedLayer(history[:, :t])) for t in (1, 2, 3)], dim=1)
    weighted = functional.softplus(said) ** torch.tensor([1 / 4, 2 / 4, 3 / 4]).view(1, 3, 1)
    products = weighted.prod(dim=1)
    answers = model.classifier(3)(RecordedLayer(history)).softmax(dim=-1)
    torch.testing.assert_close(answers, products / products.sum(dim=-1, keepdim=True))
    for logit in (-20.0, -200.0):  # far below zero it is finite
        model.classifier(1).bias.data[0] = logit
        answer = model.classifier(1)(RecordedLayer(torch.zeros(1, 1, model.width)))
        torch.testing.assert_close(answer[0, 0].item(), logit / 4)


@pytest.mark.parametrize("network", ["linear", "mlp", "attention"])
def test_the_network_of_exits_is_a_parameter_and_layer_l_keeps_its_own(tiny_model, network):
    task = make_task(rows=16)
    full = get_method("full").fit(tiny_model(), task, RECIPE)
    for name in ("deebert", "pabee"):
        model = get_method(name, classifier=network).fit(tiny_model(), task, RECIPE)
        kinds = [type(classifier).__name__.removesuffix("Classifier").lower() for classifier in model.classifiers]
        assert kinds == [network] * 3 + ["linear"]
        if name == "deebert":
            last = [record_trace(each, task.test, max_length=32).logits[:, -1] for each in (model, full)]
            assert torch.equal(*last)
