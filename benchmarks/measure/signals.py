"""Quantiles of the value that a rule compares with its threshold, layer by layer."""

import torch
from torch import Tensor

from benchmarks.store.records import SIGNAL_QUANTILES
from consistentee.rules.exit_rule import ExitRule, NeverExit, State
from consistentee.rules.view import LayerView
from consistentee.traces.instance_trace import Trace
from consistentee.traces.walk import replay


def signal_quantiles(rule: ExitRule, trace: Trace) -> list[list[float]]:
    """Compute the quantiles of the rule's signal over all rows: one list for each layer of the rule.

    All rows count at every layer, so that layers can be compared. Empty for a rule without a compared value.
    """
    comparing = _Comparing(rule)
    replay(comparing, trace)
    compared = [values for values in comparing.values if values is not None]
    if len(compared) < len(comparing.values):
        return []
    levels = torch.tensor(SIGNAL_QUANTILES, dtype=torch.float64)
    return [torch.quantile(values.double(), levels).tolist() for values in compared]


class _Comparing(NeverExit):
    """Record the compared values of another rule and never exit."""

    def __init__(self, rule: ExitRule) -> None:
        self.rule = rule
        self.values: list[Tensor | None] = []

    def start(self, rows: int, num_layers: int) -> State:
        return self.rule.start(rows, num_layers)

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        self.values.append(self.rule.compared_value(view, state))
        return super().should_exit(view, state)
