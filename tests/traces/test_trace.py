"""Trace, replay and sweep."""

import pytest
import torch
from conftest import make_task, random_texts

from consistentee.data.instances import Split
from consistentee.errors import UserError
from consistentee.rules.exit_rule import ThresholdRule
from consistentee.signals import entropy
from consistentee.traces.instance_trace import record_logits, record_outputs, record_trace

THRESHOLDS = [1.2, 1.0, 0.95, 0.9, 0.0]


def rules():
    return [ThresholdRule(entropy, threshold, exit_when="below") for threshold in THRESHOLDS]


def test_shapes_and_order_do_not_depend_on_batching(tiny_model):
    model = tiny_model()
    split = Split("some", random_texts(21), list(range(3)) * 7)
    trace, other = (record_trace(model, split, batch_size=size) for size in (4, 64))
    assert trace.logits.shape == (21, 4, 3)
    assert trace.pooled.shape == (21, 4, model.width)
    assert trace.labels.tolist() == list(split.labels)
    assert torch.equal(trace.row_keys, other.row_keys)
    torch.testing.assert_close(trace.logits, other.logits, rtol=1e-4, atol=1e-5)


def test_logits_alone_are_those_of_the_whole_pass_and_leave_nothing_in_the_store(tiny_model, tmp_path):
    model, split = tiny_model(), make_task().test
    encodings = model.tokenize(split.texts)
    alone = record_logits(model, encodings, store=tmp_path)
    assert not list(tmp_path.iterdir())
    assert torch.equal(alone, record_outputs(model, encodings, store=tmp_path).logits)
    assert torch.equal(alone, record_logits(model, encodings, store=tmp_path))


def test_a_stored_pass_is_read_again_and_only_where_nothing_changed(tiny_model, tmp_path):
    model, split = tiny_model(), make_task().test
    first = record_trace(model, split, store=tmp_path)
    again = record_trace(model, split, store=tmp_path)
    assert torch.equal(first.logits, again.logits)
    assert torch.equal(first.pooled, again.pooled)
    assert len(list(tmp_path.glob("outputs-*"))) == 1
    with torch.no_grad():
        model.classifiers[0].bias += 1
    assert not torch.equal(record_trace(model, split, store=tmp_path).logits, first.logits)
    assert len(list(tmp_path.glob("outputs-*"))) == 2


def test_what_a_trace_cannot_say_is_named(tiny_model):
    trace = record_trace(tiny_model(), make_task().test)
    with pytest.raises(UserError, match="hidden states"):
        _ = trace.view(1).hidden
    with pytest.raises(UserError, match="no head 'policy'"):
        trace.view(1).head("policy")
