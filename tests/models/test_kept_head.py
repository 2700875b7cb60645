"""Models that keep the head of a fine-tuned classifier, and their int8 copies."""

import pytest
import torch
from classifiers_on_disk import save_classifier
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)

import consistentee as ee
from benchmarks.testing.tiny import FAMILIES, make_task, make_tokenizer, random_texts
from consistentee.engine.classify import classify_encoded
from consistentee.errors import UserError
from consistentee.signals import entropy


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("classifier"))


CASES = [(family, {}) for family in FAMILIES]
CASES += [("modernbert", {"classifier_pooling": "mean"}), ("deberta-v2", {"pooler_hidden_act": "tanh"})]


def aligned(model):
    """Copy all weights to memory of torch's own: matrix products of some processors round by their place in memory."""
    for weight in (*model.parameters(), *model.buffers()):
        weight.data = weight.data.clone()
    return model


@pytest.mark.parametrize(("family", "settings"), CASES)
def test_logits_at_full_depth_are_those_of_the_incoming_model_bit_for_bit(family, settings, tmp_path):
    folder = save_classifier(tmp_path / "incoming", family, **settings)
    stock = aligned(AutoModelForSequenceClassification.from_pretrained(folder).eval())
    model = aligned(ee.MultiExitModel.from_classifier(str(folder)))
    assert model.description.label_names == ("red", "green", "blue")
    model.save_pretrained(tmp_path / "saved")
    loaded = aligned(ee.MultiExitModel.from_pretrained(tmp_path / "saved"))
    for pairs, size in ((False, 1), (False, 7), (True, 5)):
        rows = model.tokenize(random_texts(14, pairs=pairs))
        for start in range(0, len(rows), size):
            batch = model.collate(rows[start : start + size])
            with torch.inference_mode():
                wanted = stock(**batch.model_inputs).logits
            for ours in (model, loaded):
                found = classify_encoded(ours, rows[start : start + size], ee.NeverExit(), batch_size=size).logits
                assert torch.equal(found, wanted)
                assert torch.equal(ours.stock_logits(batch), wanted)
    kept = model.backbone.state_dict()
    assert all(torch.equal(kept.get(name, weight), weight) for name, weight in stock.base_model.state_dict().items())


def test_other_exits_leave_the_kept_head_alone(classifier):
    model = ee.MultiExitModel.from_classifier(str(classifier))
    head = model.classifiers[-1]
    model.use_classifier(ee.ClassifierSpec("attention"))
    assert model.classifiers[-1] is head
    assert model.fresh().classifiers[-1] is head
    with pytest.raises(UserError, match="changes the backbone"):
        ee.get_method("pabee").fit(model, make_task(), ee.Recipe())


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_rows_do_not_depend_on_their_batch_and_replays_equal_live_exits(family, tmp_path):
    model = ee.MultiExitModel.from_classifier(str(save_classifier(tmp_path / "incoming", family)))
    texts = random_texts(24)
    int8 = model.quantized(model.tokenize(texts))
    with torch.no_grad():
        for number, exit_classifier in enumerate(int8.classifiers[:-1]):
            exit_classifier.weight.copy_(torch.randn(3, int8.width, generator=torch.Generator().manual_seed(number)))
    int8.description.method_name = "deebert"
    int8.save_pretrained(tmp_path / "saved")
    loaded = ee.MultiExitModel.from_pretrained(tmp_path / "saved")
    rows = int8.tokenize(texts)
    never = {size: classify_encoded(int8, rows, ee.NeverExit(), batch_size=size).logits for size in (1, 7, 32)}
    full = classify_encoded(model, rows, ee.NeverExit(), batch_size=32).logits
    # An input of a layer that lies between two integers may be rounded the other way.
    assert all(torch.allclose(never[1], logits, atol=0.02) for logits in never.values())
    assert 0 < (never[1] - full).abs().max() < 0.5
    assert torch.equal(classify_encoded(loaded, rows, ee.NeverExit(), batch_size=7).logits, never[7])
    trace = ee.record_trace(int8, ee.Split("rows", texts, [0] * len(texts)))
    signals = torch.stack([entropy(trace.view(layer)) for layer in (1, 2, 3)])
    threshold = float(signals.quantile(0.3))
    rule = ee.get_method("deebert").rule(int8, threshold)
    firm = ((signals - threshold).abs() > 0.01).all(dim=0)
    replayed = ee.replay(rule, trace)
    assert len(set(replayed.tolist())) > 1
    assert firm.sum() > 10
    for size in (1, 7, 32):
        live = classify_encoded(int8, rows, rule, batch_size=size).exit_layers
        assert torch.equal(live[firm], replayed[firm])


def test_rules_are_asked_only_where_the_model_says(classifier, tmp_path):
    model = ee.MultiExitModel.from_classifier(str(classifier))
    model.description.asked_layers = (2,)
    method = ee.get_method("deebert")
    method.save(model, 1.09, tmp_path / "model")
    exits = {answer["exit_layer"] for answer in ee.pipeline(tmp_path / "model")(random_texts(20))}
    assert exits <= {2, 4}


def test_a_model_that_was_quantised_from_outside_is_refused(classifier, tmp_path):
    model = ee.MultiExitModel.from_classifier(str(classifier))
    ruined = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    for use in (lambda: ee.classify(ruined, ["w1"], ee.NeverExit()), lambda: ruined.save_pretrained(tmp_path / "x")):
        with pytest.raises(UserError, match=r"quantised from outside .* trains exits on an int8 model"):
            use()


def test_models_that_do_not_put_texts_into_one_class_are_refused(tmp_path, tiny_backbone):
    tokens = save_classifier(tmp_path / "tokens", auto=AutoModelForTokenClassification)
    decoder = GPT2ForSequenceClassification(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=64))
    decoder.save_pretrained(tmp_path / "d")
    make_tokenizer(False).save_pretrained(tmp_path / "d")
    bare = save_classifier(tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    cases = {
        tokens: "BertForTokenClassification, which does not label whole texts",
        save_classifier(tmp_path / "number", id2label={0: "LABEL_0"}): "predicts numbers",
        save_classifier(tmp_path / "several", problem_type="multi_label_classification"): "several labels",
        tmp_path / "d": "is a decoder",
        tiny_backbone("bert"): "BertModel, which does not label",
        bare: "holds no tokenizer",
        tmp_path / "nowhere": "no such file",
    }
    for folder, reason in cases.items():
        with pytest.raises(UserError, match=reason):
            ee.MultiExitModel.from_classifier(str(folder))
