"""The exit loop over recorded layers, and the replay of rules with it, for rows of both kinds."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from consistentee.arguments import checked
from consistentee.rules.exit_rule import ExitRule, State, ask, start_rule
from consistentee.rules.view import LayerView
from consistentee.traces.instance_trace import Trace
from consistentee.traces.token_trace import TokenTrace

View = TypeVar("View", bound=LayerView)
Recorded = Trace | TokenTrace


def walk(rule: ExitRule, views: Iterable[View], *, to_the_end: bool = False) -> Iterator[tuple[View, Tensor]]:
    """Yield the view of each exit and which rows leave there: bool [rows]. Every row leaves once.

    A rule is asked about all rows at every exit but the last, where the remaining rows leave. Views are taken one at a
    time, and none once all rows have left, so that they may run the layers themselves; ``to_the_end`` takes all, and
    waits for no device.
    """
    active: Tensor | None = None
    state: State = {}
    for view in views:
        if active is None:
            active = torch.ones(view.rows, dtype=torch.bool, device=view.device)
            state = start_rule(rule, view.rows, view.num_layers, view.device)
        leaves = active if view.layer == view.num_layers else ask(rule, view, state) & active
        yield view, leaves
        active = active & ~leaves
        if not (to_the_end or active.any()):
            break


@checked
@torch.inference_mode()
def sweep(rules: Sequence[ExitRule], trace: Recorded) -> Tensor:
    """Replay many rules (one a knob value) on one trace: 1-based exit layers, int64 [rules, N].

    What the rules read is computed once for all of them, a part of the trace at a time.
    """
    exits = torch.full((len(rules), len(trace)), trace.num_layers)
    for rows, views in trace.parts():
        found = torch.full((len(rules), len(rows)), trace.num_layers, device=views[0].device)
        for own, rule in zip(found, rules, strict=True):
            for view, leaves in walk(rule, views, to_the_end=found.device.type != "cpu"):
                own.masked_fill_(leaves, view.layer)
        exits[:, rows] = found.cpu()
    return exits


@checked
def replay(rule: ExitRule, trace: Recorded) -> Tensor:
    """Return the 1-based exit layer of every row of the trace under ``rule``: int64 [N].

    Tokens that may not exit early have layer L.
    """
    return sweep([rule], trace)[0]
