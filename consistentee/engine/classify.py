"""Batched early-exit inference: rows that exit leave the batch, and the order of the answers is the order asked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from consistentee.arguments import Positive, TextsOrPairs, checked
from consistentee.backbones.encoders import layers_run
from consistentee.backbones.int8 import check_not_quantized
from consistentee.data.encoding import Batch, Encoding
from consistentee.errors import UserError
from consistentee.models.encoder.multi_exit_model import MultiExitModel
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
    """The view of a layer that has just run on the active rows: what a rule reads, and the layer's classifier.

    ``past`` holds the pooled vectors of the layers before [rows, layer - 1, width], or None if nothing reads them.
    """

    def __init__(
        self,
        model: MultiExitModel,
        layer: int,
        hidden: Tensor,
        batch: Batch,
        *,
        past: Tensor | None = None,
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
        return self._model.classify(self.layer, self)

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
    """Classify texts (single sentences, or pairs); ``rule`` decides at which layer each leaves the model.

    Args:
        model, texts, batch_size: answers keep the order of ``texts``, however they are batched.
        rule: the exit rule; a row is a text.
        in_flight: rows under way. After every layer those that stay are regrouped into full batches of similar length.
            Exit layers are the same. With None a batch shrinks as its rows exit.
        max_length: number of tokens that texts are cut to, by default the model's own.
        sort_by_length: batch rows of similar length together.

    Raises:
        UserError: an argument is wrong, single texts and pairs are mixed, or the rule reads what only a trace has.
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
    order, batches = _batches(model, encodings, batch_size, sort_by_length)
    if in_flight is None or not encodings:
        parts = [classify_batch(model, batch, rule) for batch in batches]
    else:
        rows = [encodings[i] for i in order]
        parts = [_RowsInFlight(model, rows, rule, batch_size, in_flight).classify()]
    logits = _in_order(order, [part[0] for part in parts], torch.empty(0, model.num_labels))
    exit_layers = _in_order(order, [part[1] for part in parts], torch.empty(0, dtype=torch.long))
    ran = layers_run(model.stepper.live_tokens(encodings), exit_layers)
    return Predictions(predictions_of(logits), exit_layers, logits, ran)


def stock_encoded(
    model: MultiExitModel, encodings: Sequence[Encoding], *, batch_size: int, sort_by_length: bool = False
) -> Tensor:
    """Run the stock backbone's own forward and the last classifier over tokenised rows: logits [N, classes]."""
    model.eval()
    order, batches = _batches(model, encodings, batch_size, sort_by_length)
    with torch.inference_mode():
        parts = [model.stock_logits(batch) for batch in batches]
    return _in_order(order, parts, torch.empty(0, model.num_labels))


@torch.inference_mode()
def classify_batch(model: MultiExitModel, batch: Batch, rule: ExitRule) -> tuple[Tensor, Tensor]:
    """Classify one batch: logits [rows, classes] and 1-based exit layers [rows], in the order of the batch.

    After every layer the rows that exit leave: their hidden states, masks, history and the rule's state are dropped,
    and so are the padding columns that only they needed.
    """
    rows = len(batch.lengths)
    logits = torch.empty(rows, model.num_labels, dtype=model.dtype, device=model.device)
    exit_layers = torch.full((rows,), model.num_layers, dtype=torch.long)
    active = torch.arange(rows)
    state = start_rule(rule, rows, model.num_layers, model.device)
    hidden, context = model.stepper.begin(batch)
    past = no_history_yet(model, rule, rows)
    for layer in range(1, model.num_layers + 1):
        hidden = model.stepper.step(layer, hidden, context)
        view = LiveView(model, layer, hidden, batch, past=past)
        if layer == model.num_layers:
            logits[active.to(model.device)] = view.logits
            break
        leaving = ask(rule, view, state).nonzero().flatten().tolist()
        past = past if past is None else view.history
        if not leaving:
            continue
        logits[active[leaving].to(model.device)] = view.logits[leaving]
        exit_layers[active[leaving]] = layer
        if len(leaving) == len(active):
            break
        gone = set(leaving)
        keep = [i for i in range(len(active)) if i not in gone]
        kept = torch.tensor(keep, device=model.device)
        batch = batch.select(keep, kept)
        hidden = hidden[:, : max(batch.lengths)].index_select(0, kept)
        context = model.stepper.context(layer + 1, hidden, batch)
        state = {name: tensor[kept] for name, tensor in state.items()}
        past = past if past is None else past[kept]
        active = active[keep]
    return logits, exit_layers


class _RowsInFlight:
    """Rows on their way through the layers, each in a slot; the slots of a layer wait until they fill a batch.

    Where more wait than a batch holds, the shortest run first: they have waited longest where rows are sorted.
    """

    def __init__(
        self, model: MultiExitModel, encodings: Sequence[Encoding], rule: ExitRule, batch_size: int, in_flight: int
    ) -> None:
        self._model = model
        self._rows = model.collate(encodings)
        self._rule = rule
        self._batch_size = batch_size
        self._free = list(range(min(in_flight, len(encodings))))
        self._unread = iter(range(len(encodings)))
        slots, longest = len(self._free), max(self._rows.lengths)
        self._row = [0] * slots
        self._waiting: list[list[int]] = [[] for _ in range(model.num_layers)]
        # What slots wait with. Zeros, because a NaN in the place of padding would pass through any mask.
        self._hidden = torch.zeros(slots, longest, model.width, dtype=model.dtype, device=model.device)
        self._states: list[State] = [{} for _ in self._waiting]
        past = no_history_yet(model, rule, slots)
        self._past = past if past is None else past.new_zeros(slots, model.num_layers, model.width)
        self._logits = torch.empty(len(encodings), model.num_labels, dtype=model.dtype, device=model.device)
        self._exit_layers = torch.empty(len(encodings), dtype=torch.long)

    @torch.inference_mode()
    def classify(self) -> tuple[Tensor, Tensor]:
        """Run all rows: logits [rows, classes] and 1-based exit layers [rows]."""
        while True:
            entering = dict(zip(self._free, self._unread, strict=False))
            del self._free[: len(entering)]
            for slot, row in entering.items():
                self._row[slot] = row
            self._waiting[0] += entering
            if not any(self._waiting):
                return self._logits, self._exit_layers
            index = self._next_layer(all_entered=bool(self._free))
            slots = sorted(self._waiting[index], key=lambda slot: self._rows.lengths[self._row[slot]])
            self._waiting[index] = slots[self._batch_size :]
            self._run(index + 1, slots[: self._batch_size])

    def _next_layer(self, all_entered: bool) -> int:
        """Choose the index of the layer to run: the deepest with a full batch, so that rows make room for others.

        Without one, the fullest layer runs; once all rows have entered, the first layer, whose rows join later ones.
        """
        counts = [len(slots) for slots in self._waiting]
        full = [index for index, count in enumerate(counts) if count >= self._batch_size]
        if full:
            return full[-1]
        return next(filter(counts.__getitem__, range(len(counts)))) if all_entered else counts.index(max(counts))

    def _run(self, layer: int, slots: list[int]) -> None:
        model, rows = self._model, [self._row[slot] for slot in slots]
        places, row_index = torch.tensor([slots, rows], device=self._hidden.device)
        batch = self._rows.select(rows, row_index)
        if layer == 1:
            hidden, context = model.stepper.begin(batch)
            state = start_rule(self._rule, len(slots), model.num_layers, model.device)
        else:
            hidden = self._hidden[:, : max(batch.lengths)].index_select(0, places)
            context = model.stepper.context(layer, hidden, batch)
            state = {name: tensor[places] for name, tensor in self._states[layer - 1].items()}
        hidden = model.stepper.step(layer, hidden, context)
        past = None if self._past is None else self._past[places, : layer - 1]
        view = LiveView(model, layer, hidden, batch, past=past)
        leaving = list(range(len(slots)))
        if layer < model.num_layers:
            leaving = ask(self._rule, view, state).nonzero().flatten().tolist()
        if leaving:
            left = [rows[i] for i in leaving]
            self._logits[left] = view.logits[leaving]
            self._exit_layers[left] = layer
            self._free += [slots[i] for i in leaving]
        gone = set(leaving)
        staying = [slot for i, slot in enumerate(slots) if i not in gone]
        if staying:  # what is written of rows that exit is never read
            self._waiting[layer] += staying
            self._hidden[:, : hidden.shape[1]].index_copy_(0, places, hidden)
            self._keep_state(layer, places, state)
            if self._past is not None:
                self._past[places, :layer] = view.history

    def _keep_state(self, layer: int, places: Tensor, state: State) -> None:
        kept = self._states[layer]
        for name, tensor in state.items():
            if name not in kept:
                kept[name] = tensor.new_zeros(len(self._row), *tensor.shape[1:])
            kept[name][places] = tensor


def no_history_yet(model: MultiExitModel, rule: ExitRule, rows: int) -> Tensor | None:
    """Return the history before layer 1 [rows, 0, width], or None where neither classifiers nor rule read it."""
    if not (model.reads_history or rule.reads_history):
        return None
    return torch.empty(rows, 0, model.width, dtype=model.dtype, device=model.device)


def _batches(
    model: MultiExitModel, encodings: Sequence[Encoding], size: int, sort_by_length: bool
) -> tuple[list[int], Iterator[Batch]]:
    """Return the order in which rows run, and their batches, which are made one at a time."""
    order = sorted(range(len(encodings)), key=lambda i: len(encodings[i]) if sort_by_length else 0)
    chunks = (order[start : start + size] for start in range(0, len(order), size))
    return order, (model.collate([encodings[i] for i in rows]) for rows in chunks)


def _in_order(order: list[int], parts: list[Tensor], nothing: Tensor) -> Tensor:
    """Join what the batches gave, in the order asked: [N, ...] on the CPU; ``nothing`` if there is no batch."""
    return torch.cat(parts).cpu()[torch.argsort(torch.tensor(order))] if parts else nothing
