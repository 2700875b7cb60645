"""Parts of exits: the closed-form start of adapters, and branches, which are decoder layers behind exits."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from consistentee.errors import UserError
from consistentee.models.decoder.adapters import StateMoments
from consistentee.models.decoder.branches import BranchSpec
from consistentee.models.decoder.multi_exit_decoder import DecoderStack, MultiExitDecoder
from consistentee.training.branches import ValidationLoss, branch_logits, branch_loss, record_rows

ROWS = [([2, 7, 9, 20], [30, 31, 3]), ([2, 8], [40, 3]), ([2, 8, 11], [41])]
LAST = BranchSpec(copied_layer=4)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moments_of(inputs, outputs, lm_head):
    return StateMoments.zero(lm_head).plus(inputs, outputs)


def test_least_squares_by_hand():
    """x = 1, 2, 3 and y = 2, 4, 7: s = (2 + 8 + 21) / 14."""
    moments = moments_of(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[2.0], [4.0], [7.0]]), torch.eye(1))
    assert moments.scale.item() == pytest.approx(31 / 14)
    assert moments.channel_scales.tolist() == pytest.approx([31 / 14])
    assert moments.map.item() == pytest.approx(31 / 14, rel=2e-3), "but for the ridge"


def test_a_low_rank_is_nearest_in_logits():
    """No better residual of rank 2 is found from there by descent on the squared distance of logits."""
    inputs, lm_head = draw(300, 6), draw(20, 6, seed=2)
    outputs = inputs @ draw(6, 6, seed=3) + draw(300, 6, seed=4)
    moments = moments_of(inputs, outputs, lm_head)
    target = (inputs.double() @ moments.map - moments.scale * inputs.double()) @ lm_head.double().T
    left, right = (part.clone().requires_grad_() for part in moments.low_rank(2))

    def distance():
        return functional.mse_loss(inputs.double() @ left @ right @ lm_head.double().T, target)

    found = distance().item()
    optimizer = torch.optim.Adam([left, right], lr=1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        distance().backward()
        optimizer.step()
    assert distance().item() > found * (1 - 1e-6)
    torch.testing.assert_close(moments.low_rank(2)[0].norm(), moments.low_rank(2)[1].norm())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("adapter", "rank"), [("low-rank", 32), ("low-rank", 40), ("head", 1)])
def test_an_adapter_of_full_rank_reads_the_mapped_state(tiny_decoder_backbone, family, adapter, rank):
    model = MultiExitDecoder.from_backbone(str(tiny_decoder_backbone(family)), adapter=adapter, rank=rank)
    inputs, outputs = draw(400, 32), draw(400, 32, seed=1)
    moments = moments_of(model.state(inputs), model.state(outputs), model.backbone.lm_head.weight.detach())
    model.adapter(2).start_from(moments)
    expected = model.stepper.unembed(model.state(inputs) @ moments.map.float())
    torch.testing.assert_close(model.logits(2, inputs), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_norms_are_scaled_with_the_offset_of_their_gain(tiny_decoder, family):
    model = tiny_decoder(family, adapter="norm")
    adapter, hidden = model.adapter(model.exit_layers[0]), draw(3, model.width)
    state = draw(200, model.width)
    with torch.no_grad():
        before = adapter.state(hidden, model.stepper)
        adapter.start_from(moments_of(state, 2 * state, model.backbone.lm_head.weight))
        torch.testing.assert_close(adapter.state(hidden, model.stepper), 2 * before, rtol=1e-4, atol=1e-5)


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
            gives = slice(len(prompt) - 1, len(prompt) - 1 + len(response))
            wanted = model.logits(4, alone.hidden[0, gives, -1]).softmax(-1)
            for place, layer in enumerate((1, 2, 3)):
                logits = branch_logits(model, layer, alone.hidden[:, :, place], alone)
                losses.append(functional.cross_entropy(logits, wanted, reduction="none"))
        by_hand = torch.stack([torch.cat(losses[place::3]).mean() for place in range(3)]).mean()
    torch.testing.assert_close(together, by_hand)
    assert ValidationLoss(states)() == pytest.approx(-float(by_hand), rel=1e-5)
