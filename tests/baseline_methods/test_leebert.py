"""LeeBERT: its terms, its weights, the outer gradient by finite differences, and what its stage leaves behind."""

from dataclasses import replace

import pytest
import torch
from conftest import make_task, random_texts
from hypothesis import given
from hypothesis import strategies as st

from baselines import leebert
from baselines.leebert import SCORES, LeeBERT, alignment, lesson_weights, lessons
from consistentee.data.instances import Split
from consistentee.training import loop as training
from consistentee.training.recipe import Recipe
from consistentee.training.encoder import BACKBONE_AND_CLASSIFIERS, layer_losses

RECIPE = Recipe(epochs=2, batch_size=16, learning_rate=1e-3, head_learning_rate=1e-2, max_length=32)
METHOD = LeeBERT(held_out=0.3, weight_every=2)


def same_weights(first, second):
    state = second.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in first.state_dict().items())


def test_lessons_by_hand():
    probs = torch.tensor([[0.8, 0.2], [0.5, 0.5]])
    logits = probs.log().unsqueeze(0)
    terms = lessons(logits, logits, torch.tensor([0]))
    first_from_second = 0.5 * torch.log(torch.tensor(0.5 / 0.8)) + 0.5 * torch.log(torch.tensor(0.5 / 0.2))
    second_from_first = 0.8 * torch.log(torch.tensor(0.8 / 0.5)) + 0.2 * torch.log(torch.tensor(0.2 / 0.5))
    expected = torch.tensor(
        [[-torch.log(probs[0, 0]), first_from_second], [second_from_first, -torch.log(probs[1, 0])]]
    )
    torch.testing.assert_close(terms, expected)


@given(st.integers(0, 2**31), st.floats(0, 20))
def test_weights_are_positive_with_fixed_sums(seed, scale):
    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(seed)) * scale
    weights = lesson_weights(scores)
    assert (weights >= 0).all()
    assert weights.diagonal().sum().item() == pytest.approx(5, rel=1e-5)
    assert weights.sum().item() == pytest.approx(10, rel=1e-5)
    torch.testing.assert_close(lesson_weights(torch.zeros(5, 5)), torch.full((5, 5), 1 / 4).fill_diagonal_(1))


def batches(model):
    trained_on, held_out = METHOD.split(model, make_task(), RECIPE)
    return trained_on.batch(torch.arange(16), 0), held_out.batch(torch.arange(12), 0)


def test_alignment_equals_the_inner_products_of_gradients(tiny_model):
    model = tiny_model()
    batch, held_out = batches(model)
    parameters = [p for name, p in model.named_parameters() if name.startswith(BACKBONE_AND_CLASSIFIERS)]

    def gradient(loss):
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return torch.cat(
            [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
        )

    outer = gradient(layer_losses(model(held_out.tokens).logits, held_out.labels).mean())
    count = model.num_layers
    exact = torch.empty(count, count)
    for pupil in range(count):
        for teacher in range(count):
            logits = model(batch.tokens).logits
            term = lessons(logits, logits.detach(), batch.labels)[pupil, teacher]
            exact[pupil, teacher] = gradient(term) @ outer / outer.norm()
    assert (exact > 0).any()
    assert (exact < 0).any()
    torch.testing.assert_close(alignment(model, batch, held_out), exact, rtol=0.02, atol=1e-3)


def test_measuring_changes_nothing(tiny_model):
    model, untouched = tiny_model(), tiny_model()
    model.train()
    alignment(model, *batches(model))
    assert same_weights(model, untouched)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.fixture
def learned_scores(monkeypatch):
    """Return a list that receives the scores of every training that ends."""
    found = []

    def keep(model, source, stage, recipe):
        training.run_stage(model, source, stage, recipe)
        found.append(model.get_parameter(SCORES).detach().clone())

    monkeypatch.setattr(leebert, "run_stage", keep)
    return found


def test_weights_are_learned_and_leave_with_the_stage(tiny_model, learned_scores):
    model = METHOD.fit(tiny_model(), make_task(), RECIPE)
    (scores,) = learned_scores
    updates = 3  # 42 rows in batches of 16, 2 epochs: 6 steps, every second one
    assert 0 < scores.abs().max() <= METHOD.weight_rate * updates * 1.001
    assert scores.unique().numel() == scores.numel()
    assert set(model.state_dict()) == set(tiny_model().state_dict())


def test_a_term_that_pulls_with_the_held_out_loss_gains_weight(tiny_model, learned_scores, monkeypatch):
    slopes = torch.zeros(4, 4)
    slopes[0, 1], slopes[2, 2] = 4.0, -2.0
    monkeypatch.setattr(leebert, "alignment", lambda *args: slopes)
    METHOD.fit(tiny_model(), make_task(), RECIPE)
    (scores,) = learned_scores
    torch.testing.assert_close(scores, slopes / 4 * METHOD.weight_rate * 3)
    weights = lesson_weights(scores)
    assert weights[0, 1] > weights[0, 2]
    assert weights[2, 2] < weights[0, 0]


def test_held_out_rows_are_training_rows_that_are_not_trained_on(tiny_model):
    model = tiny_model()
    recipe = replace(RECIPE, max_rows=50)
    trained_on, held_out = METHOD.split(model, make_task(), recipe)
    parts = [sorted(encoding.key for encoding in source.encodings) for source in (trained_on, held_out)]
    rows = recipe.training_rows(make_task().train)
    assert [len(part) for part in parts] == [35, 15]
    assert sorted(parts[0] + parts[1]) == sorted(encoding.key for encoding in model.tokenize(rows.texts, 32))
    other_seed = METHOD.split(model, make_task(), replace(recipe, seed=5))
    assert other_seed[1].fingerprint() == held_out.fingerprint()


def test_validation_rows_are_never_read(tiny_model):
    task = make_task()
    other = replace(task, validation=Split("validation", random_texts(9, seed=8), [0] * 9))
    assert same_weights(METHOD.fit(tiny_model(), task, RECIPE), METHOD.fit(tiny_model(), other, RECIPE))


def test_interrupted_training_ends_as_if_it_had_not_been(tiny_model, tmp_path, monkeypatch, learned_scores):
    monkeypatch.setattr(training, "CHECKPOINT_STEPS", 3)
    straight = METHOD.fit(tiny_model(), make_task(), RECIPE)
    real, steps = leebert.lesson_weights, []

    def interrupted(scores):
        steps.append(len(steps))
        if len(steps) == 5:
            raise KeyboardInterrupt
        return real(scores)

    recipe = replace(RECIPE, store=tmp_path)
    monkeypatch.setattr(leebert, "lesson_weights", interrupted)
    with pytest.raises(KeyboardInterrupt):
        METHOD.fit(tiny_model(), make_task(), recipe)
    assert len(list(tmp_path.glob("*.checkpoint.*"))) == 1
    resumed = METHOD.fit(tiny_model(), make_task(), recipe)
    assert len(steps) == 5 + 3, "training goes on from the last checkpoint"
    assert same_weights(straight, resumed)
    assert torch.equal(*learned_scores)
