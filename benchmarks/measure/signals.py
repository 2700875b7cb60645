"""What a rule compares with its threshold, layer by layer, summed up in a few quantiles for the record."""

import torch

from benchmarks.store.records import SIGNAL_QUANTILES
from consistentee.rules.exit_rule import ExitRule
from consistentee.traces.instance_trace import Trace


@torch.inference_mode()
def signal_quantiles(rule: ExitRule, trace: Trace) -> list[list[float]]:
    """Return the quantiles over all rows of the rule's signal: one list a layer that the rule is asked at.

    Rows count at every layer, those that have left before too, so that layers can be compared. Empty for a rule that
    compares nothing with a threshold.
    """
    state = rule.start(len(trace), trace.num_layers)
    levels = torch.tensor(SIGNAL_QUANTILES, dtype=torch.float64)
    quantiles = []
    for layer in range(1, trace.num_layers):
        values = rule.compared_value(trace.view(layer), state)
        if values is None:
            return []
        quantiles.append(torch.quantile(values.double(), levels).tolist())
    return quantiles
