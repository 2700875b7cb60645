"""WatchedRule, which records how a rule is asked and what it reads; and hooks on the calls of modules."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from benchmarks.testing.faults import BrokenContractError, described, state_breaks
from consistentee.rules.exit_rule import ExitRule, State
from consistentee.rules.view import LayerView


class WatchedRule(ExitRule):
    """Pass every question on to a rule, and check its state.

    Attributes:
        rule: the rule.
        reading_layers: layers at which it makes the view compute anything.
        rows_at_start, rows_now: rows of the batch when it began, and when the rule was last asked.
        layer: the layer at which the rule is being asked, or failed; else 0.
    """

    def __init__(self, rule: ExitRule) -> None:
        self.rule = rule
        self.reads_history = rule.reads_history
        self.reading_layers: set[int] = set()
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
        computed = len(vars(view))
        exits = self.rule.should_exit(view, state)
        self.layer = 0
        if len(vars(view)) > computed:  # a view keeps what it computes
            self.reading_layers.add(view.layer)
        _check_state(state, view.rows)
        return exits

    @contextmanager
    def failures_described(self, knob: float, layers: int) -> Iterator[None]:
        """Raise BrokenContractError with the layer and the rows at which the rule fails in the block."""
        try:
            yield
        except BrokenContractError:
            raise
        except Exception as error:  # a user's rule may fail in any way
            left = self.rows_at_start - self.rows_now
            if self.layer and left:
                gone = f"{left} of {self.rows_at_start} rows have left"
                example = f"it fails at layer {self.layer} once {gone} (knob {knob:g}): {described(error)}"
                raise state_breaks(example) from error
            where = f"at layer {self.layer} of {layers}, counted from 1, " if self.layer else ""
            example = f"{where}knob {knob:g}: {described(error)}"
            raise BrokenContractError("the rule fails on new texts", example) from error


def _check_state(state: State, rows: int) -> None:
    if not isinstance(state, dict):
        raise BrokenContractError("start() must return a dict of tensors", f"it returned {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != rows:
            found = f"has the shape {list(value.shape)}" if isinstance(value, Tensor) else f"is {type(value).__name__}"
            raise state_breaks(f"the state {name!r} {found} while {rows} rows are active")


@contextmanager
def modules_of_later_layers(modules: Iterable[tuple[str, int, nn.Module]], watched: WatchedRule) -> Iterator[list[str]]:
    """Record each call of a module (owner, layer, module) whose layer is after the one that a rule is asked at."""
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
    """Return a rule's attributes as text; one that changes is something that the rule remembers on itself."""
    return {name: repr(value) for name, value in vars(rule).items()}
