"""WatchedRule: a rule whose every question is noted: what it read, which layers it used, how its state looked."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from benchmarks.contract.faults import BrokenContractError, state_breaks
from consistentee.rules.exit_rule import ExitRule, State
from consistentee.rules.view import LayerView

COMPUTED = ("hidden", "pooled", "logits", "row_keys", "labels")
"""What a view computes, and keeps, when a rule asks for it."""


class WatchedRule(ExitRule):
    """Passes every question on to a rule.

    Attributes:
        rule: the rule.
        reads: by layer, what it asked the view for: names of :data:`COMPUTED`, and ``head NAME``.
        rows_at_start, rows_now: rows of the batch when it began, and when the rule was last asked.
        layer: the layer that the rule is being asked at, or was asked at when it failed; else 0.
    """

    def __init__(self, rule: ExitRule) -> None:
        self.rule = rule
        self.reads_history = rule.reads_history
        self.reads: dict[int, set[str]] = {}
        self.rows_at_start = self.rows_now = self.layer = 0

    def start(self, rows: int, num_layers: int) -> State:
        """Return the rule's state. Raises BrokenContractError if its tensors do not have the rows first."""
        self.rows_at_start, self.layer = rows, 0
        state = self.rule.start(rows, num_layers)
        _check_state(state, rows)
        return state

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        """Ask the rule. Raises BrokenContractError for a state that the engine could not cut."""
        self.rows_now, self.layer = view.rows, view.layer
        reads = self.reads.setdefault(view.layer, set())
        with _noted_heads(view, reads):
            leaves = self.rule.should_exit(view, state)
        self.layer = 0
        reads |= {name for name in COMPUTED if name in vars(view)}
        _check_state(state, view.rows)
        return leaves


def _check_state(state: State, rows: int) -> None:
    if not isinstance(state, dict):
        raise BrokenContractError("start() must return a dict of tensors", f"it returned {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != rows:
            found = f"has the shape {list(value.shape)}" if isinstance(value, Tensor) else f"is {type(value).__name__}"
            raise state_breaks(f"the state {name!r} {found} while {rows} rows are active")


@contextmanager
def _noted_heads(view: LayerView, reads: set[str]) -> Iterator[None]:
    ask = view.head

    def head(name: str, extra: Tensor | None = None) -> Tensor:
        reads.add(f"head {name}")
        return ask(name, extra)

    view.head = head  # type: ignore[method-assign]
    try:
        yield
    finally:
        del view.head


@contextmanager
def modules_of_later_layers(modules: Iterable[tuple[str, int, nn.Module]], watched: WatchedRule) -> Iterator[list[str]]:
    """Note, while a watched rule runs, every module (owner, layer, module) that belongs to a layer still to come."""
    later: list[str] = []

    def note(owner: str, layer: int) -> None:
        if 0 < watched.layer < layer:
            later.append(f"at layer {watched.layer} the rule used the {owner} of layer {layer}")

    notes = [(module, lambda *_, owner=owner, layer=layer: note(owner, layer)) for owner, layer, module in modules]
    with watched_calls(notes):
        yield later


@contextmanager
def watched_calls(watchers: Iterable[tuple[nn.Module, Callable[..., None]]]) -> Iterator[None]:
    """Call each watcher after every call of its module, with the module, its inputs and its output."""
    hooks = [module.register_forward_hook(watcher) for module, watcher in watchers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def attributes_of(rule: ExitRule) -> dict[str, str]:
    """Return a rule's attributes as text, to be compared: what changes there is what the rule remembers on itself."""
    return {name: repr(value) for name, value in vars(rule).items()}
