"""Steppers of encoders: they are the stock model, and so are their layers where tokens exit by themselves.

``test_check_backbone.py`` compares the hidden states of every layer of every family.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from benchmarks.testing.tiny import TOKEN_EXIT_FAMILIES, VOCABULARY, random_texts
from consistentee import MultiExitModel, TokenExitStepper, UserError
from consistentee.backbones.encoders import stepper_for
from consistentee.data.encoding import Batch
from consistentee.engine.classify import stock_encoded

# Families whose stock classification head is what this project builds: [CLS], one tanh layer, one linear layer.
_STOCK_HEADS = {
    "bert": ("bert.pooler.dense", "classifier"),
    "albert": ("albert.pooler", "classifier"),
    "roberta": ("classifier.dense", "classifier.out_proj"),
    "mpnet": ("classifier.dense", "classifier.out_proj"),
}


@pytest.mark.parametrize("family", sorted(_STOCK_HEADS))
def test_logits_equal_stock_sequence_classification(tiny_backbone, family):
    folder = tiny_backbone(family)
    stock = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()
    model = MultiExitModel.from_backbone(str(folder), 3, pooling="cls", pooler="shared")
    dense, out = (stock.get_submodule(name) for name in _STOCK_HEADS[family])
    model.poolers[0].load_state_dict(dense.state_dict())
    model.classifiers[-1].load_state_dict(out.state_dict())
    encodings = model.tokenize(random_texts(8))
    batch = model.collate(encodings)
    with torch.no_grad():
        expected = stock(**batch.model_inputs).logits
    torch.testing.assert_close(model(batch).logits[:, -1].detach(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stock_encoded(model, encodings, batch_size=8), expected, rtol=1e-5, atol=1e-5)


def test_a_decoder_is_refused_with_the_command_that_takes_it(tiny_decoder_backbone):
    with pytest.raises(UserError, match=r"'llama' is a decoder: .*train dolly --method consistentee-tokens --backbone"):
        MultiExitModel.from_backbone(str(tiny_decoder_backbone("llama")), 3)


LAYERS = 4


def full_depth() -> Tensor:
    return torch.full((len(VOCABULARY),), LAYERS)


def stepped(model: MultiExitModel, batch: Batch) -> Iterator[Tensor]:
    """Yield the hidden states of all layers."""
    hidden, context = model.stepper.begin(batch)
    for layer in range(1, model.num_layers + 1):
        hidden = model.stepper.step(layer, hidden, context)
        yield hidden


def stock_layers_with_exited_tokens_put_back(model: MultiExitModel, batch: Batch) -> Iterator[Tensor]:
    """Yield the hidden states of all layers, each layer run by the stock module on all tokens."""
    stepper = stepper_for(model.backbone)
    exits = model.stepper.token_exits.schedule[batch.input_ids].unsqueeze(-1)
    hidden, context = stepper.begin(batch)
    for layer in range(1, model.num_layers + 1):
        hidden = torch.where(exits >= layer, stepper.step(layer, hidden, context), hidden)
        yield hidden


@pytest.mark.parametrize(("last", "count"), [(2, 1), (LAYERS, 9)])
@pytest.mark.parametrize("family", TOKEN_EXIT_FAMILIES)
def test_states_and_gradients_are_those_of_stock_layers_with_exited_tokens_put_back(tiny_model, family, last, count):
    model = tiny_model(family)
    schedule = torch.randint(1, last + 1, (len(VOCABULARY),), generator=torch.Generator().manual_seed(5))
    model.use_stepper(TokenExitStepper.over(model.stepper, schedule))
    batch = model.collate(model.tokenize(random_texts(count, seed=4)))
    real = batch.padding_mask.unsqueeze(-1)
    runs = [list(stepped(model, batch)), list(stock_layers_with_exited_tokens_put_back(model, batch))]
    for ours, expected in zip(*runs, strict=True):
        torch.testing.assert_close(ours * real, expected * real, rtol=1e-5, atol=1e-5)
    weights = list(model.backbone.parameters())
    direction = torch.randn(model.width, generator=torch.Generator().manual_seed(1))  # norms fix the states' squares
    losses = [((states[-1] * real) @ direction).sum() for states in runs]
    gradients = [torch.autograd.grad(loss, weights, materialize_grads=True) for loss in losses]
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_while_all_tokens_are_live_the_stock_layer_runs_and_later_layers_run_on_no_more_than_is_live(tiny_model):
    model = tiny_model("bert")
    schedule = full_depth()
    schedule[VOCABULARY.index("w0")] = 2
    model.use_stepper(TokenExitStepper.over(model.stepper, schedule))
    batch = model.collate(model.tokenize(["w1 w0 w0", "w0"]))
    whole, queries, keys = [], [], []
    for number, layer in enumerate(model.backbone.encoder.layer, start=1):
        layer.register_forward_hook(lambda *_, number=number: whole.append(number))
        layer.attention.self.query.register_forward_hook(lambda _, args, __: queries.append(args[0].shape[:-1]))
        layer.attention.self.key.register_forward_hook(lambda _, args, __: keys.append(args[0].shape[:-1]))
    list(stepped(model, batch))
    assert whole == [1, 2]
    assert queries == [(2, 5), (2, 5), (5,), (5,)], "[CLS] w1 [SEP], [CLS] [SEP]"
    assert keys == [(2, 5)] * 4, "tokens that have exited are attended to"


@pytest.mark.parametrize(
    ("schedule", "fault"),
    [(torch.ones(3), r"\[64\]"), (torch.zeros(64), r"1\.\.4"), (torch.full((64,), LAYERS + 1), r"1\.\.4")],
)
def test_schedules_that_do_not_fit_are_refused(tiny_model, schedule, fault):
    with pytest.raises(ValueError, match=fault):
        TokenExitStepper.over(tiny_model("bert").stepper, schedule)


def test_models_whose_layers_have_no_known_parts_are_refused(tiny_model):
    with pytest.raises(UserError, match="not supported for architecture 'modernbert'"):
        TokenExitStepper.over(tiny_model("modernbert").stepper, full_depth())
    model = tiny_model("albert")
    group = model.backbone.encoder.albert_layer_groups[0].albert_layers
    group.append(group[0])
    with pytest.raises(UserError, match="one layer each"):
        model.stepper.parts(1)
