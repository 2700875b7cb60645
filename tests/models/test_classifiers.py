"""Internal classifiers of every kind: what they read, padding, history, saving, FLOPs, and a kind of one's own."""

import sys
import types

import pytest
import torch
from conftest import make_task, random_texts
from hypothesis import given, settings, strategies as st
from torch import nn

from benchmarks.measure.flops import FlopModel
from consistentee.engine.classify import classify, classify_encoded, stock_encoded
from consistentee.errors import UserError
from consistentee.models import classifiers
from consistentee.models.classifiers import (
    CLASSIFIER_KINDS,
    ClassifierSpec,
    Exit,
    InternalClassifier,
    RecordedLayer,
    build_classifiers,
)
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.rules.exit_rule import ExitRule, NeverExit, StaticRule, ThresholdRule
from consistentee.signals import entropy
from consistentee.traces.instance_trace import record_trace
from consistentee.traces.walk import replay

WIDTH, INNER, CLASSES, LAYERS = 32, 8, 3, 4
SPECS = {kind: ClassifierSpec(kind, width=INNER) for kind in CLASSIFIER_KINDS}


@pytest.fixture(params=SPECS)
def kind(request: pytest.FixtureRequest) -> str:
    """Return the name of a kind."""
    return request.param


def perturb(model: MultiExitModel) -> MultiExitModel:
    """Give every classifier weights that matter: gates start at zero, outputs small."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.classifiers.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model


def model_with(tiny_model, kind: str, **options) -> MultiExitModel:
    model = tiny_model(**options)
    model.use_classifier(SPECS[kind], seed=1)
    return perturb(model)


class ByKey(ExitRule):
    """Rows leave at layers that their tokens alone decide."""

    def should_exit(self, view, state):
        return view.row_keys % view.num_layers < view.layer


def test_full_depth_is_the_stock_model_with_the_last_classifier(tiny_model, kind):
    model = model_with(tiny_model, kind)
    encodings = model.tokenize(random_texts(9))
    stock = stock_encoded(model, encodings, batch_size=4)
    ours = classify_encoded(model, encodings, NeverExit(), batch_size=4)
    torch.testing.assert_close(ours.logits, stock, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(stock[0], stock[1], atol=1e-3)


def test_what_a_trace_says_is_what_inference_says(tiny_model, kind):
    model = model_with(tiny_model, kind, pooling="mean", pooler="per_exit")
    task = make_task()
    trace = record_trace(model, task.test)
    average = entropy(trace.view(1)).mean().item()
    for rule in (ByKey(), ThresholdRule(entropy, average, "below")):
        exits = replay(rule, trace)
        assert exits.unique().numel() > 1
        live = classify(model, task.test.texts, rule, batch_size=7)
        assert torch.equal(live.exit_layers, exits)
        torch.testing.assert_close(live.logits, trace.logits_at(exits), rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(list(SPECS)), pooling=st.sampled_from(["mean", "cls"]), data=st.data())
def test_padding_never_matters(kind, pooling, data):
    tokens, padding = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    torch.manual_seed(0)
    built = build_classifiers(
        SPECS[kind], num_layers=3, width=WIDTH, num_labels=CLASSES, pooling=pooling, dropout=0.1
    ).eval()
    hidden = torch.randn(2, tokens, WIDTH, generator=generator)
    garbage = 100 * torch.randn(2, padding, WIDTH, generator=generator)
    for layer, classifier in enumerate(built, start=1):
        short, padded = (
            classifier(_layer(torch.cat(parts, dim=1), tokens, layer, pooling))
            for parts in ([hidden], [hidden, garbage])
        )
        torch.testing.assert_close(padded, short, rtol=1e-4, atol=1e-5)


def _layer(hidden, tokens: int, layer: int, pooling) -> RecordedLayer:
    mask = (torch.arange(hidden.shape[1]) < tokens).expand(len(hidden), -1)
    pooled = classifiers.pool_tokens(hidden, mask, pooling)
    return RecordedLayer(torch.stack([pooled] * layer, dim=1), hidden, mask)


class TestHistory:
    """The pooled vectors of earlier layers, kept row by row."""

    def test_it_follows_its_row_when_others_leave(self, tiny_model):
        model = model_with(tiny_model, "past-future")
        task = make_task()
        trace = record_trace(model, task.test)
        recorded = dict(zip(trace.row_keys.tolist(), trace.pooled, strict=True))
        sizes = []

        class ReadsHistory(ByKey):
            reads_history = True

            def should_exit(self, view, state):
                expected = torch.stack([recorded[key][: view.layer] for key in view.row_keys.tolist()])
                torch.testing.assert_close(view.history, expected, rtol=1e-4, atol=1e-5)
                sizes.append(view.rows)
                return super().should_exit(view, state)

        classify(model, task.test.texts, ReadsHistory(), batch_size=16)
        assert len(set(sizes)) > 2, "batches shrank"

    def test_a_rule_that_does_not_declare_it_is_told_so(self, tiny_model):
        class Undeclared(ExitRule):
            def should_exit(self, view, state):
                return view.history.mean(dim=(1, 2)) > 0

        model = tiny_model()
        with pytest.raises(UserError, match="reads_history = True"):
            classify(model, ["w1"], Undeclared())
        replay(Undeclared(), record_trace(model, make_task().test))

    @pytest.mark.parametrize(
        ("kind", "pooled_at"), [("linear", [4]), ("attention", []), ("past-future", [1, 2, 3, 4])], ids=str
    )
    def test_only_who_reads_it_pays_for_it(self, tiny_model, monkeypatch, kind, pooled_at):
        model = model_with(tiny_model, kind)
        layers = []
        pool = model.pool
        monkeypatch.setattr(model, "pool", lambda layer, *rest: (layers.append(layer), pool(layer, *rest))[1])
        classify(model, ["w1"], NeverExit())
        assert layers == pooled_at


class TestVectors:
    """Answers from pooled vectors alone, as frozen stages cache them."""

    @pytest.mark.parametrize("readable", ["linear", "past-future"])
    def test_they_serve_who_reads_no_tokens(self, tiny_model, readable):
        model = model_with(tiny_model, readable, pooling="cls", pooler="shared")
        with torch.no_grad():
            outputs = model(model.collate(model.tokenize(random_texts(5))))
            again = model.read_vectors(outputs.vectors)
        torch.testing.assert_close(again.logits, outputs.logits)
        torch.testing.assert_close(again.pooled, outputs.pooled)


class TestChoosing:
    """use_classifier, and the description it leaves."""

    def test_saved_and_loaded_it_answers_the_same(self, tiny_model, kind, tmp_path):
        model = model_with(tiny_model, kind)
        model.save_pretrained(tmp_path / "saved")
        again = MultiExitModel.from_pretrained(tmp_path / "saved")
        assert again.description == model.description
        assert again.description.classifier.kind == kind
        texts = random_texts(12)
        for rule in (NeverExit(), ByKey()):
            assert torch.equal(classify(model, texts, rule).logits, classify(again, texts, rule).logits)

    def test_what_cannot_be_built_is_named(self, tiny_model):
        model = tiny_model()
        with pytest.raises(UserError, match="unknown kind of classifier 'atention'; did you mean 'attention'"):
            model.use_classifier(ClassifierSpec("atention"))
        with pytest.raises(UserError, match="width 8 cannot have 3 heads"):
            model.use_classifier(ClassifierSpec("attention", width=8, attention_heads=3))
        assert model.description.classifier == ClassifierSpec()


OWN_KIND = """
from torch import nn
from consistentee.models.classifiers import CLASSIFIER_KINDS, InternalClassifier

class Mine(InternalClassifier):
    def __init__(self, spec, place):
        super().__init__(spec, place)
        self.output = nn.Linear(place.width, place.num_labels)

    def forward(self, layer):
        return self.output(layer.pooled)

CLASSIFIER_KINDS["mine"] = Mine
"""


class TestOwnKind:
    @pytest.fixture
    def fingerprint(self, tiny_model, tmp_path, monkeypatch):
        """Return a function: code -> fingerprint of a model with the kind that it enters, the file edited since."""
        monkeypatch.setattr(classifiers, "CLASSIFIER_KINDS", dict(CLASSIFIER_KINDS))
        monkeypatch.delitem(sys.modules, "own_kind", raising=False)

        def fingerprint_with(code: str) -> str:
            path = tmp_path / "own_kind.py"
            path.write_text(code)
            module = types.ModuleType("own_kind")
            module.__file__ = str(path)
            monkeypatch.setitem(sys.modules, "own_kind", module)
            exec(compile(code, path, "exec"), vars(module))
            path.write_text("an edit after the code was read")
            model = tiny_model()
            model.use_classifier(ClassifierSpec("mine"))
            return model.fingerprint()

        return fingerprint_with

    def test_its_code_is_in_the_fingerprint(self, fingerprint):
        before = fingerprint(OWN_KIND)
        assert fingerprint(OWN_KIND) == before
        assert fingerprint(OWN_KIND.replace("self.output(layer.pooled)", "2 * self.output(layer.pooled)")) != before


def pooling_cost(n: int, pooling: str, width: int = WIDTH) -> int:
    return 2 * n * width if pooling == "mean" else 0


def linear_cost(n: int, pooling: str) -> int:
    return pooling_cost(n, pooling) + 2 * WIDTH * CLASSES


def attention_cost(n: int, pooling: str) -> int:
    """Projection, query-key-value, scores and mixing, output projection; pooled; hidden layer and output."""
    tokens = 2 * n * WIDTH * INNER + 2 * n * INNER * 3 * INNER + 2 * 2 * n * n * INNER + 2 * n * INNER * INNER
    return tokens + pooling_cost(n, pooling, INNER) + 2 * INNER * INNER + 2 * INNER * CLASSES


def past_future_cost(layer: int) -> int:
    """A gate scores and sums each state; a predictor takes one narrow layer, and a step for each layer to come."""
    later = LAYERS - layer
    gates = 2 * 2 * LAYERS * WIDTH
    predictor = 2 * WIDTH * INNER + 2 * INNER * later * WIDTH if later else 0
    return gates + predictor + 2 * WIDTH * (2 if later else 1) * CLASSES


def ensemble_cost(layer: int) -> int:
    """All heads so far say anew what they say; each but the first reads what the one before says."""
    return 2 * (layer * WIDTH + (layer - 1) * CLASSES) * CLASSES


@pytest.mark.parametrize("pooling", ["mean", "cls"])
class TestFlops:
    """Counted, against closed formulas: two operations a multiply-add."""

    def test_of_an_answer(self, tiny_model, kind, pooling):
        n, flops = 10, FlopModel(model_with(tiny_model, kind, pooling=pooling, pooler="none"))
        before = sum(int(layer(n)) for layer in flops.layers[:2])
        answer = {
            "linear": linear_cost(n, pooling),
            "mlp": linear_cost(n, pooling) + 2 * WIDTH * WIDTH,
            "shared": linear_cost(n, pooling),
            "class-means": linear_cost(n, pooling),
            "attention": attention_cost(n, pooling),
            "past-future": 2 * pooling_cost(n, pooling) + past_future_cost(2),
            "ensemble": 2 * pooling_cost(n, pooling) + ensemble_cost(2),
            "product": 2 * linear_cost(n, pooling),
        }
        assert flops.row_flops([n], [2], StaticRule(2)).tolist() == [before + answer[kind]]


class MaxOfAll(InternalClassifier):
    """A kind of one's own: the largest value of every feature, over tokens and over the layers before."""

    reads_tokens = True
    reads_history = True

    def __init__(self, spec: ClassifierSpec, place: Exit) -> None:
        super().__init__(spec, place)
        self.output = nn.Linear(2 * place.width, place.num_labels)

    def forward(self, layer):
        tokens = layer.hidden.masked_fill(~layer.padding_mask[:, :, None], -torch.inf).amax(dim=1)
        return self.output(torch.cat([tokens, layer.history.amax(dim=1)], dim=-1))


def test_a_kind_of_ones_own_is_entered_in_one_place(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(CLASSIFIER_KINDS, "max", MaxOfAll)
    model = tiny_model(pooling="cls", pooler="none")
    model.use_classifier(ClassifierSpec("max"))
    task = make_task()
    trace = record_trace(model, task.test)
    live = classify(model, task.test.texts, ByKey(), batch_size=7)
    exits = replay(ByKey(), trace)
    assert torch.equal(live.exit_layers, exits)
    torch.testing.assert_close(live.logits, trace.logits_at(exits), rtol=1e-4, atol=1e-5)
    encodings = model.tokenize(task.test.texts)
    torch.testing.assert_close(stock_encoded(model, encodings, batch_size=8), trace.logits[:, -1], rtol=1e-4, atol=1e-5)
    flops = FlopModel(model)
    assert flops.full_flops([9]).tolist() == [sum(int(layer(9)) for layer in flops.layers) + 2 * 2 * WIDTH * CLASSES]
    model.save_pretrained(tmp_path / "saved")
    again = MultiExitModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(record_trace(again, task.test).logits, trace.logits)
    monkeypatch.delitem(CLASSIFIER_KINDS, "max")
    with pytest.raises(UserError, match="unknown kind of classifier 'max'"):
        MultiExitModel.from_pretrained(tmp_path / "saved")
