"""The trace of instances: order, store, memory, passes too large for it; and the loop over exits, for random rules."""

import errno
import os
import sys
import tempfile
from pathlib import Path
from unittest import mock

import psutil
import pytest
import torch
from hypothesis import given, strategies as st
from tensors_by_hand import trace_of
from torch.profiler import ProfilerActivity, profile

from benchmarks.testing.tiny import make_task
from consistentee import ConsecutiveRule, ExitRule, NeverExit, SameAnswerRule, ThresholdRule, UserError, files
from consistentee.files import DiskFullError, load_tensors, save_tensors
from consistentee.models.encoder import LayerOutputs
from consistentee.signals import entropy, margin, top_probability
from consistentee.traces.instance_trace import record_logits, record_outputs, record_trace
from consistentee.traces.walk import replay, sweep, walk


def test_a_stored_pass_is_read_again_and_only_where_nothing_changed(tiny_model, tmp_path):
    model, split = tiny_model(), make_task().test
    encodings = model.tokenize(split.texts)
    alone = record_logits(model, encodings, store=tmp_path)
    assert not list(tmp_path.iterdir()), "logits alone leave nothing in the store"
    first = record_trace(model, split, store=tmp_path)
    again = record_trace(model, split, store=tmp_path)
    assert torch.equal(first.logits, again.logits)
    assert torch.equal(first.pooled, again.pooled)
    assert torch.equal(first.logits, alone)
    assert torch.equal(first.logits, record_logits(model, encodings, store=tmp_path))
    assert len(list(tmp_path.glob("outputs-*"))) == 1
    with torch.no_grad():
        model.classifiers[0].bias += 1
    assert not torch.equal(record_trace(model, split, store=tmp_path).logits, first.logits)
    assert len(list(tmp_path.glob("outputs-*"))) == 2


def test_a_trace_refuses_what_it_does_not_record(tiny_model):
    trace = record_trace(tiny_model(), make_task().test)
    with pytest.raises(UserError, match="hidden states"):
        _ = trace.view(1).hidden
    with pytest.raises(UserError, match="no head 'policy'"):
        trace.view(1).head("policy")


def peak_of(compute):
    """Return the largest number of bytes of tensors that a computation holds in memory at a time, and its result."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = compute()
    changes = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return peak, result


@pytest.fixture
def wide_encoder(tiny_model, monkeypatch):
    """Return an encoder whose outputs take far more memory than a pass through its layers."""
    model = tiny_model()

    def forward(batch):
        vectors = torch.full((len(batch.lengths), 4, 4000), float(batch.input_ids.sum()))
        return LayerOutputs(vectors, vectors.tanh(), vectors[:, :, :3])

    monkeypatch.setattr(model, "forward", forward)
    return model


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "not stored"])
def test_a_pass_over_instances_needs_little_more_memory_than_is_kept(wide_encoder, tmp_path, stored):
    encodings = wide_encoder.tokenize([f"w{number % 9} w0" for number in range(200)])
    store = tmp_path if stored else None
    peak, outputs = peak_of(lambda: record_outputs(wide_encoder, encodings, batch_size=8, store=store))
    kept = sum(tensor.nbytes for tensor in (outputs.vectors, outputs.pooled, outputs.logits))
    copied = outputs.vectors.nbytes if stored and torch.__version__ < "2.7" else 0  # torch 2.6 reads a tensor twice
    assert kept < peak < 1.3 * kept + copied


def test_large_passes_are_in_files_that_disappear(wide_encoder, tmp_path, monkeypatch):
    encodings = wide_encoder.tokenize(["w0", "w1 w2"] * 100)
    in_memory = record_outputs(wide_encoder, encodings, batch_size=8)
    monkeypatch.setattr(files, "MAPPED_BYTES", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    peak, outputs = peak_of(lambda: record_outputs(wide_encoder, encodings, batch_size=8))
    assert peak < 0.3 * outputs.vectors.nbytes
    assert all(torch.equal(kept, getattr(in_memory, name)) for name, kept in vars(outputs).items())
    assert not list(tmp_path.iterdir())
    if sys.platform == "linux":
        maps = Path("/proc/self/maps")
        assert maps.read_text().count(str(tmp_path)) == 3
        del outputs
        assert str(tmp_path) not in maps.read_text()


def test_a_mapped_file_is_as_private_as_one_that_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAPPED_BYTES", 0)
    saved = {"weights": torch.randn(3, 5), "steps": torch.tensor(7), "random_state": torch.get_rng_state()}
    saved |= {str(kind): torch.ones(2, dtype=kind) for kind in (torch.bool, torch.int32, torch.bfloat16, torch.float16)}
    save_tensors(saved, tmp_path / "file")
    for _ in range(2):
        found = load_tensors(tmp_path / "file")
        assert {name for name, tensor in saved.items() if torch.equal(tensor, found[name])} == saved.keys()
        found["weights"] += 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems promise no memory, or do not refuse it")
def test_a_file_larger_than_the_memory_can_be_read(tmp_path):
    rows = psutil.virtual_memory().total // 4096 * 5 // 4
    header = b'{"a":{"dtype":"F32","shape":[%d,1024],"data_offsets":[0,%d]}}' % (rows, rows * 4096)
    with (tmp_path / "file").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + rows * 4096)  # a hole: it takes no room on the disk
    assert load_tensors(tmp_path / "file")["a"][rows - 1].sum() == 0


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system reserves no room in files")
def test_a_full_disk_is_named_before_anything_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAPPED_BYTES", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", mock.Mock(side_effect=OSError(errno.ENOSPC, "")))
    with pytest.raises(DiskFullError, match=tmp_path.name):
        files.empty_tensor((10, 10), torch.float32)


LAYERS, CLASSES = 6, 3


class Tabled(ExitRule):
    """Exits as a table [rows, layers] tells, where one layer may object after another has agreed."""

    def __init__(self, table):
        self.table = table

    def should_exit(self, view, state):
        return self.table[view.row_keys, view.layer - 1]


def row_by_row(rule, logits, exits):
    """Return where each row leaves if it is alone in its trace: nothing is masked, and nothing can be mixed up."""
    layers = []
    for number, row in enumerate(logits):
        trace = trace_of(row.unsqueeze(0))
        trace.row_keys = torch.tensor([number])
        state, left = rule.start(1, LAYERS), LAYERS
        for layer in exits[:-1]:
            if rule.should_exit(trace.view(layer), state).item():
                left = layer
                break
        layers.append(left)
    return layers


def generators():
    return st.integers(0, 2**31).map(lambda seed: torch.Generator().manual_seed(seed))


@st.composite
def all_logits(draw):
    """Return logits [rows, layers, classes] whose answers change now and then; there may be no row at all."""
    rows = draw(st.integers(0, 24))
    return torch.randn(rows, LAYERS, CLASSES, generator=draw(generators())).cumsum(dim=1)


def simple_rules():
    thresholds = st.floats(0, 1.1)
    tables = generators().map(lambda generator: Tabled(torch.rand(24, LAYERS, generator=generator) < 0.3))
    signals = st.sampled_from([entropy, margin, top_probability])
    thresholded = st.builds(ThresholdRule, signals, thresholds, st.sampled_from(["above", "below"]))
    return st.one_of(tables, thresholded, st.builds(SameAnswerRule), st.builds(NeverExit))


RULES = st.one_of(simple_rules(), st.builds(ConsecutiveRule, simple_rules(), st.integers(1, LAYERS)))
EXITS = st.sets(st.integers(1, LAYERS - 1)).map(lambda layers: [*sorted(layers), LAYERS])


@given(all_logits(), RULES, EXITS)
def test_a_replay_equals_a_loop_over_rows(logits, rule, exits):
    trace, taken, asked = trace_of(logits), [], []
    found, should_exit = [0] * len(trace), rule.should_exit

    def note(view, state):
        asked.append((view.layer, view.rows))
        return should_exit(view, state)

    with mock.patch.object(rule, "should_exit", note):
        for view, leaves in walk(rule, (taken.append(layer) or trace.view(layer) for layer in exits)):
            for row in leaves.nonzero().flatten().tolist():
                assert found[row] == 0, "a row exits once"
                found[row] = view.layer
    expected = row_by_row(rule, logits, exits)
    assert found == expected
    deepest = max(expected, default=exits[0])
    assert taken == [layer for layer in exits if layer <= deepest], "no view is taken once all rows have exited"
    assert asked == [(layer, len(trace)) for layer in exits if layer <= deepest and layer < LAYERS]


@given(all_logits(), st.lists(RULES, min_size=1, max_size=3))
def test_a_sweep_equals_replays_of_every_rule(logits, rules):
    trace, layers = trace_of(logits), range(1, LAYERS + 1)
    expected = [row_by_row(rule, logits, layers) for rule in rules]
    assert sweep(rules, trace).tolist() == expected
    assert [replay(rule, trace).tolist() for rule in rules] == expected
