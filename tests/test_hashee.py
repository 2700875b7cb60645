"""HashEE: which token exits where, and what the parameters may be."""

import pytest
import torch
from conftest import VOCABULARY, make_task
from hypothesis import given
from hypothesis import strategies as st

from baselines.hashee import HashEE, frequency_buckets, token_counts
from consistentee.encoding import Encoding
from consistentee.errors import UserError
from consistentee.training import Recipe

CLS, SEP = VOCABULARY.index("[CLS]"), VOCABULARY.index("[SEP]")


def test_buckets_take_equal_shares_of_the_occurrences():
    counts = torch.tensor([0, 4, 1, 1, 2, 0])
    assert frequency_buckets(counts, 2).tolist() == [1, 0, 1, 1, 1, 1]
    assert frequency_buckets(counts, 4).tolist() == [3, 0, 3, 3, 2, 3]
    assert frequency_buckets(counts, 1).tolist() == [0] * 6


def test_nothing_seen_is_all_in_the_last_bucket():
    assert frequency_buckets(torch.zeros(3, dtype=torch.long), 4).tolist() == [3, 3, 3]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.integers(1, 6))
def test_a_more_frequent_token_is_never_in_a_later_bucket(counts, buckets):
    found = frequency_buckets(torch.tensor(counts), buckets).tolist()
    assert all(0 <= bucket < buckets for bucket in found)
    for first, bucket in zip(counts, found, strict=True):
        assert all(bucket <= b for other, b in zip(counts, found, strict=True) if other < first)
        if first == 0:
            assert bucket == buckets - 1


def test_the_schedule_spreads_buckets_over_layers_and_lets_the_first_token_run(tiny_model):
    model = tiny_model("bert")
    rows = [Encoding([CLS, 10, 10, 10, 11, 12, SEP]), Encoding([CLS, 10, 11, SEP])]  # 9 tokens beside [CLS]: 4, 2, 2, 1
    schedules = {p: HashEE(*p).schedule(model, rows) for p in ((None, None), (None, 2), (3, None), (3, 2))}
    tokens = [10, SEP, 11, 12, 40, CLS]  # from frequent to unseen, and [CLS]; before them are 0, 4, 6, 8 of 9
    assert {p: schedule[tokens].tolist() for p, schedule in schedules.items()} == {
        (None, None): [1, 2, 3, 4, 4, 4],
        (None, 2): [2, 2, 4, 4, 4, 4],
        (3, None): [1, 2, 3, 3, 3, 3],
        (3, 2): [2, 2, 3, 3, 3, 3],
    }


def test_counts_are_those_of_the_tokens():
    assert token_counts([Encoding([2, 0, 2]), Encoding([1])], 4).tolist() == [1, 1, 2, 0]


@pytest.mark.parametrize(
    ("parameters", "fault"),
    [
        ({"max_layer": 5}, r"max_layer must lie in 1\.\.4, got 5"),
        ({"max_layer": 0}, "max_layer"),
        ({"buckets": 5}, r"buckets must lie in 1\.\.4, the layers there are, got 5"),
        ({"max_layer": 2, "buckets": 3}, r"1\.\.2"),
        ({"buckets": 0}, "buckets"),
    ],
)
def test_parameters_that_do_not_fit_the_model_are_refused(tiny_model, parameters, fault):
    with pytest.raises(UserError, match=fault):
        HashEE(**parameters).fit(tiny_model("bert"), make_task(), Recipe(epochs=1))


def test_training_runs_with_the_exits_on_and_teaches_the_last_classifier(tiny_model):
    model, task = tiny_model("bert"), make_task()
    seen: list[int] = []
    model.backbone.encoder.layer[3].attention.self.query.register_forward_hook(
        lambda module, args, _: seen.append(args[0].shape[:-1].numel()) if module.training else None
    )
    before = model.classifiers[-1].weight.clone()
    HashEE().fit(model, task, Recipe(epochs=1, batch_size=60, max_length=32))
    live = model.live_tokens(model.tokenize(task.train.texts))
    assert seen == [int(live[:, 3].sum())]
    assert seen[0] < int(live[:, 0].sum())
    assert not torch.equal(model.classifiers[-1].weight, before)
