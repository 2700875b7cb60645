"""Exits that are drawn: a backbone learns on what decoding leaves, tokens of one text that leave at different layers.

A loss of all exits together shows an exit only texts that left there as a whole, as a static exit's do. Under a rule
tokens leave where they like, and a later one that goes deeper looks back on keys and values that skipped layers were
given from the state at an exit (state propagation: CALM, Schuster et al., 2022, section 3.3.1). Here every token of a
response leaves at an exit drawn at random and learns to speak there, in a pass that is what decoding does. It takes one
pass and one reading of the LM head a token, where the losses of all exits read it once an exit.
"""

import torch
from torch import Tensor

from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.training.decoder.head_loss import weighted_cross_entropy
from consistentee.training.decoder.sources import StepRows

ONE_EXIT_A_ROW = 0.5
"""Share of the rows whose tokens all leave at the same exit, as under a static one or where a rule hardly changes."""


def drawn_exits_loss(weights: Tensor, model: MultiExitDecoder, batch: StepRows) -> Tensor:
    """Return the mean cross-entropy of response tokens, each at an exit of its own; through the backbone.

    ``weights``: the probability of each exit, [exits].
    """
    exits = draw_exits(model.exit_layers, weights, batch.may_exit)
    hidden = states_where_tokens_leave(model, batch.tokens, batch.padding_mask, exits)
    left_at, states = exits[batch.gives_response], hidden[batch.gives_response]
    share = 1 / len(states)
    losses = []
    for layer in model.exit_layers:
        here = left_at == layer
        read, targets = model.head_state(layer, states[here]), batch.targets[here]
        shares = read.new_full((len(read),), share)
        losses.append(weighted_cross_entropy(read, model.head_weight(layer), targets, shares, model.precision))
    return torch.stack(losses).sum()


def draw_exits(exit_layers: tuple[int, ...], weights: Tensor, may_exit: Tensor) -> Tensor:
    """Draw the layer at which every token leaves, which is L where it may not leave early: int64 [rows, T].

    Args:
        exit_layers: the last one is L.
        weights: the probability of each, [exits].
        may_exit: bool [rows, T].
    """
    rows, columns = may_exit.shape
    a_token = weights.multinomial(rows * columns, replacement=True).view(rows, columns)
    one_a_row = weights.multinomial(rows, replacement=True).unsqueeze(1)
    drawn = torch.where(torch.rand(rows, 1) < ONE_EXIT_A_ROW, one_a_row, a_token)
    layers = torch.tensor(exit_layers)[drawn].to(may_exit.device)
    return torch.where(may_exit, layers, exit_layers[-1])


def states_where_tokens_leave(model: MultiExitDecoder, tokens: Tensor, padding_mask: Tensor, exits: Tensor) -> Tensor:
    """Run whole rows as decoding does when tokens leave at given exits; return the states at their exits.

    Layers that a token skips get its keys and values from the state at its exit.

    Args:
        model: whose layers they are.
        tokens: int64 [rows, T].
        padding_mask: bool [rows, T], True where there is a real token.
        exits: the exit layer of every token, int64 [rows, T].

    Returns:
        [rows, T, width].
    """
    hidden, context = model.stepper.begin(tokens, padding_mask)
    closing = len(model.closing)
    for layer in range(1, model.num_layers + 1):
        after = model.run_layer(layer, hidden, context)
        skips = (layer > exits - closing) & (layer <= model.num_layers - closing)
        hidden = torch.where(skips.unsqueeze(-1), hidden, after)
    return hidden
