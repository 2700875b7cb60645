"""Classify in batches: rows that exit are dropped from the batch, and answers are in the order of the texts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional

from consistentee.arguments import Positive, TextsOrPairs, checked
from consistentee.backbones.encoders import Context, layers_run
from consistentee.backbones.int8 import check_not_quantized
from consistentee.data.encoding import Batch, Encoding
from consistentee.errors import UserError
from consistentee.models.encoder import MultiExitModel
from consistentee.rules.exit_rule import ExitRule, State, ask, start_rule
from consistentee.rules.view import LayerView, predictions_of


@dataclass(frozen=True)
class Predictions:
    """Answers in the order of the texts.

    Attributes:
        predictions: class indices (int64 [N]), or values (float [N]) for a regression.
        exit_layers: int64 [N], 1-based.
        logits: [N, classes], of the classifier at the exit layer.
        layers_run: float [N], layers that a row's tokens ran on average: the exit layer, unless tokens exit too.
    """

    predictions: Tensor
    exit_layers: Tensor
    logits: Tensor
    layers_run: Tensor


class LiveView(LayerView):
    """The view of a layer that has just run on the active rows, for the rule and for the layer's classifier.

    ``past``: pooled vectors of the layers before [rows, layer - 1, width], or None if nothing reads them.
    """

    def __init__(
        self, model: MultiExitModel, layer: int, hidden: Tensor, batch: Batch, *, past: Tensor | None = None
    ) -> None:
        super().__init__(layer, model.num_layers, len(hidden), hidden.device)
        self._model = model
        self._hidden = hidden
        self.padding_mask = batch.padding_mask
        self._encodings = batch.encodings
        self._past = past

    @cached_property
    def hidden(self) -> Tensor:
        return self._model.stepper.read(self.layer, self._hidden)

    @cached_property
    def pooled(self) -> Tensor:
        return self._model.pool(self.layer, self.hidden, self.padding_mask)

    @cached_property
    def logits(self) -> Tensor:
        return self._model.classifier(self.layer)(self)

    @cached_property
    def row_keys(self) -> Tensor:
        return torch.tensor([encoding.key for encoding in self._encodings], device=self.device)

    def _run_head(self, name: str, extra: Tensor | None) -> Tensor:
        return self._model.head(name)(self.layer, self.pooled, extra)


@checked
def classify(
    model: MultiExitModel,
    texts: TextsOrPairs,
    rule: ExitRule,
    *,
    batch_size: Positive = 32,
    in_flight: Positive | None = None,
    max_length: Positive | None = None,
    sort_by_length: bool = True,
) -> Predictions:
    """Classify texts (single sentences, or pairs); ``rule`` decides after which layer each exits.

    Args:
        model, texts, batch_size: answers keep the order of ``texts``, however they are batched.
        rule: the exit rule; a row is a text.
        in_flight: rows under way. After every layer those that stay are regrouped into full batches of similar length.
            Exit layers are the same. With None a batch shrinks as its rows exit.
        max_length: number of tokens that texts are cut to, by default the model's own.
        sort_by_length: batch rows of similar length together.

    Raises:
        UserError: single texts and pairs are mixed, or the rule reads what only a trace has.
        ValueError: the rule does not return one bool a row.
    """
    check_not_quantized(model)
    encodings = model.tokenize(texts, max_length)
    return classify_encoded(
        model, encodings, rule, batch_size=batch_size, in_flight=in_flight, sort_by_length=sort_by_length
    )


def classify_encoded(
    model: MultiExitModel,
    encodings: Sequence[Encoding],
    rule: ExitRule,
    *,
    batch_size: int,
    in_flight: int | None = None,
    sort_by_length: bool = False,
) -> Predictions:
    """As :func:`classify`, on tokenised rows: what is timed."""
    if in_flight is not None and in_flight < batch_size:
        raise UserError(f"{in_flight} rows in flight are fewer than a batch, {batch_size}")
    model.eval()
    order = sorted(range(len(encodings)), key=lambda i: len(encodings[i]) if sort_by_length else 0)
    exited = _run(model, [encodings[i] for i in order], rule, batch_size, in_flight)
    numbers = torch.tensor([order[number] for part in exited for number in part.numbers], dtype=torch.long)
    layers = torch.tensor([part.layer for part in exited for _ in part.numbers], dtype=torch.long)
    places = numbers.argsort()
    exit_layers = layers[places]
    logits = torch.cat([part.logits for part in exited]).cpu()[places] if exited else torch.empty(0, model.num_labels)
    ran = layers_run(model.stepper.live_tokens(encodings), exit_layers)
    return Predictions(predictions_of(logits), exit_layers, logits, ran)


@torch.inference_mode()
def stock_encoded(model: MultiExitModel, encodings: Sequence[Encoding], *, batch_size: int) -> Tensor:
    """Run the stock backbone's own forward and the last classifier over tokenised rows: logits [N, classes]."""
    model.eval()
    starts = range(0, len(encodings), batch_size)
    parts = [model.stock_logits(model.collate(encodings[start : start + batch_size])) for start in starts]
    return torch.cat(parts).cpu()


class _Exited(NamedTuple):
    numbers: list[int]
    layer: int
    logits: Tensor


@dataclass
class _ActiveRows:
    """Rows between two layers: their places among all rows, the input of the next layer, and the state of the rule.

    ``past``: pooled vectors of the layers before, if they are read: [rows, layers, width].
    """

    model: MultiExitModel
    numbers: list[int]
    batch: Batch
    hidden: Tensor
    state: State
    past: Tensor | None
    context: Context | None = None

    @classmethod
    def begin(cls, model: MultiExitModel, numbers: list[int], encodings: Sequence[Encoding], rule: ExitRule) -> Self:
        batch = model.collate([encodings[number] for number in numbers])
        state = start_rule(rule, len(numbers), model.num_layers, model.device)
        hidden, context = model.stepper.begin(batch)
        return cls(model, numbers, batch, hidden, state, no_history_yet(model, rule, len(numbers)), context)

    def __len__(self) -> int:
        return len(self.numbers)

    def run(self, layer: int, rule: ExitRule) -> tuple[_Exited | None, Self | None]:
        """Run a layer; return the rows that exit, and the others. The rule's answer is read once."""
        model = self.model
        context = self.context or model.stepper.context(layer, self.hidden, self.batch)
        hidden = model.stepper.step(layer, self.hidden, context)
        view = LiveView(model, layer, hidden, self.batch, past=self.past)
        is_last = layer == model.num_layers
        exits = ask(rule, view, self.state) if not is_last and rule.asked_at(layer) else None
        exiting = [is_last] * len(self) if exits is None else exits.tolist()
        if all(exiting):
            return _Exited(self.numbers, layer, view.logits), None
        after = replace(self, hidden=hidden, past=None if self.past is None else view.history, context=context)
        if exits is None or not any(exiting):
            return None, after
        index = exits.argsort(stable=True)  # rows that stay come first
        staying = [place for place, left in enumerate(exiting) if not left]
        numbers = [number for number, left in zip(self.numbers, exiting, strict=True) if left]
        return _Exited(numbers, layer, view.logits[index[len(staying) :]]), after.select(staying, index[: len(staying)])

    def select(self, places: list[int], index: Tensor) -> Self:
        """Return the rows at some places, given as a tensor too, without the padding columns that others need."""
        batch = self.batch.select(places, index)
        return replace(
            self,
            numbers=[self.numbers[i] for i in places],
            batch=batch,
            hidden=self.hidden[:, : max(batch.lengths)].index_select(0, index),
            state={name: tensor[index] for name, tensor in self.state.items()},
            past=None if self.past is None else self.past[index],
            context=None,
        )

    def split_shortest(self, size: int) -> tuple[Self, Self]:
        places = sorted(range(len(self)), key=self.batch.lengths.__getitem__)
        index = torch.tensor(places, device=self.hidden.device)
        return self.select(places[:size], index[:size]), self.select(places[size:], index[size:])

    def join(self, other: Self) -> Self:
        first, second = self.batch, other.batch
        types = first.token_type_ids, second.token_type_ids
        batch = Batch(
            input_ids=_padded(first.input_ids, second.input_ids),
            padding_mask=_padded(first.padding_mask, second.padding_mask),
            token_type_ids=None if types[0] is None or types[1] is None else _padded(types[0], types[1]),
            lengths=[*first.lengths, *second.lengths],
            encodings=[*first.encodings, *second.encodings],
        )
        return replace(
            self,
            numbers=[*self.numbers, *other.numbers],
            batch=batch,
            hidden=_padded(self.hidden, other.hidden),
            state={name: torch.cat([tensor, other.state[name]]) for name, tensor in self.state.items()},
            past=None if self.past is None or other.past is None else torch.cat([self.past, other.past]),
            context=None,
        )


def _padded(first: Tensor, second: Tensor) -> Tensor:
    """Join rows of different numbers of tokens: [rows, tokens, ...]. Padding is 0, since a NaN passes any mask."""
    columns = max(first.shape[1], second.shape[1])
    sides = [0, 0] * (first.ndim - 2)
    return torch.cat([functional.pad(part, [*sides, 0, columns - part.shape[1]]) for part in (first, second)])


@torch.inference_mode()
def _run(
    model: MultiExitModel, encodings: Sequence[Encoding], rule: ExitRule, batch_size: int, in_flight: int | None
) -> list[_Exited]:
    """Run rows layer by layer: those that stay wait until they fill a batch. In step any number of rows is one.

    The deepest layer with a full batch runs, so that rows make room for others. Without one, the fullest layer runs;
    once all rows have entered, the first, whose rows join later ones.
    """
    most, full = (batch_size, 1) if in_flight is None else (in_flight, batch_size)
    unread = iter(range(len(encodings)))
    entered: list[int] = []
    waiting: dict[int, _ActiveRows] = {}
    exited: list[_Exited] = []
    while True:
        room = most - sum(map(len, waiting.values())) - len(entered)
        entered += (new := list(islice(unread, room)))
        counts = {layer: len(waiting[layer]) for layer in sorted(waiting)}
        counts = {1: len(entered)} | counts if entered else counts
        if not counts:
            return exited
        fullest = min(counts) if len(new) < room else max(counts, key=counts.__getitem__)
        layer = max((layer for layer in counts if counts[layer] >= full), default=fullest)
        if layer == 1:
            if len(entered) > batch_size:  # else the rows keep their order, and a batch its last bits
                entered.sort(key=lambda number: len(encodings[number]))
            rows, entered = _ActiveRows.begin(model, entered[:batch_size], encodings, rule), entered[batch_size:]
        else:
            rows = waiting.pop(layer)
            if len(rows) > batch_size:
                rows, waiting[layer] = rows.split_shortest(batch_size)
        left, stayed = rows.run(layer, rule)
        exited += [] if left is None else [left]
        if stayed is not None:
            waiting[layer + 1] = waiting[layer + 1].join(stayed) if layer + 1 in waiting else stayed


def no_history_yet(model: MultiExitModel, rule: ExitRule, rows: int) -> Tensor | None:
    """Return the empty history before layer 1 [rows, 0, width], or None where nothing reads it."""
    if not (model.reads_history or rule.reads_history):
        return None
    return torch.empty(rows, 0, model.width, dtype=model.dtype, device=model.device)
