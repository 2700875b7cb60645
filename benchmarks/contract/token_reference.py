"""What generation is compared with: the stock model's own text, a decoder without batches, and the layers that ran."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from benchmarks.contract.watching import watched_calls
from consistentee.backbones.decoders import DecoderContext
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import ExitRule
from consistentee.traces.token_view import TokenView, prompt_key
from consistentee.traces.walk import walk


@torch.no_grad()
def stock_tokens(model: MultiExitDecoder, prompt: Sequence[int], new_tokens: int) -> list[int]:
    """Return what the stock model's own ``generate`` writes greedily behind one prompt."""
    tokens = torch.tensor([prompt], device=model.device)
    written = model.backbone.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=model.pad_id,
    )
    return written[0, len(prompt) :].tolist()


@torch.no_grad()
def eager_tokens(
    model: MultiExitDecoder, prompt: Sequence[int], rule: ExitRule, new_tokens: int
) -> tuple[list[int], list[int]]:
    """Return what exits give behind one prompt, new tokens and their layers, where nothing is owed and nothing batched.

    As soon as a token leaves, its state goes through the input norm and the projections of every layer that it skips.
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
    """Return the token that an exit says, behind the closing layers where there are any."""
    if not model.closing:
        return int(view.predictions)
    hidden = view.hidden
    for layer in model.closing:
        hidden = model.stepper.step(layer, hidden, context)
    return int(model.logits(model.num_layers, hidden[:, -1]).argmax())


def _views(
    model: MultiExitDecoder, hidden: Tensor, context: DecoderContext, past: Tensor | None, *, step: int, key: int
) -> Iterator[TokenView]:
    """Run layer after layer on one token, and yield its exits: no further than they are asked for."""
    for exit_layer, layers in zip(model.exit_layers, model.stretches, strict=True):
        for layer in layers:
            hidden = model.stepper.step(layer, hidden, context)
        view = TokenView(model, exit_layer, hidden, step, [key], past=past)
        yield view
        past = None if past is None else view.history


def _entering(
    model: MultiExitDecoder, tokens: Sequence[int], first: int, cache: DynamicCache
) -> tuple[Tensor, DecoderContext]:
    """Return the input of layer 1 for tokens at positions from ``first`` on, and its context."""
    positions = torch.arange(first, first + len(tokens), device=model.device).unsqueeze(0)
    hidden = model.stepper.embed(torch.tensor([tokens], device=model.device), positions)
    return hidden, DecoderContext(positions, model.stepper.rotation(hidden, positions), None, cache)


@contextmanager
def counted_calls(model: MultiExitDecoder) -> Iterator[list[tuple[int, int]]]:
    """Note every call of a layer, rows and tokens of each row, padding included, by hooks on the stock layers."""
    counts: list[tuple[int, int]] = []

    def count(_: nn.Module, inputs: tuple[Tensor, ...], __: object) -> None:
        counts.append((inputs[0].shape[0], inputs[0].shape[1]))

    layers = range(1, model.num_layers + 1)
    with watched_calls((model.stepper.layer_module(layer), count) for layer in layers):
        yield counts
