"""Rules of classification on tokens: entropy and patience."""

import torch
from conftest import make_text_task, random_prompts

from consistentee.methods.method import get_method
from consistentee.traces.token_trace import record_tokens
from consistentee.traces.walk import replay
from consistentee.training.recipe import TokenRecipe


def trace_of(model):
    rows = [(prompt, [7, 9, 11, 30, 3]) for prompt in model.encode(random_prompts(12, seed=4))]
    return record_tokens(model, rows)


def first_exit(trace, wants_out):
    """Return the exit layers [N] where a token leaves at the first exit that ``wants_out`` [N, 3] says."""
    exits = [next((i + 1 for i, wants in enumerate(row) if wants), 4) for row in wants_out.tolist()]
    return torch.where(trace.step == 0, 4, torch.tensor(exits))


def logits_of(trace):
    return torch.stack([trace.model.logits(i + 1, trace.speaking[:, i]) for i in range(4)], dim=1)


def test_entropy_by_hand(tiny_decoder):
    model = tiny_decoder()
    trace = trace_of(model)
    probs = logits_of(trace).softmax(-1)
    entropies = -(probs * probs.log()).sum(-1)[:, :3]
    middle = float(entropies.detach().median())
    exits = replay(get_method("token-entropy").rule(model, middle), trace)
    assert torch.equal(exits, first_exit(trace, entropies < middle))
    assert set(exits.tolist()) >= {1, 4}


def test_patience_by_hand(tiny_decoder):
    """With patience 1 a token leaves at the second of two exits in a row that name the same token."""
    model = tiny_decoder()
    with torch.no_grad():  # exits that often agree
        for adapter in model.exit_adapters.values():
            adapter.load_state_dict(model.adapter(3).state_dict())
    trace = trace_of(model)
    named = logits_of(trace).argmax(-1)
    for patience in (1, 2):
        same = [
            torch.stack([named[:, i] == named[:, i - back] for back in range(1, patience + 1)]).all(0)
            if i >= patience
            else torch.zeros(len(trace), dtype=torch.bool)
            for i in range(3)
        ]
        exits = replay(get_method("token-patience").rule(model, patience), trace)
        assert torch.equal(exits, first_exit(trace, torch.stack(same, dim=1)))
        assert exits.min() == patience + 1, "nobody was patient: this shows nothing"


def test_patience_counts_exits_and_not_layers(tiny_decoder):
    method = get_method("token-patience")
    assert method.knob_values(tiny_decoder(exit_layers=(1, 3))) == (1.0, 2.0)
    assert method.knob_values(tiny_decoder(exit_layers=())) == (1.0,)


def test_entropy_trains_the_backbone_first_and_the_exits_afterwards(tiny_decoder):
    """Two stages: the backbone is that of the full model, which has not heard of the exits."""
    task, recipe = make_text_task(), TokenRecipe(trains="all", exit_steps=3, exit_batch_size=16, backbone_steps=2)
    ours = get_method("token-entropy").fit(tiny_decoder(), task, recipe)
    full = get_method("token-full").fit(tiny_decoder(), task, recipe)
    jointly = get_method("token-patience").fit(tiny_decoder(), task, recipe)
    assert ours.backbone_fingerprint() == full.backbone_fingerprint() != jointly.backbone_fingerprint()
    adapters = [dict(model.exit_adapters.named_parameters()) for model in (ours, full)]
    assert not any(torch.equal(tensor, adapters[1][name]) for name, tensor in adapters[0].items() if "norm" in name)
