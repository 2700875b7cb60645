"""The exit loop over recorded layers against a plain one that knows a single row, for rules drawn at random."""

from unittest import mock

import torch
from hypothesis import given, strategies as st
from traces_by_hand import trace_of

from consistentee.rules.exit_rule import ConsecutiveRule, ExitRule, NeverExit, SameAnswerRule, ThresholdRule
from consistentee.signals import entropy, margin, top_probability
from consistentee.traces.walk import replay, sweep, walk

LAYERS, CLASSES = 6, 3


class Tabled(ExitRule):
    """Exits as a table [rows, layers] tells, where one layer may object after another has agreed."""

    def __init__(self, table):
        self.table = table

    def should_exit(self, view, state):
        return self.table[view.row_keys, view.layer - 1]


def row_by_row(rule, logits, exits):
    """Return where each row leaves if it is alone in its trace: nothing is masked, and nothing can be mixed up."""
    layers = []
    for number, row in enumerate(logits):
        trace = trace_of(row.unsqueeze(0))
        trace.row_keys = torch.tensor([number])
        state, left = rule.start(1, LAYERS), LAYERS
        for layer in exits[:-1]:
            if rule.should_exit(trace.view(layer), state).item():
                left = layer
                break
        layers.append(left)
    return layers


def generators():
    return st.integers(0, 2**31).map(lambda seed: torch.Generator().manual_seed(seed))


@st.composite
def all_logits(draw):
    """Return logits [rows, layers, classes] whose answers change now and then; there may be no row at all."""
    rows = draw(st.integers(0, 24))
    return torch.randn(rows, LAYERS, CLASSES, generator=draw(generators())).cumsum(dim=1)


def simple_rules():
    thresholds = st.floats(0, 1.1)
    tables = generators().map(lambda generator: Tabled(torch.rand(24, LAYERS, generator=generator) < 0.3))
    signals = st.sampled_from([entropy, margin, top_probability])
    thresholded = st.builds(ThresholdRule, signals, thresholds, st.sampled_from(["above", "below"]))
    return st.one_of(tables, thresholded, st.builds(SameAnswerRule), st.builds(NeverExit))


RULES = st.one_of(simple_rules(), st.builds(ConsecutiveRule, simple_rules(), st.integers(1, LAYERS)))
EXITS = st.sets(st.integers(1, LAYERS - 1)).map(lambda layers: [*sorted(layers), LAYERS])


@given(all_logits(), RULES, EXITS)
def test_a_replay_equals_a_loop_over_rows(logits, rule, exits):
    trace, taken, asked = trace_of(logits), [], []
    found, should_exit = [0] * len(trace), rule.should_exit

    def note(view, state):
        asked.append((view.layer, view.rows))
        return should_exit(view, state)

    with mock.patch.object(rule, "should_exit", note):
        for view, leaves in walk(rule, (taken.append(layer) or trace.view(layer) for layer in exits)):
            for row in leaves.nonzero().flatten().tolist():
                assert found[row] == 0, "a row exits once"
                found[row] = view.layer
    expected = row_by_row(rule, logits, exits)
    assert found == expected
    deepest = max(expected, default=exits[0])
    assert taken == [layer for layer in exits if layer <= deepest], "no view is taken once all rows have exited"
    assert asked == [(layer, len(trace)) for layer in exits if layer <= deepest and layer < LAYERS]


@given(all_logits(), st.lists(RULES, min_size=1, max_size=3))
def test_a_sweep_equals_replays_of_every_rule(logits, rules):
    trace, layers = trace_of(logits), range(1, LAYERS + 1)
    expected = [row_by_row(rule, logits, layers) for rule in rules]
    assert sweep(rules, trace).tolist() == expected
    assert [replay(rule, trace).tolist() for rule in rules] == expected
