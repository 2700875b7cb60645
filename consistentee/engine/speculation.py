"""Self-speculative decoding (LayerSkip, Elhoushi et al., ACL 2024, arXiv 2404.16710, section 4.3).

The first layers and an exit, or its branch, draft tokens one by one; the other layers verify all of them in one pass.
They share one cache: nothing of the first layers is computed again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import StoppingCriteriaList

from consistentee.arguments import Fraction, NotNegative, Positive, Texts, checked
from consistentee.backbones.decoders import DecoderContext, KeysValues
from consistentee.data.tasks import Keep
from consistentee.engine.generate import Generations, check_prompts, generate_encoded
from consistentee.engine.sampling import begin_texts
from consistentee.engine.token_batch import TokenBatch
from consistentee.engine.transcript import Stream, Transcript, clock
from consistentee.errors import UserError
from consistentee.models.decoder.branches import SkippedSublayers
from consistentee.models.decoder.multi_exit_decoder import DecoderStack, MultiExitDecoder
from consistentee.progress import tracked
from consistentee.rules.exit_rule import NeverExit
from consistentee.traces.drafts import draft_layer_calls


class Drafter:
    """Predicts the next token from the states of an exit, which reads one hidden state and nothing before it.

    Class attributes:
        cached_layers: layers that a drafter adds to the cache, behind layer L.
        provisional: it runs layers that are to verify the draft, and what they keep of it counts no more then.

    Attributes:
        size_in_layers: cost of each token that it reads, in layers, besides the first layers.
    """

    cached_layers: ClassVar[int] = 0
    provisional: ClassVar[bool] = False
    size_in_layers: float = 0.0

    def __init__(self, model: MultiExitDecoder, layer: int) -> None:
        self._model = model
        self._layer = layer

    def read(self, hidden: Tensor, context: DecoderContext) -> Tensor:
        """Turn the states of new tokens at the draft layer into what :meth:`logits` reads: [rows, T, width]."""
        return hidden

    def logits(self, state: Tensor) -> Tensor:
        return self._model.logits(self._layer, state)


class BranchDrafter(Drafter):
    """A branch. It reads the last token of a draft too, so that it never has a hole."""

    cached_layers = 1

    def __init__(self, model: MultiExitDecoder, layer: int) -> None:
        super().__init__(DecoderStack(model, layer), layer + 1)
        self.size_in_layers = model.branch(layer).size_in_layers
        self._place = model.num_layers

    def read(self, hidden: Tensor, context: DecoderContext) -> Tensor:
        assert context.cache is not None
        own = replace(context, cache=_Elsewhere(context.cache, self._place))
        return self._model.stepper.step(self._layer, hidden, own)


class SublayerDrafter(Drafter):
    """The model without some sublayers, on embedded tokens; it attends to keys and values of the full model.

    A token runs only when the next one is asked for: prompts do not, nor does the last token of a draft.
    """

    provisional = True

    def __init__(self, model: MultiExitDecoder, skipped: SkippedSublayers) -> None:
        super().__init__(model, model.num_layers)
        skipped.check(model.stepper)
        self.size_in_layers = skipped.layers_left(model.stepper)
        self._skipped = skipped
        self._newest: DecoderContext | None = None

    def read(self, hidden: Tensor, context: DecoderContext) -> Tensor:
        self._newest = context
        return hidden

    def logits(self, state: Tensor) -> Tensor:
        assert self._newest is not None
        hidden = self._skipped.run(self._model.stepper, state.unsqueeze(1), self._newest)
        return super().logits(hidden[:, 0])


@dataclass(frozen=True)
class _Elsewhere:
    """A cache in which a layer has another place than its number: another layer has that."""

    cache: KeysValues
    place: int

    def update(self, keys: Tensor, values: Tensor, layer_index: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        return self.cache.update(keys, values, self.place)


@dataclass(frozen=True)
class SpeculativeGenerations(Generations):
    """Texts that the full model would have written greedily, in the order of the prompts.

    Every new token is read off layer L, so ``exit_layers`` are L and ``late_layers`` are 0.

    Attributes:
        draft_layer: the exit that drafted; 0 where the model without some sublayers did.
        drafted, accepted: numbers of tokens that were drafted for each row, and that became part of its text.
        passes: number of passes through the remaining layers, each of which gives one token besides the accepted ones.
        drafter_in_layers: cost of the drafter besides the layers up to ``draft_layer``; 0 where an exit drafts.
        skipped: the sublayers that drafts left out, if any.
    """

    draft_layer: int
    num_layers: int
    drafted: list[int]
    accepted: list[int]
    passes: list[int]
    drafter_in_layers: float = field(default=0.0, kw_only=True)
    skipped: SkippedSublayers | None = field(default=None, kw_only=True)

    @classmethod
    def of_rows(cls, rows: "Sequence[_SpeculativeRow | _StockRow]", **more: Any) -> Self:
        """Collect rows that have been written; ``more``: the fields that all of them share."""
        return cls.of(
            [row.transcript for row in rows],
            prefill_seconds=sum(row.prefill_seconds for row in rows),
            decode_seconds=sum(row.decode_seconds for row in rows),
            drafted=[row.drafted for row in rows],
            accepted=[row.accepted for row in rows],
            passes=[row.passes for row in rows],
            **more,
        )

    @property
    def layer_calls(self) -> float:
        """Layers that were called, see :func:`consistentee.traces.drafts.draft_layer_calls`."""
        return draft_layer_calls(
            sum(self.drafted), sum(self.passes), self.draft_layer, self.num_layers, self.drafter_in_layers
        )

    @property
    def acceptance_rate(self) -> float:
        """Share of the drafted tokens that became part of a text; NaN if none were drafted."""
        return sum(self.accepted) / sum(self.drafted) if sum(self.drafted) else float("nan")


@checked
def generate_speculatively(
    model: MultiExitDecoder,
    prompts: Texts,
    *,
    draft_layer: NotNegative = 0,
    skipped: SkippedSublayers | None = None,
    draft_tokens: Positive = 4,
    threshold: Fraction = 0.0,
    max_new_tokens: NotNegative = 64,
    stop: Texts = (),
    max_prompt_tokens: Positive | None = None,
    keep: Keep = "end",
    stream: Stream | None = None,
) -> SpeculativeGenerations:
    """Continue prompts as the full model does greedily, in fewer passes through its deep layers.

    Texts are continued one after the other: the rows of a batch would accept drafts of different lengths.

    Args:
        draft_layer: the exit before layer L that drafts, or whose branch does.
        skipped: in place of ``draft_layer``, the sublayers without which the model drafts.
        draft_tokens: number of tokens a draft, at most.
        threshold: a draft ends behind a token that is less probable than this, which is verified nevertheless.
        max_new_tokens, stop, max_prompt_tokens, keep, stream: as for :func:`consistentee.engine.generate.generate`.

    Raises:
        UserError: ``draft_layer`` is no exit before layer L; or as ``generate`` does.
    """
    if skipped is not None and draft_layer:
        raise UserError(f"either layer {draft_layer} drafts or the model without some sublayers, not both")
    if skipped is None and draft_layer not in model.exit_layers[:-1]:
        raise UserError(f"layer {draft_layer} cannot draft; exits before the last: {list(model.exit_layers[:-1])}")
    if skipped is None and model.last_layers:
        raise UserError("exits with closing layers cannot draft: take a decoder without closing layers")
    rows = model.encode(prompts, max_tokens=max_prompt_tokens, keep=keep)
    model.eval()
    check_prompts(model, rows, max_new_tokens)
    if skipped is not None:
        drafter: Drafter = SublayerDrafter(model, skipped)
    else:
        drafter = (BranchDrafter if model.has_branch(draft_layer) else Drafter)(model, draft_layer)
    texts = begin_texts(model, rows, max_new_tokens=max_new_tokens, stop=stop, stream=stream)
    written = [
        _SpeculativeRow(model, drafter, text, draft_layer, draft_tokens, threshold, max_new_tokens) for text in texts
    ]
    for row in tracked(written, "decoding", rows=1):
        row.write()
    return SpeculativeGenerations.of_rows(
        written,
        draft_layer=draft_layer,
        num_layers=model.num_layers,
        drafter_in_layers=drafter.size_in_layers,
        skipped=skipped,
    )


@dataclass
class _SpeculativeRow:
    model: MultiExitDecoder
    drafter: Drafter
    transcript: Transcript
    draft_layer: int
    draft_tokens: int
    threshold: float
    max_new_tokens: int
    drafted: int = 0
    accepted: int = 0
    passes: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    def write(self) -> None:
        if not self.max_new_tokens:
            return
        device = self.model.device
        start = clock(device)
        columns = len(self.transcript.prompt) + self.max_new_tokens - 1
        batch = TokenBatch(self.model, 1, columns, more_layers=self.drafter.cached_layers)
        self.transcript.add(self._prefill(batch), self.model.num_layers)
        prefilled = clock(device)
        while self.transcript.ended_by is None:
            self._accept(batch, *self._draft_and_verify(batch))
        self.prefill_seconds = prefilled - start
        self.decode_seconds = clock(device) - prefilled

    @torch.inference_mode()
    def _prefill(self, batch: TokenBatch) -> int:
        hidden, _ = self._read(batch, torch.tensor(self.transcript.prompt, device=batch.device))
        last = self._verify(batch, hidden)[:, -1]
        return int(self.transcript.scores(self.model.logits(self.model.num_layers, last)).argmax(dim=-1))

    @torch.inference_mode()
    def _draft_and_verify(self, batch: TokenBatch) -> tuple[list[int], list[int]]:
        # Beside an accepted draft the full model gives one token more.
        length = min(self.draft_tokens, self.max_new_tokens - len(self.transcript.tokens) - 1)
        draft: list[Tensor] = []
        hidden, state = self._read(batch, torch.tensor(self.transcript.tokens[-1:], device=batch.device))
        states, goes_on = [hidden], True
        while goes_on and len(draft) < length:
            logits = self.drafter.logits(state[:, 0])
            draft.append(self.transcript.scores(logits, draft).argmax(dim=-1))
            # Not asked where no draft can end early: on a GPU, an answer takes as long as some layers.
            goes_on = not self.threshold or bool(logits.softmax(dim=-1).max() >= self.threshold)
            hidden, state = self._read(batch, draft[-1])
            states.append(hidden)
        answers = self.model.logits(self.model.num_layers, self._verify(batch, torch.cat(states, dim=1))[0])
        written = torch.cat([*draft, self.transcript.scores(answers, draft).argmax(dim=-1)]).tolist()
        return written[: len(draft)], written[len(draft) :]

    def _read(self, batch: TokenBatch, tokens: Tensor) -> tuple[Tensor, Tensor]:
        batch.begin(batch.rows(), len(tokens))
        context = batch.newest_context(batch.rows(), len(tokens))
        hidden = batch.stepper.embed(tokens.unsqueeze(0), context.positions)
        hidden = batch.run(range(1, self.draft_layer + 1), hidden, context)
        return hidden, self.drafter.read(hidden, context)

    def _verify(self, batch: TokenBatch, hidden: Tensor) -> Tensor:
        if self.drafter.provisional:
            batch.cache.ledger.take_back(hidden.shape[1])
        deep = range(self.draft_layer + 1, self.model.num_layers + 1)
        return batch.run(deep, hidden, batch.newest_context(batch.rows(), hidden.shape[1]))

    def _accept(self, batch: TokenBatch, draft: list[int], answers: list[int]) -> None:
        agreed = 0
        while agreed < len(draft) and draft[agreed] == answers[agreed]:
            agreed += 1
        batch.cache.ledger.rewind(len(draft) - agreed)
        self.drafted += len(draft)
        self.accepted += min(agreed, self.transcript.extend(answers[: agreed + 1], self.model.num_layers))
        self.passes += 1


class DraftedTexts:
    """Texts of the full model after some prompts, and the share of their tokens that a draft predicts.

    ``tokens`` is the maximum length of a text. Raises UserError if no text has two tokens.
    """

    @torch.inference_mode()
    def __init__(self, model: MultiExitDecoder, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        count = min(tokens, model.stepper.position_limit - max(map(len, prompts)))
        texts = generate_encoded(model, prompts, NeverExit(), max_new_tokens=count).tokens
        self._model = model
        self.texts = pad_sequence(texts, batch_first=True, padding_value=model.pad_id).to(model.device)
        lengths = torch.tensor([len(text) for text in texts], device=model.device)
        columns = self.texts.shape[1] - 1
        self._follows = torch.arange(columns, device=model.device) < (lengths - 1).unsqueeze(1)  # bool [texts, columns]
        if not self._follows.any():
            raise UserError("no text has a second token to draft after the prompts that sublayers are searched on")
        self._batch = TokenBatch(model, len(prompts), max(map(len, prompts)) + columns)
        self._batch.read(self._batch.rows(), prompts)
        self._batch.begin(self._batch.rows(), columns)

    @torch.inference_mode()
    def score(self, skipped: SkippedSublayers) -> float:
        """Compute the share of tokens that the model without some sublayers predicts, in one pass."""
        model, columns = self._model, self.texts.shape[1] - 1
        rows = self._batch.rows()
        context = self._batch.context(rows, self._batch.newest_columns(rows, columns))
        hidden = model.stepper.embed(self.texts[:, :-1], context.positions)
        hidden = skipped.run(model.stepper, hidden, context)
        self._batch.cache.ledger.take_back(columns)
        predicted = model.logits(model.num_layers, hidden[self._follows]).argmax(dim=-1)
        return float((predicted == self.texts[:, 1:][self._follows]).double().mean())


@checked
def generate_with_stock_drafts(
    model: MultiExitDecoder,
    prompts: Texts,
    drafts: Mapping[str, int],
    *,
    draft_layers: int = 0,
    max_new_tokens: Positive = 64,
    max_prompt_tokens: Positive | None = None,
    keep: Keep = "end",
    **endings: Any,
) -> SpeculativeGenerations:
    """Generate a text for every prompt with the stock model's ``generate``, which drafts and verifies.

    Args:
        drafts: the option of ``generate`` that makes it draft, such as ``prompt_lookup_num_tokens``, and its value.
        draft_layers: number of layers that draft.
        max_new_tokens, max_prompt_tokens, keep, endings: as for :func:`consistentee.generate`.
    """
    rows = model.encode(prompts, max_tokens=max_prompt_tokens, keep=keep)
    check_prompts(model, rows, max_new_tokens)
    texts = begin_texts(model, rows, max_new_tokens=max_new_tokens, **endings)
    deep = tuple(range(draft_layers + 1, model.num_layers + 1))
    return SpeculativeGenerations.of_rows(
        [_StockRow(model, text, drafts, max_new_tokens) for text in texts],
        draft_layer=0,
        num_layers=model.num_layers,
        drafter_in_layers=draft_layers,
        skipped=SkippedSublayers(deep, deep) if draft_layers else None,
    )


class _StockRow:
    """Write one text with ``generate``, and count the passes of the last layer."""

    def __init__(
        self, model: MultiExitDecoder, text: Transcript, drafts: Mapping[str, int], max_new_tokens: int
    ) -> None:
        prompt, read = torch.tensor([text.prompt], device=model.device), list[int]()
        last = model.stepper.layer_module(model.num_layers)
        hook = last.register_forward_hook(lambda _, given, __: read.append(given[0].shape[1]))
        try:
            written, *seconds = stock_generate(model, prompt, torch.ones_like(prompt), max_new_tokens, **drafts)
        finally:
            hook.remove()
        self.prefill_seconds, self.decode_seconds = seconds
        self.passes = len(read) - 1
        self.drafted = sum(read) - prompt.shape[1] - self.passes
        self.transcript = text
        text.extend(written[0].tolist(), model.num_layers)
        self.accepted = max(len(text.tokens) - len(read), 0)


@torch.inference_mode()
def stock_generate(
    model: MultiExitDecoder, tokens: Tensor, padding_mask: Tensor, max_new_tokens: int, **options: Any
) -> tuple[Tensor, float, float]:
    """Run the stock model's own greedy ``generate`` on prompts that are padded on the left, [rows, T].

    Returns:
        The new tokens, int64 [rows, at most max_new_tokens]; the seconds up to the first of them, and after it.
    """
    first: list[float] = []

    def note_first(input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        if not first:
            first.append(clock(model.device))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)  # stops nothing

    start = clock(model.device)
    output = model.backbone.generate(
        tokens,
        attention_mask=padding_mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(model.end_tokens) or None,
        pad_token_id=model.pad_id,
        stopping_criteria=StoppingCriteriaList([note_first]),
        **options,
    )
    return output[:, tokens.shape[1] :], first[0] - start, clock(model.device) - first[0]
