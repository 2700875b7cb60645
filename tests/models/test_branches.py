"""Branches: decoder layers of their own behind exits; the shallower decoders that they end; what they learn from."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from consistentee.errors import UserError
from consistentee.models.decoder.branches import BranchSpec
from consistentee.models.decoder.multi_exit_decoder import DecoderStack
from consistentee.training.decoder import ValidationLoss, branch_logits, branch_loss, record_rows

ROWS = [([2, 7, 9, 20], [30, 31, 3]), ([2, 8], [40, 3]), ([2, 8, 11], [41])]
LAST = BranchSpec(copied_layer=4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_layer_without_mlp_equals_one_with_a_zero_mlp(tiny_decoder, family):
    model = tiny_decoder(family)
    model.add_branch(2, BranchSpec(copied_layer=3, with_mlp=False))
    hidden, context = model.stepper.begin(torch.tensor([[2, 7, 9, 11]]), torch.ones(1, 4, dtype=torch.bool))
    stack = DecoderStack(model, 2)
    ours = stack.stepper.step(3, hidden, context)
    mlp, norm = model.stepper.mlp
    assert isinstance(getattr(model.stepper.layer_module(3), norm), nn.Module)
    with torch.no_grad():
        for name, weight in getattr(model.stepper.layer_module(3), mlp).named_parameters():
            if name.startswith(("down_proj", "c_proj")):
                weight.zero_()
        torch.testing.assert_close(ours, model.stepper.step(3, hidden, context))
    assert 0 < model.branch(2).size_in_layers < 1
    assert model.add_branch(2, LAST).size_in_layers == 1


def test_a_branch_must_follow_an_exit_layer(tiny_decoder):
    model = tiny_decoder(exit_layers=(2,))
    with pytest.raises(UserError, match="no exit adapter"):
        model.add_branch(1, LAST)
    with pytest.raises(UserError, match="exit layer 2 has no branch"):
        DecoderStack(model, 2)


def test_loss_is_that_of_the_tokens_that_give_the_response(tiny_decoder):
    """Each token looks at its own row alone: rows one by one, without padding, give the same loss."""
    model = tiny_decoder()
    for layer in (1, 2, 3):
        model.add_branch(layer, LAST)
    states = record_rows(model, ROWS)
    with torch.no_grad():
        together = branch_loss(model, states.batch(torch.arange(3)))
        losses = []
        for number, (prompt, response) in enumerate(ROWS):
            alone = states.batch(torch.tensor([number]))
            hidden = alone.hidden
            gives = slice(len(prompt) - 1, len(prompt) - 1 + len(response))
            wanted = model.logits(4, hidden[0, gives, -1]).softmax(-1)
            for place, layer in enumerate((1, 2, 3)):
                said = branch_logits(model, layer, hidden[:, :, place], alone)
                losses.append(functional.cross_entropy(said, wanted, reduction="none"))
        by_hand = torch.stack([torch.cat(losses[place::3]).mean() for place in range(3)]).mean()
    torch.testing.assert_close(together, by_hand)
    assert ValidationLoss(states)(model) == pytest.approx(-float(by_hand), rel=1e-5)
