"""consistentee-tokens-tuned: losses that weigh where tokens leave, through the backbone or on cached states."""

from dataclasses import replace

import pytest
import torch
from conftest import make_text_task
from torch.nn import functional

from consistentee.methods.consistent_ee.tokens_tuned import ConsistentEETokensTuned, loss_where_tokens_leave
from consistentee.methods.reward import exit_shares
from consistentee.traces.token_trace import record_tokens
from consistentee.training.head_loss import top_probabilities
from consistentee.training.recipe import TokenRecipe

RECIPE = TokenRecipe(
    exit_steps=4, exit_batch_size=16, head_steps=4, head_batch_size=16, head_tokens=40, backbone_steps=4
)
ROWS = [([2, 7, 9], [30, 31, 3]), ([2, 8], [40, 3])]


def changed(model, before):
    return {name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("adapter", ["low-rank", "head"])
def test_loss_by_hand(tiny_decoder, adapter):
    model = tiny_decoder(exit_layers=(1, 3), adapter=adapter)
    trace = record_tokens(model, ROWS)
    logits = torch.stack([model.logits(layer, trace.speaking[:, i]) for i, layer in enumerate((1, 3, 4))], dim=1)
    losses = torch.stack(
        [functional.cross_entropy(part, trace.targets, reduction="none") for part in logits.unbind(1)], 1
    )
    torch.manual_seed(0)
    shares = exit_shares(1 - logits.softmax(-1).amax(-1), 0.6)
    assert shares.std(dim=0).max() > 0, "all tokens leave alike: this shows nothing"
    torch.manual_seed(0)
    loss = loss_where_tokens_leave(0.6, model, trace.speaking, trace.targets)
    torch.testing.assert_close(loss, (shares * losses).sum(dim=1).mean())


def test_top_probabilities_by_hand():
    torch.manual_seed(0)
    states, head = torch.randn(700, 8), torch.randn(30, 8)
    torch.testing.assert_close(top_probabilities(states, head), (states @ head.T).softmax(-1).amax(-1))


def test_the_backbone_goes_on_from_the_stage_that_methods_share(tiny_decoder, tmp_path):
    recipe = replace(RECIPE, trains="all", store=tmp_path, exit_weights="equal")
    before = None
    for at_exit in (0.3, 0.9, 0.3):
        model = tiny_decoder(adapter="shared")
        ConsistentEETokensTuned(at_exit=at_exit).fit(model, make_text_task(), recipe)
        assert before is None or (at_exit == 0.3) == ("backbone" not in changed(model, before))
        before = before or model.clone_weights()
    assert len(list(tmp_path.glob("backbone-all-*.safetensors"))) == 1
    assert len(list(tmp_path.glob("where-tokens-leave-all-*.safetensors"))) == 2


def test_on_a_frozen_backbone_adapters_learn(tiny_decoder):
    models = [tiny_decoder(), tiny_decoder()]
    for model, at_exit in zip(models, (0.0, 1.0), strict=True):
        ConsistentEETokensTuned(at_exit=at_exit).fit(model, make_text_task(), RECIPE)
    assert changed(models[0], models[1].clone_weights()) == {"exit_adapters", "exit_heads"}
