"""BEEM: scores of a trace made by hand, where the weights come from, and that they are saved."""

import pytest
import torch
from conftest import make_task

from baselines.beem import BEEM, EXPERTS, ExpertsRule
from consistentee.data.instances import Split
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.models.heads import FACTORS, factors_of, set_factors
from consistentee.traces.instance_trace import Trace, record_trace
from consistentee.traces.walk import replay
from consistentee.training.encoder import hold_out, training_source
from consistentee.training.recipe import Recipe

RECIPE = Recipe(epochs=1, batch_size=16, learning_rate=1e-3, head_learning_rate=1e-2, max_length=32, seed=1)
PROBABILITIES = torch.tensor(
    [
        [[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.1, 0.7, 0.2], [0.2, 0.5, 0.3]],  # changes its answer at layer 3
        [[0.9, 0.1, 0.0], [0.9, 0.1, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]],
    ]
)
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 7.0])
SCORES = torch.tensor([[0.5 * 0.8, 0.5 * 0.8 + 0.6, 2 * 0.7], [0.5 * 0.9, 0.5 * 0.9 + 0.9, 0.5 * 0.9 + 0.9 + 2.0]])


@pytest.fixture
def trace(tiny_model) -> Trace:
    model = tiny_model()
    set_factors(model.add_head(EXPERTS, FACTORS), WEIGHTS)
    rows = len(PROBABILITIES)
    pooled = torch.zeros(rows, model.num_layers, model.width)
    heads = {EXPERTS: model.head(EXPERTS)}
    lengths = torch.ones(rows, dtype=torch.long)
    return Trace(PROBABILITIES.log(), torch.zeros(rows), {"pooled": pooled}, lengths, torch.arange(rows), heads)


def test_scores_add_up_while_the_answer_stays_and_start_again_where_it_changes(trace):
    rule = ExpertsRule(1.0)
    state = rule.start(2, 4)
    scores = torch.stack([rule.score(trace.view(layer), state) for layer in (1, 2, 3)], dim=1)
    torch.testing.assert_close(scores, SCORES)


@pytest.mark.parametrize(
    ("threshold", "exits"), [(0.0, [1, 1]), (0.42, [2, 1]), (1.2, [3, 2]), (1.5, [4, 3]), (9, [4, 4])]
)
def test_rows_leave_at_the_first_score_that_reaches_the_threshold(trace, threshold, exits):
    assert replay(ExpertsRule(threshold), trace).tolist() == exits


def test_experts_weigh_what_they_are_right_on_rows_that_training_has_not_seen(tiny_model):
    method, task = BEEM(held_out=0.25), make_task()
    model = method.fit(tiny_model(), task, RECIPE)
    source = training_source(model, task, RECIPE)
    seen, judged = hold_out(source, 0.25)
    assert (len(seen) + len(judged), len(judged)) == (len(source), round(0.25 * len(source)))
    rows = [i for i, encoding in enumerate(source.encodings) if any(encoding is other for other in judged.encodings)]
    held_out: Split = task.train.select(rows)
    answers = record_trace(model, held_out, max_length=32).logits.argmax(dim=-1)
    right = (answers == torch.tensor(held_out.labels).unsqueeze(1)).float().mean(dim=0)
    torch.testing.assert_close(torch.tensor(factors_of(model.head(EXPERTS))), right)


def test_weights_are_saved_with_the_model(tiny_model, tmp_path):
    model = tiny_model()
    set_factors(model.add_head(EXPERTS, FACTORS), WEIGHTS)
    model.save_pretrained(tmp_path / "model")
    loaded = MultiExitModel.from_pretrained(tmp_path / "model")
    assert factors_of(loaded.head(EXPERTS)) == WEIGHTS.tolist()
    assert BEEM().rule(loaded, 0.5).threshold == pytest.approx((0.5 + 1.0 + 2.0) / 2)
