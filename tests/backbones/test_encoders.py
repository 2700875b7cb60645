"""The steppers: running the stock model's own layers one by one gives the stock model."""

from types import SimpleNamespace

import pytest
import torch
from conftest import FAMILIES, random_texts
from transformers import AutoModelForSequenceClassification

from consistentee.backbones.encoders import stepper_for
from consistentee.engine.classify import stock_encoded
from consistentee.errors import UserError
from consistentee.models.encoder.multi_exit_model import MultiExitModel


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pairs", [False, True])
def test_every_layer_equals_the_stock_hidden_states(tiny_model, family, pairs):
    model = tiny_model(family)
    batch = model.collate(model.tokenize(random_texts(9, pairs=pairs)))
    with torch.no_grad():
        stock = model.backbone(**batch.model_inputs, output_hidden_states=True).hidden_states
        hidden, context = model.stepper.begin(batch)
        real = batch.padding_mask.unsqueeze(-1)
        assert model.stepper.num_layers == len(stock) - 1 == 4
        for layer in range(1, model.num_layers + 1):
            hidden = model.stepper.step(layer, hidden, context)
            read = model.stepper.read(layer, hidden) if layer == model.num_layers else hidden
            torch.testing.assert_close(read * real, stock[layer] * real, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropping_rows_changes_no_other_row(tiny_model, family):
    model = tiny_model(family)
    batch = model.collate(model.tokenize(random_texts(9, seed=4)))
    keep = sorted(range(9), key=lambda i: batch.lengths[i])[:3]
    with torch.no_grad():
        hidden, context = model.stepper.begin(batch)
        hidden = model.stepper.step(1, hidden, context)
        fewer = batch.select(keep, torch.tensor(keep))
        width = max(fewer.lengths)
        assert width < hidden.shape[1], "the padding columns that nobody needs are cut"
        small = hidden[keep, :width]
        full = model.stepper.step(2, hidden, context)[keep, :width]
        real = fewer.padding_mask.unsqueeze(-1)
        dropped = model.stepper.step(2, small, model.stepper.context(2, small, fewer))
        torch.testing.assert_close(dropped * real, full * real, rtol=1e-5, atol=1e-5)


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
    ours = model(batch).logits[:, -1].detach()
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stock_encoded(model, encodings, batch_size=8), expected, rtol=1e-5, atol=1e-5)


def test_unknown_architecture_is_named():
    backbone = SimpleNamespace(config=SimpleNamespace(model_type="gpt-nine"))
    with pytest.raises(UserError, match=r"gpt-nine.*supported.*bert"):
        stepper_for(backbone)


def test_a_decoder_is_refused_with_the_command_that_takes_it(tiny_decoder_backbone):
    with pytest.raises(UserError, match=r"'llama' is a decoder: .*train dolly --method consistentee-tokens --backbone"):
        MultiExitModel.from_backbone(str(tiny_decoder_backbone("llama")), 3)
