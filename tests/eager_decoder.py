"""A decoder without batches that fills the cache of skipped layers at once: the reference for decoding with exits."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from consistentee import ExitRule, MultiExitDecoder
from consistentee.backbones.decoders import DecoderContext
from consistentee.traces.token_view import TokenView, prompt_key
from consistentee.traces.walk import walk


@torch.no_grad()
def eager_tokens(
    model: MultiExitDecoder, prompt: Sequence[int], rule: ExitRule, new_tokens: int
) -> tuple[list[int], list[int]]:
    """Return new tokens and their exit layers after one prompt, decoded without batches and with a full cache.

    As soon as a token exits, its state goes through the input norm and the projections of every layer that it skips.
    """
    cache = DynamicCache()
    hidden, context = _entering(model, prompt, 0, cache)
    hidden = _through(model, range(1, model.num_layers + 1), hidden, context)
    tokens, layers = [_greedy(model, hidden)], [model.num_layers]
    while len(tokens) < new_tokens and tokens[-1] not in model.end_tokens:
        hidden, context = _entering(model, tokens[-1:], len(prompt) + len(tokens) - 1, cache)
        past = torch.empty(1, 0, model.width, device=model.device) if rule.reads_history else None
        *_, (view, _) = walk(rule, _views(model, hidden, context, past, step=len(tokens), key=prompt_key(prompt)))
        for skipped in model.skipped_layers(view.layer):
            keys, values = model.stepper.keys_values([skipped], view.hidden, context.rotation)
            cache.update(keys[0], values[0], skipped - 1)
        closed = _through(model, model.last_layers, view.hidden, context)
        tokens.append(_greedy(model, closed) if model.last_layers else int(view.predictions))
        layers.append(view.layer)
    return tokens, layers


def _views(
    model: MultiExitDecoder, hidden: Tensor, context: DecoderContext, past: Tensor | None, *, step: int, key: int
) -> Iterator[TokenView]:
    """Run layer after layer on one token, no further than exits are asked for, and yield them."""
    for exit_layer, layers in zip(model.exit_layers, model.segments, strict=True):
        hidden = _through(model, layers, hidden, context)
        view = TokenView(model, exit_layer, hidden, step, [key], past=past)
        yield view
        past = None if past is None else view.history


def _through(model: MultiExitDecoder, layers: Sequence[int], hidden: Tensor, context: DecoderContext) -> Tensor:
    for layer in layers:
        hidden = model.stepper.step(layer, hidden, context)
    return hidden


def _greedy(model: MultiExitDecoder, hidden: Tensor) -> int:
    return int(model.logits(model.num_layers, hidden[:, -1]).argmax())


def _entering(
    model: MultiExitDecoder, tokens: Sequence[int], first: int, cache: DynamicCache
) -> tuple[Tensor, DecoderContext]:
    positions = torch.arange(first, first + len(tokens), device=model.device).unsqueeze(0)
    hidden = model.stepper.embed(torch.tensor([tokens], device=model.device), positions)
    return hidden, DecoderContext(positions, model.stepper.rotation(hidden, positions), None, cache)
