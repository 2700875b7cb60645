"""HashEE: which token exits where, and what the parameters may be."""

import pytest
import torch

from baselines.hashee import HashEE, frequency_buckets
from benchmarks.testing.tiny import VOCABULARY, make_task
from consistentee.data.encoding import Encoding
from consistentee.errors import UserError
from consistentee.training import TokenSource
from consistentee.training.recipe import Recipe

CLS, SEP = VOCABULARY.index("[CLS]"), VOCABULARY.index("[SEP]")


def test_buckets_have_equal_numbers_of_the_tokens_seen():
    counts = torch.tensor([0, 9, 1, 1, 2, 0])  # by rank: 1, 4, 2, 3, then what never occurs
    assert frequency_buckets(counts, 2)[[1, 4, 2, 3]].tolist() == [0, 0, 1, 1]
    assert frequency_buckets(counts, 3)[[1, 4, 2, 3]].tolist() == [0, 1, 2, 3]  # one is left over
    assert frequency_buckets(counts, 1)[[1, 4, 2, 3]].tolist() == [0] * 4
    assert frequency_buckets(counts, 8)[[1, 4, 2, 3]].tolist() == [0, 1, 2, 3]  # fewer tokens than buckets


def test_the_schedule_is_the_one_of_the_authors_code(tiny_model):
    """Worked out by hand; with as many buckets as layers the rest is clamped, with fewer it goes one step on."""
    model = tiny_model("bert")
    rows = [Encoding([CLS, 10, 10, 10, 11, 12, 13, 14, SEP]), Encoding([CLS, 10, 11, 12, SEP])]
    source = TokenSource(model, rows, torch.tensor([0, 1]))
    tokens = [10, 11, 12, 13, 14, 40, CLS, SEP]  # from frequent to unseen, and the special ones
    schedules = {p: HashEE(*p).schedule(model, source) for p in ((None, None), (None, 2), (3, None), (3, 2), (1, 1))}
    assert {p: schedule[tokens].tolist() for p, schedule in schedules.items()} == {
        (None, None): [1, 2, 3, 4, 4, 4, 4, 4],
        (None, 2): [1, 1, 3, 3, 4, 4, 4, 4],  # two each at layers 1 and 3; the fifth would be at 5, past the last
        (3, None): [1, 2, 3, 3, 3, 3, 3, 3],
        (3, 2): [1, 1, 2, 2, 3, 3, 3, 3],
        (1, 1): [1] * 8,
    }


@pytest.mark.parametrize(
    ("parameters", "fault"),
    [
        ({"max_layer": 5}, r"max_layer must lie in 1\.\.4"),
        ({"max_layer": 0}, "max_layer"),
        ({"max_layer": 2, "buckets": 3}, r"1\.\.2"),
        ({"buckets": 0}, "buckets"),
    ],
)
def test_parameters_that_do_not_fit_the_model_are_refused(tiny_model, parameters, fault):
    with pytest.raises(UserError, match=fault):
        HashEE(**parameters).fit(tiny_model("bert"), make_task(), Recipe(epochs=1))
