"""Watch rules and layers while texts run, and run the stock model beside them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from benchmarks.testing.report import BrokenContractError, described, state_breaks
from consistentee.backbones.encoders import stepper_for
from consistentee.backbones.token_exits import TokenExitStepper
from consistentee.data.encoding import Encoding
from consistentee.engine.classify import stock_encoded
from consistentee.engine.speculation import stock_generate
from consistentee.models.classifiers import RecordedLayer
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.encoder import MultiExitModel
from consistentee.rules.exit_rule import ExitRule, State, ask
from consistentee.rules.view import LayerView


class WatchedRule(ExitRule):
    """Pass every question on to a rule, and check its state.

    Attributes:
        reading_layers: layers at which the rule makes the view compute anything.
        layer: the layer at which the rule is being asked, or failed; else 0.
    """

    def __init__(self, rule: ExitRule) -> None:
        self.rule = rule
        self.reads_history = rule.reads_history
        self.reading_layers: set[int] = set()
        self.layer = 0
        self._rows_at_start = self._rows_now = 0

    def start(self, rows: int, num_layers: int) -> State:
        """Return the rule's state. Raises BrokenContractError if its tensors do not have the rows first."""
        self._rows_at_start, self.layer = rows, 0
        state = self.rule.start(rows, num_layers)
        _check_state(state, rows)
        return state

    def should_exit(self, view: LayerView, state: State) -> Tensor:
        """Ask the rule. Raises BrokenContractError for a state that the engine could not cut."""
        self._rows_now, self.layer = view.rows, view.layer
        computed = len(vars(view))
        exits = ask(self.rule, view, state)
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
            left = self._rows_at_start - self._rows_now
            if self.layer and left:
                gone = f"{left} of {self._rows_at_start} rows have left"
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


def attributes_of(rule: ExitRule) -> dict[str, str]:
    """Return a rule's attributes as text; one that changes is something that the rule remembers on itself."""
    return {name: repr(value) for name, value in vars(rule).items()}


@contextmanager
def watched_calls(watchers: Iterable[tuple[nn.Module, Callable[..., None]]]) -> Iterator[None]:
    """Call each watcher after every call of its module, with the module, its inputs and its output."""
    hooks = [module.register_forward_hook(watcher) for module, watcher in watchers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def modules_of_later_layers(model: MultiExitModel | MultiExitDecoder, watched: WatchedRule) -> Iterator[list[str]]:
    """Record each call of a module that belongs to a later layer than the one that a rule is asked at."""
    later: list[str] = []

    def note(owner: str, layer: int) -> None:
        if 0 < watched.layer < layer:
            later.append(f"at layer {watched.layer} the rule used the {owner} of layer {layer}")

    with watched_calls((module, lambda *_, of=of: note(*of)) for module, *of in _modules_by_layer(model)):
        yield later


def _modules_by_layer(model: MultiExitModel | MultiExitDecoder) -> Iterator[tuple[nn.Module, str, int]]:
    owners: dict[str, Sequence[nn.Module] | nn.ModuleList] = {}
    if isinstance(model, MultiExitModel):
        owners = {"classifier": model.classifiers, "pooler": model.poolers}
    else:
        yield from ((model.adapter(layer), "exit adapter", layer) for layer in model.exit_layers[:-1])
    owners |= {f"head {name!r}": model.head(name).modules_by_layer for name in model.exit_heads}
    for owner, modules in owners.items():
        if len(modules) == model.num_layers:  # else layers share them
            yield from ((module, owner, layer) for layer, module in enumerate(modules, start=1))


@contextmanager
def counted_calls(model: MultiExitModel | MultiExitDecoder) -> Iterator[list[tuple[int, ...]]]:
    """Record rows and tokens of each row, padding included, of every call of a stock layer, by hooks.

    If tokens exit by themselves, the tokens are those that the layer updates.
    """
    calls: list[tuple[int, ...]] = []

    def count(_: nn.Module, inputs: tuple[Tensor, ...], __: object) -> None:
        calls.append(tuple(inputs[0].shape[:-1]))

    stepper, layers = model.stepper, range(1, model.num_layers + 1)
    if isinstance(stepper, TokenExitStepper):
        modules = [stepper.parts(layer).query for layer in layers]
    else:
        modules = [stepper.layer_module(layer) for layer in layers]
    with watched_calls((module, count) for module in dict.fromkeys(modules)):  # layers may share a module
        yield calls


@torch.no_grad()
def reference_logits(model: MultiExitModel, encodings: Sequence[Encoding], batch_size: int) -> Tensor:
    """Return the logits [N, classes] of the model without exits: the stock backbone's own forward.

    If tokens exit by themselves: the stock layers, run on all tokens, with the states of exited ones put back.
    """
    if not isinstance(model.stepper, TokenExitStepper):
        return stock_encoded(model, encodings, batch_size=batch_size)
    stock, logits = stepper_for(model.backbone), []
    for start in range(0, len(encodings), batch_size):
        batch = model.collate(encodings[start : start + batch_size])
        exits = model.stepper.token_exits.schedule[batch.input_ids].unsqueeze(-1)
        hidden, context = stock.begin(batch)
        for layer in range(1, model.num_layers + 1):
            hidden = torch.where(exits >= layer, stock.step(layer, hidden, context), hidden)
        pooled = model.pool(model.num_layers, hidden, batch.padding_mask)
        logits.append(model.classifier(model.num_layers)(RecordedLayer(pooled.unsqueeze(1))))
    return torch.cat(logits)


def stock_tokens(model: MultiExitDecoder, prompt: Sequence[int], new_tokens: int) -> list[int]:
    """Return the tokens that the stock model's own ``generate`` writes greedily after one prompt."""
    tokens = torch.tensor([prompt], device=model.device)
    return stock_generate(model, tokens, torch.ones_like(tokens), new_tokens)[0][0].tolist()
