"""check-backbone: what must hold of an encoder before methods are compared on it, checked on its real weights.

A check returns what it found in a few words, or raises BrokenContractError. They run in their order up to the first
that fails, because most depend on those before. Checks of methods run too, with rows that exit at random layers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from rich.progress import track

from baselines.references import Random
from benchmarks.testing import checks
from benchmarks.testing.cases import AnyCase, InstanceCase
from benchmarks.testing.report import BrokenContractError, Finding, Report, any_error_is
from benchmarks.testing.tiny import random_texts, with_random_classifiers
from consistentee.backbones.catalog import ResolvedBackbone, resolve
from consistentee.data.encoding import Batch
from consistentee.data.tasks import Split, Text
from consistentee.models.encoder import MultiExitModel
from consistentee.traces.instance_trace import record_trace

ROWS = 33
"""One more than a batch of 32, so that the last batch has one row."""
_SAME_BATCH = 1e-5
"""Relative difference allowed between two ways to compute the same batch."""
_SEE_THE_STEPPER = "Look at step(), context() and layer_module() of its family in consistentee/backbones/encoders.py"
_FEWEST_TOKENS = 24
_LONGEST_RUN = 2048


@dataclass
class Encoder:
    """A folder that should hold an encoder and its tokenizer."""

    name: str
    found: ResolvedBackbone

    @cached_property
    def model(self) -> MultiExitModel:
        model = MultiExitModel.from_backbone(self.name, 3)
        return with_random_classifiers(model, spread=model.width**-0.5)

    @cached_property
    def case(self) -> InstanceCase:
        """A case for the checks of methods: that model, and a rule that exits at random layers."""
        texts = self.texts(ROWS)
        trace = record_trace(self.model, Split("unseen", texts, [0] * ROWS))
        return InstanceCase(Random(), self.model.backbone.config.model_type, None, self.model, trace, texts)

    def texts(self, count: int, *, pairs: bool = False) -> list[Text]:
        """Return texts of 1 to 24 words, single or pairs; the same at every call."""
        return random_texts(count, seed=11, pairs=pairs, longest=24)


def it_loads(encoder: Encoder) -> str:
    """The family can be run layer by layer, every weight is in the files and finite, and there is a tokenizer."""
    with any_error_is("the backbone cannot be loaded"):
        model = encoder.model
    millions = sum(parameter.numel() for parameter in model.backbone.parameters()) / 1e6
    return f"{model.backbone.config.model_type}, {model.num_layers} layers of width {model.width}, {millions:.1f} M"


def the_tokenizer_fits(encoder: Encoder) -> str:
    """The tokenizer loads, can pad, and makes no token that the embeddings lack."""
    tokenizer, config = encoder.model.tokenizer, encoder.model.backbone.config
    if tokenizer.pad_token_id is None:
        advice = "Set tokenizer.pad_token and save the tokenizer again; any token that texts do not hold will do"
        raise BrokenContractError("the tokenizer has no padding token", "", advice)
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) < _FEWEST_TOKENS:
        example = f"{len(vocabulary)} tokens, special ones included: nearly every text would be unknown tokens"
        raise BrokenContractError("the tokenizer knows hardly any word", example, "Are its files whole?")
    largest = max(vocabulary.values())
    if largest >= config.vocab_size:
        example = f"its largest token is {largest}, and the embeddings end at {config.vocab_size - 1}"
        fault = "the tokenizer makes tokens that the embeddings lack"
        raise BrokenContractError(fault, example, "Is it the tokenizer of this model?")
    if getattr(encoder.model.stepper, "reserved_positions", 0) and tokenizer.pad_token_id != config.pad_token_id:
        example = f"{tokenizer.pad_token_id} and {config.pad_token_id}; positions are counted from the latter"
        raise BrokenContractError("tokenizer and configuration name different padding tokens", example)
    return f"{largest + 1} tokens, padding is {tokenizer.pad_token!r}"


def the_pooling_is_known(encoder: Encoder) -> str:
    """Report how the tokens of a layer become one vector, and which file defines it."""
    found, family = encoder.found, encoder.model.backbone.config.model_type
    pooling = {"mean": "mean of the tokens", "cls": "first token"}[found.pooling] + " and the pooler" * found.pooler
    usual = f"no file defines it, and {family} models are usually read so"
    return f"{pooling}: {f'as {found.defined_by} defines it' if found.defined_by else usual}"


def stepped_is_stock(encoder: Encoder) -> None:
    """Layer by layer, stepping gives the hidden states of the stock forward: single texts and pairs, padded or not."""
    for pairs in (False, True):
        rows = encoder.model.tokenize(encoder.texts(8, pairs=pairs))
        for batch in (rows[:1], rows[1:2], rows):
            _compare_layers(encoder.model, encoder.model.collate(batch))


@torch.no_grad()
def _compare_layers(model: MultiExitModel, batch: Batch) -> None:
    real = batch.padding_mask.unsqueeze(-1)
    stock = model.backbone(**batch.model_inputs, output_hidden_states=True).hidden_states[1:]
    hidden, context = model.stepper.begin(batch)
    for layer, theirs in enumerate(stock, start=1):
        hidden = model.stepper.step(layer, hidden, context)
        ours = model.stepper.read(layer, hidden) if layer == len(stock) else hidden
        difference = float(((ours - theirs) * real).abs().max() / (theirs * real).abs().max().clamp_min(1))
        if not difference <= _SAME_BATCH:  # true for NaN, too
            where = f"the hidden states of layer {layer} of {model.num_layers} differ by {difference:.2g}"
            example = f"{where} in a batch of {len(batch.lengths)}"
            fault = "run layer by layer, the model is not the stock model"
            raise BrokenContractError(fault, example, _SEE_THE_STEPPER)


def long_texts_are_cut(encoder: Encoder) -> str:
    """A text beyond the limit is cut to it, and a row of that length runs."""
    model, limit = encoder.model, encoder.model.stepper.position_limit
    words = " ".join([str(text) for text in encoder.texts(8)] * (1 + limit // 8))
    (row,) = model.tokenize([words], max_length=2 * limit)
    if len(row) != limit:
        example = f"it has {len(row)} tokens, and the limit is {limit}"
        raise BrokenContractError("a text beyond the limit is not cut to it", example)
    (row,) = model.tokenize([words], max_length=min(limit, _LONGEST_RUN))
    with any_error_is(f"a row of the longest length cannot be run: {len(row)} tokens"):
        _compare_layers(model, model.collate([row]))
    return f"{limit} tokens"


def _of_methods(check: Callable[[AnyCase], None]) -> Callable[[Encoder], None]:
    def run(encoder: Encoder) -> None:
        try:
            check(encoder.case)
        except BrokenContractError as error:
            raise BrokenContractError(error.fault, error.example, _SEE_THE_STEPPER) from error

    return run


CHECKS: dict[str, Callable[[Encoder], str | None]] = {
    "it loads": it_loads,
    "the tokenizer fits": the_tokenizer_fits,
    "pooling": the_pooling_is_known,
    "stepped, full depth = the stock model": stepped_is_stock,
    "never exit = the stock model": _of_methods(checks.never_exit_is_the_stock_model),
    "replay = reality": _of_methods(checks.replay_is_reality),
    "a row's result is its own": _of_methods(checks.a_rows_result_is_its_own),
    "layers counted = layers run": _of_methods(checks.layers_counted_are_layers_run),
    "saved and loaded, the same": _of_methods(checks.saved_and_loaded_it_is_the_same),
    "long texts are cut": long_texts_are_cut,
}


def check_backbone(name: str, *, progress: bool = False) -> Report:
    """Run all checks on a pretrained encoder, up to the first that fails; files that are not there yet are fetched.

    Raises UserError if there is no backbone of that name: one of the catalogue, a directory, or a hub id.
    """
    encoder, findings = Encoder(name, resolve(name)), [Finding(title) for title in CHECKS]
    for finding in track(findings, description="checking", disable=not progress, transient=True):
        found = finding.run(partial(CHECKS[finding.title], encoder))
        finding.found = found or ""
        if finding.faults:
            break
    holds, broken = "methods can be compared on it", "methods cannot be compared on it"
    return Report(name, encoder.found.path, findings, holds, broken)
