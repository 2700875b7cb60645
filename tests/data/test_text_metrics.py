"""ROUGE against rouge-score; the share of tokens that equal the full model's."""

import pytest
import torch
from hypothesis import given, strategies as st
from rouge_score.rouge_scorer import RougeScorer

from consistentee.data.metrics import TEXT_METRICS, rouge, token_match
from consistentee.errors import UserError

WORDS = st.lists(st.sampled_from(["running", "runs", "cat", "cats", "a", "Mat!", "\n"]), max_size=12).map(" ".join)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_rouge_is_that_of_the_package(pairs):
    references, texts = zip(*pairs, strict=True)
    ours = rouge(references, texts)
    assert tuple(ours) == TEXT_METRICS
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for row, (reference, text) in enumerate(pairs):
        for metric, score in scorer.score(reference, text).items():
            assert ours[metric][row] == score.fmeasure


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
