"""Trace: the outputs of every layer for every row, recorded in one full-depth pass; any rule is replayed on it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from consistentee.arguments import Positive, check_layer, checked
from consistentee.backbones.encoders import layers_run
from consistentee.backbones.int8 import check_not_quantized
from consistentee.data.encoding import Encoding, fingerprint
from consistentee.data.tasks import Split
from consistentee.errors import UserError
from consistentee.files import computed_once, empty_tensor, hash_json, load_tensors
from consistentee.models.base import ExitHeads
from consistentee.models.encoder import LayerOutputs, MultiExitModel
from consistentee.progress import tracked
from consistentee.rules.view import LayerView, predictions_of


@dataclass
class Trace:
    """Every layer's signals for a whole split, in the order of the split.

    Attributes:
        logits: float [N, L, classes].
        labels: int64 [N], or float [N] for a regression.
        pooled: inputs of the classifiers: float [N, L, width].
        lengths: number of tokens a row: int64 [N].
        row_keys: see :class:`LayerView`: int64 [N].
        heads: the model's learned heads.
        live_tokens: see :meth:`consistentee.backbones.encoders.EncoderStepper.live_tokens`: int64 [N, L], or None.
        encodings: the rows as tokens.
    """

    logits: Tensor
    labels: Tensor
    pooled: Tensor
    lengths: Tensor
    row_keys: Tensor
    heads: dict[str, ExitHeads] = field(default_factory=dict)
    live_tokens: Tensor | None = None
    encodings: Sequence[Encoding] = field(default=(), repr=False)

    def __len__(self) -> int:
        return self.logits.shape[0]

    @property
    def num_layers(self) -> int:
        """Number of layers, L."""
        return self.logits.shape[1]

    @cached_property
    def _views(self) -> list["TraceView"]:
        """The views of all layers on all rows, which all rules of a sweep share."""
        return [TraceView(self, layer) for layer in range(1, self.num_layers + 1)]

    def view(self, layer: int) -> "TraceView":
        """Return the view of one layer on all rows."""
        return self._views[check_layer(layer, self.num_layers) - 1]

    def parts(self) -> Iterator[tuple[Tensor, list["TraceView"]]]:
        """Yield all rows and the views of all layers: rules are asked about all rows together."""
        yield torch.arange(len(self)), self._views

    def logits_at(self, exits: Tensor) -> Tensor:
        """Return each row's logits at its exit layer: [N, classes]. ``exits``: 1-based int64 [N]."""
        return self.logits[torch.arange(len(self)), exits - 1]

    def predictions(self, exits: Tensor) -> Tensor:
        """Return each row's answer at its exit layer: [N]."""
        return predictions_of(self.logits_at(exits))

    def layers_run(self, exits: Tensor) -> Tensor:
        """Return how many layers each row's tokens run on average, if rows exit at ``exits``: float [N]."""
        return layers_run(self.live_tokens, exits)


class TraceView(LayerView):
    """The view of one recorded layer on all rows of the trace."""

    def __init__(self, trace: Trace, layer: int) -> None:
        super().__init__(layer, trace.num_layers, len(trace), trace.logits.device)
        self._trace = trace

    @cached_property
    def hidden(self) -> Tensor:
        raise UserError("a trace does not keep the hidden states of every token; run this rule live, or read .pooled")

    @cached_property
    def pooled(self) -> Tensor:
        return self._trace.pooled[:, self.layer - 1]

    @cached_property
    def history(self) -> Tensor:
        return self._trace.pooled[:, : self.layer]

    @cached_property
    def logits(self) -> Tensor:
        return self._trace.logits[:, self.layer - 1]

    @cached_property
    def row_keys(self) -> Tensor:
        return self._trace.row_keys

    @cached_property
    def labels(self) -> Tensor:
        return self._trace.labels

    @torch.inference_mode()
    def _run_head(self, name: str, extra: Tensor | None) -> Tensor:
        if name not in self._trace.heads:
            raise UserError(f"the trace has no head {name!r}; record it with a model that has this head")
        heads = self._trace.heads[name]
        device = next(heads.parameters()).device
        return heads(self.layer, self.pooled.to(device), None if extra is None else extra.to(device)).cpu()


def record_outputs(
    model: MultiExitModel, encodings: Sequence[Encoding], *, batch_size: int = 64, store: Path | None = None
) -> LayerOutputs:
    """Run ``model`` at full depth, in eval mode, over tokenised rows: all layers of all rows, in order, on the CPU.

    ``store`` is a folder where outputs are kept, so that methods that share a model share its pass.
    """
    run = partial(_record, model, encodings, ("vectors", "pooled", "logits"), batch_size)
    tensors = run() if store is None else computed_once(_outputs_file(store, model, encodings, batch_size), run)
    return LayerOutputs(tensors["vectors"], tensors.get("pooled", tensors["vectors"]), tensors["logits"])


def record_logits(
    model: MultiExitModel, encodings: Sequence[Encoding], *, batch_size: int = 64, store: Path | None = None
) -> Tensor:
    """Return every layer's logits at full depth: float [rows, L, classes].

    A pass that :func:`record_outputs` stored is read; nothing is stored here.
    """
    stored = None if store is None else load_tensors(_outputs_file(store, model, encodings, batch_size))
    return (stored or _record(model, encodings, ("logits",), batch_size))["logits"]


def _outputs_file(store: Path, model: MultiExitModel, encodings: Sequence[Encoding], batch_size: int) -> Path:
    key = hash_json([model.fingerprint(with_heads=False), fingerprint(encodings), batch_size])[:16]
    return store / f"outputs-{key}.safetensors"


@torch.no_grad()
def _record(
    model: MultiExitModel, encodings: Sequence[Encoding], names: Sequence[str], batch_size: int
) -> dict[str, Tensor]:
    """Return some of the fields of :class:`LayerOutputs` for all rows; ``pooled`` only where it is not ``vectors``."""
    model.eval()
    order = sorted(range(len(encodings)), key=lambda i: len(encodings[i]))
    recorded: dict[str, Tensor] = {}
    starts = range(0, len(order), batch_size)
    for start in tracked(starts, "tracing", rows=batch_size):
        rows = order[start : start + batch_size]
        outputs = model(model.collate([encodings[i] for i in rows]))
        for name in names:
            values = getattr(outputs, name)
            if name == "pooled" and values is outputs.vectors:
                continue
            if name not in recorded:
                recorded[name] = empty_tensor((len(encodings), *values.shape[1:]), values.dtype)
            recorded[name][rows] = values.cpu()
    return recorded


@checked
@torch.no_grad()
def record_trace(
    model: MultiExitModel,
    split: Split,
    *,
    batch_size: Positive = 64,
    max_length: Positive | None = None,
    store: Path | None = None,
) -> Trace:
    """Run ``model`` once at full depth over a split, and keep the outputs of every layer for every row.

    ``store`` is a folder where full-depth passes are kept, see :func:`record_outputs`.
    """
    check_not_quantized(model)
    encodings = model.tokenize(split.texts, max_length)
    outputs = record_outputs(model, encodings, batch_size=batch_size, store=store)
    return Trace(
        logits=outputs.logits,
        labels=torch.tensor(split.labels),
        pooled=outputs.pooled,
        lengths=torch.tensor([len(encoding) for encoding in encodings]),
        row_keys=torch.tensor([encoding.key for encoding in encodings]),
        heads={name: model.head(name) for name in model.exit_heads},
        live_tokens=model.stepper.live_tokens(encodings),
        encodings=encodings,
    )
