"""Knobs that are chosen from a trace: risk control, whose promises hold on known losses."""

import numpy as np
import pytest
import torch
from scipy.stats import binom

from benchmarks.testing.tiny import make_task
from consistentee import UserError, get_method, record_trace, replay
from consistentee.deployment.risk_control import BOUNDS, binomial, control_risk, losses_of


@pytest.mark.parametrize(
    ("bound", "rows", "floor"),
    [
        ("crc", 99, 0.01),  # 1 / (n + 1)
        ("ucb", 277, 0.0086),
        ("ucb", 872, 0.0027),
        ("ltt", 230, 1 - 0.1 ** (1 / 230)),  # (1 - eps) ** n = delta
    ],
)
def test_without_any_loss_the_floor_is_what_rows_can_prove(bound, rows, floor):
    nothing = np.zeros((rows, 1))
    assert BOUNDS[bound](nothing, floor + 1e-4, 0.1) == 0
    assert BOUNDS[bound](nothing, floor - 1e-4, 0.1) == -1


def table(*means: float, rows: int = 1000) -> np.ndarray:
    """Losses of 0 and 1 with the given mean at each knob, evenly spread over the rows."""
    return np.stack([np.diff(np.floor(np.arange(rows + 1) * mean + 1e-9)) for mean in means], axis=1)


@pytest.mark.parametrize("bound", BOUNDS)
def test_the_last_knob_before_the_first_failure_is_chosen(bound):
    assert BOUNDS[bound](table(0.0, 0.01, 0.3, 0.0), 0.05, 0.1) == 1
    assert BOUNDS[bound](table(0.3, 0.0), 0.05, 0.1) == -1
    assert BOUNDS[bound](table(0.0, 0.0), 0.05, 0.1) == 1
    refused = ((1, 0.0, 0.1, "risk"), (1, 0.1, 1.0, "delta"), (2, 0.1, 0.1, "losses"), (np.nan, 0.1, 0.1, "losses"))
    for losses, risk, delta, named in refused:
        with pytest.raises(UserError, match=named):
            BOUNDS[bound](losses * table(0.1), risk, delta)


def test_the_binomial_test_is_that_of_scipy():
    for losses, rows, risk in ((0, 1, 0.5), (3, 20, 0.1), (400, 1000, 0.41), (70_000, 100_000, 0.7)):
        assert binomial(losses, rows, risk) == pytest.approx(binom.cdf(losses, rows, risk), rel=1e-8)


def test_conformal_by_hand():
    assert BOUNDS["crc"](table(0.04, 0.05, rows=100), 0.05, 0.1) == 0  # of 100, (101 * 0.05 - 1) may lose
    losses = np.zeros((100, 3))  # each knob loses 4 % of the rows, but other rows: 8 % have lost at one of them
    losses[:4, 1] = losses[4:8, 2] = 1
    assert BOUNDS["crc"](losses, 0.06, 0.1) == 1
    assert BOUNDS["crc"](losses, 0.09, 0.1) == 2


def test_a_test_counts_gains_as_nothing_and_a_bound_as_gains():
    gains = np.where(table(0.06), 1.0, -table(0.5))
    assert BOUNDS["ltt"](gains, 0.05, 0.1) == -1
    assert BOUNDS["ucb"](gains, 0.05, 0.1) == 0


RISKS = np.array([0.0, 0.005, 0.01, 0.018, 0.022, 0.03, 0.045, 0.052, 0.07, 0.1])


def drawn(rows: int, generator: np.random.Generator, kind: str) -> np.ndarray:
    """Losses whose means are RISKS: 0 and 1, or of both signs."""
    below = (generator.random((rows, 1)) < 2 * RISKS).astype(float)
    if kind == "gap":  # half of those that lose gain at once: 1.5 * RISKS lose and 0.5 * RISKS gain
        return below * np.where(generator.random((rows, 1)) < 0.75, 1.0, -1.0)
    return below * generator.integers(2, size=(rows, 1))


@pytest.mark.parametrize("kind", ["consistency", "gap"])
@pytest.mark.parametrize("bound", BOUNDS)
def test_promises_are_kept_on_losses_of_known_risk(bound, kind):
    generator, draws = np.random.default_rng(3), 300
    for tolerated in (0.02, 0.05):
        chosen = [BOUNDS[bound](drawn(600, generator, kind), tolerated, 0.1) for _ in range(draws)]
        risks = RISKS[np.maximum(chosen, 0)]
        assert np.median(chosen) >= 1  # it is not kept by never moving
        if bound == "crc":
            assert risks.mean() <= tolerated + 1.645 * risks.std() / draws**0.5
        else:
            assert np.mean(risks > tolerated) <= 0.1 + 1.645 * (0.1 * 0.9 / draws) ** 0.5


def test_losses_by_hand():
    """Rows: only the early answer is wrong, only the full model's is, both are right."""
    answers, full, labels = torch.tensor([[0, 1, 0], [1, 0, 0], [1, 1, 0]])
    assert losses_of("gap", answers, full, labels).tolist() == [1.0, -1.0, 0.0]
    assert losses_of("consistency", answers, full, labels).tolist() == [1.0, 1.0, 0.0]


@pytest.fixture
def traced(tiny_model):
    """Return a tiny model with random exits, and its trace on 200 rows."""
    model = tiny_model("bert")
    return model, record_trace(model, make_task().train)


@pytest.mark.parametrize("method", ["deebert", "calm-softmax", "f-pabee"])
@pytest.mark.parametrize("loss", ["gap", "consistency"])
def test_the_chosen_knob_has_the_layers_and_losses_of_a_replay(method, loss, traced):
    model, trace = traced
    found = get_method(method)
    chosen = control_risk(found, model, trace, 0.6, loss=loss)
    exits = replay(found.rule(model, chosen.knob), trace)
    answers, full = trace.predictions(exits), trace.logits[:, -1].argmax(dim=-1)
    assert chosen.proven
    assert chosen.average_layers == pytest.approx(float(exits.double().mean()))
    assert chosen.average_layers < trace.num_layers
    assert chosen.mean_loss == pytest.approx(float(losses_of(loss, answers, full, trace.labels).mean()))
    assert chosen.mean_loss <= 0.6
    assert chosen.rows == len(trace)


def test_bounds_take_rows_in_random_order(traced, monkeypatch):
    """A bound that bets is wrong on rows that are sorted by label, as in many files."""
    (model, trace), method, seen = traced, get_method("static"), []
    monkeypatch.setitem(BOUNDS, "ucb", lambda losses, risk, delta: seen.append(losses) or 0)
    control_risk(method, model, trace, 0.1)
    full, knobs = trace.logits[:, -1].argmax(dim=-1), reversed(method.knob_values(model))
    answers = [trace.predictions(replay(method.rule(model, knob), trace)) for knob in knobs]
    in_file = np.stack([losses_of("gap", one, full, trace.labels).numpy() for one in answers], axis=1)
    assert sorted(map(tuple, seen[0])) == sorted(map(tuple, in_file))
    assert (seen[0] != in_file).any()


def test_all_rows_run_to_full_depth_without_proof(traced):
    model, trace = traced
    method = get_method("pabee")
    chosen = control_risk(method, model, trace, 0.0001)
    assert not chosen.proven
    assert (chosen.mean_loss, chosen.average_layers) == (0.0, trace.num_layers)
    assert (replay(method.rule(model, chosen.knob), trace) == trace.num_layers).all()


def test_regressions_are_refused(tiny_model):
    model = tiny_model("bert", num_labels=1)
    with pytest.raises(UserError, match="regression"):
        control_risk(get_method("pabee"), model, record_trace(model, make_task(regression=True).test), 0.1)
