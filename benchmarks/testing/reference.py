"""References for the checks: a model without exits, a decoder without batches, and counts of the layers that ran."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from benchmarks.testing.watching import watched_calls
from consistentee.backbones.decoders import DecoderContext
from consistentee.backbones.encoders import stepper_for
from consistentee.backbones.token_exits import TokenExitStepper
from consistentee.data.encoding import Encoding
from consistentee.engine.classify import Predictions, stock_encoded
from consistentee.models.classifiers import RecordedLayer
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.rules.exit_rule import ExitRule
from consistentee.traces.instance_trace import Trace
from consistentee.traces.token_view import TokenView, prompt_key
from consistentee.traces.walk import walk


def reference_logits(model: MultiExitModel, encodings: Sequence[Encoding], batch_size: int) -> Tensor:
    """Return the logits [N, classes] of the model without exits: the stock backbone's own forward.

    If tokens exit by themselves: the stock layers, run on all tokens, with the states of exited ones put back.
    """
    stepper = model.stepper
    if not isinstance(stepper, TokenExitStepper):
        return stock_encoded(model, encodings, batch_size=batch_size)
    starts = range(0, len(encodings), batch_size)
    return torch.cat([_with_exited_tokens_put_back(model, stepper, encodings[i : i + batch_size]) for i in starts])


@torch.no_grad()
def _with_exited_tokens_put_back(
    model: MultiExitModel, stepper: TokenExitStepper, encodings: Sequence[Encoding]
) -> Tensor:
    stock, batch = stepper_for(model.backbone), model.collate(encodings)
    exits = stepper.token_exits.schedule[batch.input_ids].unsqueeze(-1)
    hidden, context = stock.begin(batch)
    for layer in range(1, model.num_layers + 1):
        hidden = torch.where(exits >= layer, stock.step(layer, hidden, context), hidden)
    pooled = model.pool(model.num_layers, hidden, batch.padding_mask)
    return model.classify(model.num_layers, RecordedLayer(pooled.unsqueeze(1)))


@contextmanager
def counted_work(model: MultiExitModel) -> Iterator[list[int]]:
    """Count the rows of every call of a stock layer, by hooks.

    If tokens exit by themselves: the tokens that a layer updates, padding included unless rows run one by one.
    """
    counts: list[int] = []
    layers, stepper = range(1, model.num_layers + 1), model.stepper
    counts_tokens = isinstance(stepper, TokenExitStepper)
    if isinstance(stepper, TokenExitStepper):
        modules = [stepper.parts(layer).query for layer in layers]
    else:
        modules = [stepper.layer_module(layer) for layer in layers]

    def count(_: nn.Module, inputs: tuple[Tensor, ...], __: object) -> None:
        counts.append(inputs[0][..., 0].numel() if counts_tokens else len(inputs[0]))

    with watched_calls((module, count) for module in {id(m): m for m in modules}.values()):
        yield counts


def reported_work(model: MultiExitModel, trace: Trace, live: Predictions) -> int:
    """Return the work that predictions report, in the unit of :func:`counted_work`."""
    if isinstance(model.stepper, TokenExitStepper):
        return round(float((live.layers_run * trace.lengths).sum()))
    return int(live.exit_layers.sum())


@torch.no_grad()
def stock_tokens(model: MultiExitDecoder, prompt: Sequence[int], new_tokens: int) -> list[int]:
    """Return the tokens that the stock model's own ``generate`` writes greedily after one prompt."""
    tokens = torch.tensor([prompt], device=model.device)
    mask, limits = torch.ones_like(tokens), {"max_new_tokens": new_tokens, "pad_token_id": model.pad_id}
    written = model.backbone.generate(tokens, attention_mask=mask, do_sample=False, **limits)
    return written[0, len(prompt) :].tolist()


@torch.no_grad()
def eager_tokens(
    model: MultiExitDecoder, prompt: Sequence[int], rule: ExitRule, new_tokens: int
) -> tuple[list[int], list[int]]:
    """Return new tokens and their exit layers after one prompt, decoded without batches and without owed tokens.

    As soon as a token exits, its state goes through the input norm and the projections of every layer that it skips.
    """
    stepper, cache = model.stepper, DynamicCache()
    hidden, context = _entering(model, prompt, 0, cache)
    for layer in range(1, model.num_layers + 1):
        hidden = stepper.step(layer, hidden, context)
    tokens, layers = [int(model.logits(model.num_layers, hidden[:, -1]).argmax())], [model.num_layers]
    while len(tokens) < new_tokens and tokens[-1] not in model.end_tokens:
        hidden, context = _entering(model, tokens[-1:], len(prompt) + len(tokens) - 1, cache)
        past = torch.empty(1, 0, model.width, device=model.device) if rule.reads_history else None
        *_, (view, _) = walk(rule, _views(model, hidden, context, past, step=len(tokens), key=prompt_key(prompt)))
        for skipped in model.skipped_layers(view.layer):
            cache.update(*stepper.keys_values(skipped, view.hidden, context.rotation), skipped - 1)
        tokens.append(_answer(model, view, context))
        layers.append(view.layer)
    return tokens, layers


def _answer(model: MultiExitDecoder, view: TokenView, context: DecoderContext) -> int:
    if not model.closing:
        return int(view.predictions)
    hidden = view.hidden
    for layer in model.closing:
        hidden = model.stepper.step(layer, hidden, context)
    return int(model.logits(model.num_layers, hidden[:, -1]).argmax())


def _views(
    model: MultiExitDecoder, hidden: Tensor, context: DecoderContext, past: Tensor | None, *, step: int, key: int
) -> Iterator[TokenView]:
    """Run layer after layer on one token, no further than exits are asked for, and yield them."""
    for exit_layer, layers in zip(model.exit_layers, model.stretches, strict=True):
        for layer in layers:
            hidden = model.stepper.step(layer, hidden, context)
        view = TokenView(model, exit_layer, hidden, step, [key], past=past)
        yield view
        past = None if past is None else view.history


def _entering(
    model: MultiExitDecoder, tokens: Sequence[int], first: int, cache: DynamicCache
) -> tuple[Tensor, DecoderContext]:
    positions = torch.arange(first, first + len(tokens), device=model.device).unsqueeze(0)
    hidden = model.stepper.embed(torch.tensor([tokens], device=model.device), positions)
    return hidden, DecoderContext(positions, model.stepper.rotation(hidden, positions), None, cache)


@contextmanager
def counted_calls(model: MultiExitDecoder) -> Iterator[list[tuple[int, int]]]:
    """Record rows and tokens of each row, padding included, of every call of a stock layer, by hooks."""
    counts: list[tuple[int, int]] = []

    def count(_: nn.Module, inputs: tuple[Tensor, ...], __: object) -> None:
        counts.append((inputs[0].shape[0], inputs[0].shape[1]))

    layers = range(1, model.num_layers + 1)
    with watched_calls((model.stepper.layer_module(layer), count) for layer in layers):
        yield counts
