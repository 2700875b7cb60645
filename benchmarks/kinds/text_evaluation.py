"""Evaluate a cell of generation: replay every knob, decode the test prompts at some, and build the frames.

Knobs are decoded by their layers on validation prompts alone: every knob is replayed on the full model's own texts of
them. The test prompts are then decoded for real at full depth and at knobs around the budgets, and their references
are read.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.kinds.kind import CellRows
from benchmarks.measure.flops import DecodingFlops
from benchmarks.measure.knobs import ROUNDING, around_budgets
from benchmarks.specs.base import GenerationCellSpec
from benchmarks.specs.schema import hash_value
from benchmarks.store.records import GenerationRecord
from consistentee.data.metrics import rouge, rouge_to_full, token_match
from consistentee.data.tasks import PromptSplit, TextTask
from consistentee.engine.generate import Generations, generate
from consistentee.engine.sampling import begin_texts, settings_of
from consistentee.engine.speculation import SpeculativeGenerations
from consistentee.engine.token_batch import ReadPrompts
from consistentee.files import computed_once
from consistentee.methods.token_methods import DraftingMethod, TokenMethod, VocabularyMethod
from consistentee.models.base import chosen_device
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import ExitRule, NeverExit
from consistentee.traces.token_trace import CHUNK, TokenRow, TokenTrace, encode_rows, record_tokens
from consistentee.traces.walk import sweep
from consistentee.training.decoder import exit_answers
from consistentee.training.loop import precision_used

_DRAFTED_PROMPTS = 16
"""Validation prompts that a method which drafts and verifies decodes at every knob: its texts are known beforehand."""
_MARGIN = 0.06
"""Decoded knobs lie outside of a budget by this share of it, for test prompts run other layers than validation ones."""
FAITHFUL = 0.9
"""The knob of a saved decoder names so many tokens as the full model does."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReplayedKnob:
    """A knob on validation prompts: mean layers, and the share of tokens that the exit names as the full model does.

    Where a method drafts and verifies, prompts are decoded instead, and the layers are those called a token; ``draft``
    is the length of drafts, and the probability below which one ends.
    """

    knob: float
    layers: float
    agreement: float
    draft: tuple[int, float] | None = None


class Written(NamedTuple):
    """Texts for the test prompts at a place of the curve, their scores, and the loss of each reference there, in nats.

    Scores, by name, are in [0, 1]: against the references, against the full model's texts (ROUGE-L, 1 for equal texts),
    and the share of places with the full model's token.
    """

    place: int
    texts: Generations
    scores: dict[str, NDArray[np.float64]]
    nats: NDArray[np.float64]


class PromptDecoder:
    """Decodes with one trained model, greedily. Prompts are read once for all knobs, as far as memory goes.

    ``store`` keeps the tokens that the full model writes under all that they depend on.
    """

    def __init__(
        self, model: MultiExitDecoder, method: TokenMethod, *, max_new_tokens: int, batch_size: int, store: Path | None
    ) -> None:
        self.model = model
        self.method = method
        self.options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
        self.store = store
        self._read = ReadPrompts()

    def at(self, knob: float, prompts: PromptSplit) -> Generations:
        """Decode prompts with the method at one value of its knob."""
        options = self.options if self.method.has_own_loop else self.options | {"read": self._read}
        return self.method.generate(self.model, prompts.prompts, knob, **options)

    def full(self, prompts: PromptSplit) -> Generations:
        """Decode prompts at full depth: once for all cells whose backbone has the same weights. It is not timed."""
        model = self.model

        def write() -> dict[str, Tensor]:
            written = generate(model, prompts.prompts, NeverExit(), **self.options, read=self._read).tokens
            lengths = torch.tensor([len(tokens) for tokens in written])
            return {"tokens": torch.cat([*written, torch.empty(0, dtype=torch.long)]), "lengths": lengths}

        if self.store is None:
            kept = write()
        else:
            weights = model.backbone_fingerprint()
            described = [weights, *settings_of(model).items(), list(map(str, prompts.prompts)), self.options]
            kept = computed_once(self.store / f"texts-{hash_value(described)[:16]}.safetensors", write)
        encoded = model.encode(prompts.prompts)
        texts = begin_texts(model, encoded, max_new_tokens=self.options["max_new_tokens"])
        for text, tokens in zip(texts, kept["tokens"].split(kept["lengths"].tolist()), strict=True):
            text.extend(tokens.tolist(), model.num_layers)
        return Generations.of(texts, prefill_seconds=0.0, decode_seconds=0.0)


class TextEvaluation:
    """A model that decodes, its knobs on validation prompts, and the test prompts at some and at full depth.

    Methods that draft and verify choose their drafts by replay, and are then run for the layers that they call.
    """

    def __init__(
        self,
        spec: GenerationCellSpec,
        rows: CellRows[TextTask],
        method: TokenMethod,
        model: MultiExitDecoder,
        store: Path | None,
    ) -> None:
        self.spec, self.rows = spec, rows
        longest = token_limits(spec, rows)[1]
        self.decoder = PromptDecoder(model, method, max_new_tokens=longest, batch_size=spec.batch_size, store=store)
        self.prompts, self.truncated = fitted(model, spec, rows, "test")
        validation, _ = fitted(model, spec, rows, "validation")
        self.replayed = (drafted_knobs if method.drafts else replay_knobs)(self.decoder, validation)
        layers = [point.layers for point in self.replayed]
        self.decoded = sorted(around_budgets(layers, model.num_layers, "generation", margin=_MARGIN))

    @property
    def default_knob(self) -> float:
        """The cheapest knob whose tokens nearly always agree with the full model's; the last if drafts cost more."""
        model, last = self.decoder.model, float(self.decoder.method.knob_values(self.decoder.model)[-1])
        enough = min(FAITHFUL, max(point.agreement for point in self.replayed)) - ROUNDING
        cheapest = min((point for point in self.replayed if point.agreement >= enough), key=lambda point: point.layers)
        return cheapest.knob if cheapest.layers <= model.num_layers else last

    @cached_property
    def references(self) -> tuple[NDArray[np.int64], list[NDArray[np.float64]]]:
        """Tokens and losses of the references at full depth and at the decoded knobs, see :func:`read_references`."""
        return read_references(self.decoder, self.prompts, [self.replayed[place].knob for place in self.decoded])

    @cached_property
    def written(self) -> list[Written]:
        """The test prompts at every decoded knob, and last at full depth."""
        full, *at_knobs = self.references[1]
        found = []
        for place, nats in zip(self.decoded, at_knobs, strict=True):
            texts = self.decoder.at(self.replayed[place].knob, self.prompts)
            found.append(Written(place, texts, self._scores(texts), nats))
            _logger.info("knob %g: %.2f layers", self.replayed[place].knob, texts.average_layers)
        return [*found, Written(len(self.replayed), self.full, self._scores(self.full), full)]

    @cached_property
    def full(self) -> Generations:
        return self.decoder.full(self.prompts)

    def _scores(self, texts: Generations) -> dict[str, NDArray[np.float64]]:
        return {
            **rouge(self.prompts.references, texts.texts, self.rows.task.metrics),
            "rougeL_to_full": rouge_to_full(self.full.texts, texts.texts),
            "match": token_match(self.full.tokens, texts.tokens),
        }

    def record(self, **shared: Any) -> GenerationRecord:
        model, recipe = self.decoder.model, self.spec.recipe
        max_prompt_tokens, max_new_tokens = token_limits(self.spec, self.rows)
        return GenerationRecord(
            **shared,
            num_layers=model.num_layers,
            train_task=self.rows.training.name,
            training_precision=None if recipe.trains == "exits" else precision_used(recipe.precision, chosen_device()),
            exit_layers=list(model.exit_layers),
            closing_layers=len(model.last_layers),
            max_prompt_tokens=max_prompt_tokens,
            max_new_tokens=max_new_tokens,
            kv=self.decoder.method.kv,
            truncated_prompts=sum(self.truncated),
        )

    @cached_property
    def curve(self) -> pd.DataFrame:
        """The frame of the curve, see :mod:`benchmarks.store.frames`; undecoded knobs have no test columns."""
        depth = self.decoder.model.num_layers
        points = [*self.replayed, ReplayedKnob(float("nan"), float(depth), 1.0)]
        found = pd.DataFrame([(point.knob, point.layers, point.agreement) for point in points])
        found = found.set_axis(["knob", "validation_layers", "validation_score"], axis="columns")
        found.insert(0, "place", np.arange(len(points)))
        flops = DecodingFlops(self.decoder.model)
        measured = pd.DataFrame([self._measured(flops, written) for written in self.written])
        drafts = [point.draft or (np.nan, np.nan) for point in points]
        found = found.merge(measured, on="place", how="left")
        return found.join(pd.DataFrame(drafts, columns=["draft_tokens", "draft_threshold"]))

    def _measured(self, flops: DecodingFlops, written: Written) -> dict[str, object]:
        texts, depth, counted = written.texts, self.decoder.model.num_layers, int(self.references[0].sum())
        exits = torch.cat([*(layers[1:] for layers in texts.exit_layers), torch.empty(0, dtype=torch.long)])
        if isinstance(texts, SpeculativeGenerations):
            operations = flops.speculating(texts)
        elif written.place == len(self.replayed):
            operations = flops.full_decoding(texts)
        else:
            method, knob = self.decoder.method, self.replayed[written.place].knob
            operations = flops.decoding(texts, method.rule(self.decoder.model, knob), method.kv)
        found: dict[str, object] = {
            "place": written.place,
            "layers": float(texts.average_layers) if texts.decoded_tokens else float(depth),
            **{name: float(values.mean()) for name, values in written.scores.items()},
            "nats": float(written.nats.sum()) / counted if counted else None,
            "new_tokens": float(sum(map(len, texts.tokens))),
            "decoded_tokens": float(texts.decoded_tokens),
            "exit_histogram": torch.bincount(exits, minlength=depth + 1)[1:].tolist(),
            "flops": float(operations),
            "full_flops": float(flops.full_decoding(texts)),
        }
        if isinstance(texts, SpeculativeGenerations):
            found |= {name: float(sum(getattr(texts, name))) for name in ("drafted", "accepted", "passes")}
        return found

    def frames(self) -> Mapping[str, pd.DataFrame]:
        """Build the frames of a cell; no text is kept, but its tokens, exit layers and scores."""
        number = np.arange(len(self.prompts))
        texts = [
            pd.DataFrame(
                {
                    "row": number,
                    "place": written.place,
                    "tokens": [tokens.tolist() for tokens in written.texts.tokens],
                    "exit_layers": [layers.tolist() for layers in written.texts.exit_layers],
                    **written.scores,
                    "nats": written.nats,
                }
            )
            for written in self.written
        ]
        rows = {
            "row": number,
            "truncated": self.truncated,
            "prompt_tokens": self.full.prompt_tokens,
            "reference_tokens": self.references[0],
        }
        return {"rows": pd.DataFrame(rows), "curve": self.curve, "texts": pd.concat(texts, ignore_index=True)}


def token_limits(spec: GenerationCellSpec, rows: CellRows[TextTask]) -> tuple[int, int]:
    """Return the largest number of tokens of a prompt, and of new tokens of a text."""
    return spec.max_prompt_tokens or rows.task.max_prompt_tokens, spec.max_new_tokens or rows.task.max_new_tokens


def fitted(
    model: MultiExitDecoder, spec: GenerationCellSpec, rows: CellRows[TextTask], split: str
) -> tuple[PromptSplit, list[bool]]:
    """Return the prompts of a split, cut to the cell's limit, and which were cut; see :meth:`PromptSplit.cut`."""
    prompts: PromptSplit = getattr(rows.task, split)
    return prompts.cut(lambda text: model.encode([text])[0], token_limits(spec, rows)[0], rows.task.keep)


def replay_knobs(decoder: PromptDecoder, prompts: PromptSplit) -> list[ReplayedKnob]:
    """Replay every knob value, token by token, on the texts that the full model wrote behind the prompts.

    The prediction of a token's exit is compared with that of layer L after the same tokens, so a replay gives how often
    a token goes wrong, not what becomes of the text after it.
    """
    model, method = decoder.model, decoder.method
    trace = record_tokens(model, _rows_of(model, prompts, decoder.full(prompts)), store=decoder.store)
    candidates = method.candidates if isinstance(method, VocabularyMethod) else None
    named = exit_answers(trace, candidates=candidates).predictions[trace.may_exit]  # int64 [tokens, exits]
    knobs = [float(knob) for knob in method.knob_values(model)]
    exits = sweep([method.rule(model, knob) for knob in knobs], trace)[:, trace.may_exit]
    points = []
    for knob, layers in zip(knobs, exits, strict=True):
        places = torch.searchsorted(torch.tensor(trace.exit_layers), layers)
        agreement = float((named == named[:, -1:]).gather(1, places.unsqueeze(1)).double().mean())
        points.append(ReplayedKnob(knob=knob, layers=float(layers.double().mean()), agreement=agreement))
    return points


def drafted_knobs(decoder: PromptDecoder, prompts: PromptSplit) -> list[ReplayedKnob]:
    """Choose the drafts of every knob value on the full model's texts, then decode a few prompts with them.

    A value at which nothing is drafted is left out, for it is the full model, unless there is no other.
    """
    few, full = prompts.select(range(min(_DRAFTED_PROMPTS, len(prompts)))), decoder.full(prompts)
    model, method = decoder.model, decoder.method
    if isinstance(method, DraftingMethod):
        method.choose_drafts(model, _rows_of(model, prompts, full), decoder.options["max_new_tokens"], decoder.store)
    points, drafting = [], []
    for knob in map(float, method.knob_values(model)):
        written = decoder.at(knob, few)
        drafting.append(isinstance(written, SpeculativeGenerations))
        match = token_match(full.tokens[: len(few)], written.tokens)
        layers = written.layer_calls / max(written.decoded_tokens, 1)
        draft = model.description.drafts.get(knob)
        points.append(ReplayedKnob(knob=knob, layers=layers, agreement=float(match.mean()), draft=draft))
    return list(compress(points, drafting)) or points


def _rows_of(model: MultiExitDecoder, prompts: PromptSplit, written: Generations) -> list[TokenRow]:
    encoded = model.encode(prompts.prompts)
    return [(prompt, tokens.tolist()) for prompt, tokens in zip(encoded, written.tokens, strict=True)]


def read_references(
    decoder: PromptDecoder, prompts: PromptSplit, knobs: Sequence[float]
) -> tuple[NDArray[np.int64], list[NDArray[np.float64]]]:
    """Return the tokens of each reference that are counted [N], and its loss at full depth, then at every knob: [N].

    All that is verified is at full depth. References are read with their prompts at full depth (teacher forcing), with
    the end-of-text token, cut to the maximum length of a text, once for all methods on a backbone. Their first tokens
    are not counted, because every method has them at full depth. With a pruned vocabulary the loss is that of the
    exit's whole LM head, because any other token would have an infinite loss.
    """
    model, method = decoder.model, decoder.method
    rules: list[ExitRule] = [NeverExit() if method.drafts else method.rule(model, knob) for knob in knobs]
    rows = encode_rows(model, prompts, max_prompt_tokens=None, max_new_tokens=decoder.options["max_new_tokens"])
    trace = record_tokens(model, rows, store=decoder.store)
    exits = sweep([NeverExit(), *rules], trace)[:, trace.may_exit]
    nats, row = losses_at(trace, trace.may_exit, exits)[0], trace.row[trace.may_exit].numpy()
    sums = [np.bincount(row, own.numpy(), len(prompts)).astype(np.float64) for own in nats]
    return np.bincount(row, minlength=len(prompts)), sums


@torch.inference_mode()
def losses_at(trace: TokenTrace, tokens: Tensor, exits: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the loss of tokens at their exit layers by several rules, and whether each is the likeliest token there.

    ``tokens`` are numbers in the trace, [N], ``exits`` layers, [rules, N]. Each exit reads a token once, however many
    rules take it. Both results are [rules, N], losses in nats as float64.
    """
    losses, likeliest = torch.zeros(exits.shape, dtype=torch.float64), torch.zeros(exits.shape, dtype=torch.bool)
    for place, layer in enumerate(trace.exit_layers):
        for chunk in (exits == layer).any(dim=0).nonzero().flatten().split(CHUNK):
            log_probs = trace.model.logits(layer, trace.states(place, tokens[chunk])).float().log_softmax(dim=-1)
            targets, here = trace.targets[tokens[chunk]].to(log_probs.device), exits[:, chunk] == layer
            nats = -log_probs.gather(1, targets.unsqueeze(1)).squeeze(1).double().cpu()
            losses[:, chunk] = torch.where(here, nats, losses[:, chunk])
            likeliest[:, chunk] |= here & (log_probs.argmax(dim=-1) == targets).cpu()
    return losses, likeliest
