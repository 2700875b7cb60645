"""Count floating point operations of one call, and of a rule layer by layer, with torch's counter.

A multiply-add is two operations; only matrix products count. Attention is not fused while it is counted, because
torch's counter does not see fused attention on a CPU.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import attrgetter
from typing import NamedTuple, TypeVar

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from consistentee.rules.exit_rule import ExitRule, NeverExit, State
from consistentee.rules.view import LayerView
from consistentee.traces.walk import walk

Result = TypeVar("Result")
View = TypeVar("View", bound=LayerView)


class ExitCost(NamedTuple):
    """Operations of one row at each exit layer: of the rule's reads, with what later layers need, and of the answer."""

    reading: dict[int, int]
    answering: dict[int, int]


def count_operations(call: Callable[[], Result]) -> tuple[int, Result]:
    """Count the operations of a call, and return them with its result."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = call()
    return int(counter.get_total_flops()), result


@contextmanager
def eager_attention(backbones: Sequence[PreTrainedModel]) -> Iterator[None]:
    """Use eager attention, which the counter sees, in the block."""
    usual = [backbone.config._attn_implementation for backbone in backbones]
    for backbone in backbones:
        backbone.set_attn_implementation("eager")
    try:
        yield
    finally:
        for backbone, attention in zip(backbones, usual, strict=True):
            backbone.set_attn_implementation(attention)


def count_exits(
    rule: ExitRule,
    layers: Sequence[int],
    view_at: Callable[[int, Tensor | None], View],
    past: Tensor | None,
    answer: Callable[[View], Tensor] = attrgetter("predictions"),
) -> ExitCost:
    """Count the reads of a rule at every exit but the last.

    Args:
        rule: the exit rule.
        layers: of the exits, the last layer included.
        view_at: makes the view of a layer, given the history before it.
        past: the history before the first layer [1, 0, width], or None if it is not read.
        answer: computes the answer of a row that exits at a view's layer.
    """
    counted = _CountedRule(rule, keeps_history=past is not None)
    steps = walk(counted, _views(layers, view_at, past))
    answering = {view.layer: count_operations(partial(answer, view))[0] for view, _ in steps}
    return ExitCost(dict.fromkeys(layers, 0) | counted.reading, answering)


def _views(layers: Sequence[int], view_at: Callable[[int, Tensor | None], View], past: Tensor | None) -> Iterator[View]:
    for layer in layers:
        view = view_at(layer, past)
        yield view
        past = None if past is None else view.history


class _CountedRule(NeverExit):
    def __init__(self, rule: ExitRule, *, keeps_history: bool) -> None:
        self.rule = rule
        self.keeps_history = keeps_history
        self.reading: dict[int, int] = {}

    def start(self, rows: int, num_layers: int) -> State:
        return self.rule.start(rows, num_layers)

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        asked, _ = count_operations(partial(self.rule.should_exit, view, state))
        kept = count_operations(partial(getattr, view, "history"))[0] if self.keeps_history else 0
        self.reading[view.layer] = asked + kept
        return super().should_exit(view, state)
