"""ROUGE, and the share of tokens that equal the full model's."""

import pytest
import torch

from consistentee.data.metrics import TEXT_METRICS, rouge, token_match
from consistentee.errors import UserError


def test_rouge_by_hand():
    """Words are stemmed and lower-cased: a, cat, run and a, cat, fast share two words, which are a pair."""
    found = rouge(["a cat runs", "a"], ["A cats, fast", "!"])
    assert tuple(found) == TEXT_METRICS
    assert [found[metric].tolist() for metric in TEXT_METRICS] == [[2 / 3, 0], [1 / 2, 0], [2 / 3, 0]]


def test_faulty_calls_are_refused():
    with pytest.raises(UserError, match="unknown metric 'rougeN'; did you mean"):
        rouge(["a"], ["a"], ["rougeN"])
    with pytest.raises(ValueError, match="zip"):
        rouge(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="zip"):
        token_match([[1]], [])


def test_token_match_by_hand():
    full = [[1, 2, 3, 4], [1, 2], [1, 2, 3], [], [], [5]]
    ours = [[1, 9, 3, 4], [1, 2, 3, 4], [1], [], [1, 2], [5]]
    assert token_match(full, ours).tolist() == pytest.approx([3 / 4, 2 / 4, 1 / 3, 1, 0, 1])
    tensors = token_match([torch.tensor(row) for row in full], [torch.tensor(row) for row in ours])
    assert tensors.tolist() == token_match(full, ours).tolist()
