"""Loaded tasks and their splits, the rule by which prompts are cut, and metrics of labels and of texts."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from benchmarks.testing.tiny import make_task, make_text_task
from consistentee.data.metrics import TEXT_METRICS, rouge, rouge_to_full, score, token_match
from consistentee.data.tasks import Prompt, PromptSplit, Split, TaskData, cut_prompt, fit_prompt
from consistentee.errors import UserError


@given(st.integers(1, 30), st.integers(0, 5))
def test_caps_draw_the_same_rows_in_order(cap, seed):
    split = Split("train", [str(i) for i in range(20)], list(range(20)))
    capped = split.capped(cap, seed)
    assert len(capped) == min(cap, 20)
    assert list(capped.labels) == sorted(capped.labels)
    assert capped.texts == split.capped(cap, seed).texts


def test_labels_outside_the_classes_are_named():
    task = make_task()
    with pytest.raises(UserError, match="row 1 of test has label 7, which is not one of 3 classes"):
        replace(task, test=Split("test", ["w1"], [7]))
    with pytest.raises(UserError, match="not a number"):
        TaskData("r", 1, *[Split("train", ["a"], [float("nan")])] * 3, label_names=(), metrics=("pearson",))


def test_fingerprint_sees_every_text_and_label():
    task = make_task()
    assert task.fingerprint() == make_task().fingerprint()
    texts, labels = list(task.train.texts), list(task.train.labels)
    changed_text = replace(task, train=Split("train", ["other", *texts[1:]], labels))
    changed_label = replace(task, train=Split("train", texts, [(labels[0] + 1) % 3, *labels[1:]]))
    tasks = (task, changed_text, changed_label, replace(task, version=2))
    assert len({each.fingerprint() for each in tasks}) == 4


@given(st.integers(1, 4).flatmap(lambda most: st.lists(st.tuples(*[st.integers(0, most)] * 2), min_size=1)))
def test_metrics_are_those_of_scikit_learn(pairs):
    labels, answers = zip(*pairs, strict=True)
    assert score("accuracy", labels, answers) == accuracy_score(labels, answers)
    assert score("matthews", labels, answers) == pytest.approx(matthews_corrcoef(labels, answers), abs=1e-12)
    if max(labels + answers) < 2:
        assert score("f1", labels, answers) == pytest.approx(f1_score(labels, answers, zero_division=0))
    else:
        with pytest.raises(ValueError, match="classes 0 and 1"):
            score("f1", labels, answers)


def test_correlations_are_those_of_scipy():
    labels, answers = [1.0, 2.0, 2.0, 5.0, 3.0], [2.0, 1.0, 4.0, 4.0, 4.5]
    assert score("pearson", labels, answers) == pytest.approx(pearsonr(labels, answers)[0])
    assert score("spearman", labels, answers) == pytest.approx(spearmanr(labels, answers)[0])
    assert score("pearson", [1.0, 2.0, 3.0], [5.0, 5.0, 5.0]) == 0


def test_rouge_by_hand():
    """Words are stemmed and lower-cased: a, cat, run and a, cat, fast share two words, which are a pair."""
    found = rouge(["a cat runs", "a"], ["A cats, fast", "!"])
    assert tuple(found) == TEXT_METRICS
    assert [found[metric].tolist() for metric in TEXT_METRICS] == [[2 / 3, 0], [1 / 2, 0], [2 / 3, 0]]


def test_rouge_to_the_full_model_by_hand():
    """F is 0.75 for "a b c d" and "a c d e": their common subsequence has 3 words, and each text has 4."""
    texts, full = ["a b c d", "the same", "?!", "nothing shared"], ["a c d e", "the same", "?!", "other words"]
    assert rouge_to_full(full, texts) == pytest.approx([0.75, 1.0, 1.0, 0.0])


def test_token_match_by_hand():
    full = [[1, 2, 3, 4], [1, 2], [1, 2, 3], [], [], [5]]
    ours = [[1, 9, 3, 4], [1, 2, 3, 4], [1], [], [1, 2], [5]]
    assert token_match(full, ours).tolist() == pytest.approx([3 / 4, 2 / 4, 1 / 3, 1, 0, 1])
    tensors = token_match([torch.tensor(row) for row in full], [torch.tensor(row) for row in ours])
    assert tensors.tolist() == token_match(full, ours).tolist()


def test_unknown_metrics_and_different_numbers_of_texts_are_refused():
    with pytest.raises(UserError, match="did you mean 'accuracy'"):
        score("acuracy", [1], [1])
    with pytest.raises(UserError, match="unknown metric 'rougeN'; did you mean"):
        rouge(["a"], ["a"], ["rougeN"])
    for count in (lambda: rouge(["a", "b"], ["a"]), lambda: token_match([[1]], [])):
        with pytest.raises(ValueError, match="zip"):
            count()


def by_word(text):
    """Encode a text as a start token and the length of every word."""
    return [0, *(len(word) for word in text.split())]


def by_character(text):
    return [ord(character) for character in text]


def test_a_prompt_is_its_text_and_survives_copying():
    prompt = Prompt("Article: ", "one two", "\nSummary:")
    assert prompt == "Article: one two\nSummary:"
    for twin in (pickle.loads(pickle.dumps(prompt)), copy.deepcopy(prompt)):
        assert isinstance(twin, Prompt)
        assert (twin.before, twin.body, twin.after) == ("Article: ", "one two", "\nSummary:")


def test_the_body_is_cut_and_never_the_instruction():
    prompt = Prompt("Article:\n", "one two three four", "\nSay it shortly.")
    assert cut_prompt(by_word, prompt, 7) == "Article:\none two\nSay it shortly."
    assert cut_prompt(by_word, prompt, 7, "end") == "Article:\nthree four\nSay it shortly."
    assert fit_prompt(by_word, prompt, 6) == [0, 8, 3, 3, 2, 8]
    assert fit_prompt(by_word, prompt, 6, "end") == [0, 8, 4, 3, 2, 8]


@pytest.mark.parametrize("limit", [4, 1, 0])
def test_an_instruction_that_leaves_no_room_is_refused(limit):
    with pytest.raises(UserError, match=rf"may have {limit} tokens, but 'Sum up: \.\.\. !' leaves no room"):
        cut_prompt(by_word, Prompt("Sum up: ", "one two three", " !"), limit)


LETTERS = st.characters(min_codepoint=33, max_codepoint=300, exclude_characters="\x85\xa0")  # which are white space
WORDS = st.lists(st.text(LETTERS, min_size=1, max_size=40), min_size=1)


@given(words=WORDS, limit=st.integers(27, 200), keep=st.sampled_from(["start", "end"]))
def test_a_cut_prompt_fits_keeps_one_end_and_wastes_no_word(words, limit, keep):
    prompt = Prompt("<", " ".join(words), ">")
    cut = cut_prompt(by_character, prompt, limit, keep)
    assert len(cut) <= limit
    assert (cut[0], cut[-1]) == ("<", ">")
    body = cut[1:-1]
    assert prompt.body.startswith(body) if keep == "start" else prompt.body.endswith(body)
    if cut != prompt:
        assert len(cut) + 25 > limit  # another piece, and the space before it, would not have fitted


def test_a_split_says_which_prompts_were_cut():
    split = PromptSplit("test", [Prompt("a ", "b c d"), "b", Prompt("", "b c")], ["", "", ""])
    fitting, cut = split.cut(by_word, 3)
    assert list(fitting.prompts) == ["a b", "b", "b c"]
    assert cut == [True, False, False]
    assert split.cut(by_word, None) == (split, [False] * 3)


def test_faulty_tasks_are_refused():
    with pytest.raises(UserError, match="row 2 of the test split has an empty prompt"):
        PromptSplit("test", ["a", " \n"], ["c", "d"])
    with pytest.raises(UserError, match="'toy-text' names no metric"):
        replace(make_text_task(), metrics=())
    with pytest.raises(UserError, match="max_new_tokens of TextTask must be at least 1, got 0"):
        replace(make_text_task(), max_new_tokens=0)


def test_fingerprint_sees_prompts_where_they_may_be_cut_references_and_limits():
    task = make_text_task()
    assert task.fingerprint() == make_text_task().fingerprint()
    prompts, references = list(task.test.prompts), list(task.test.references)
    rows = [
        (["other", *prompts[1:]], references),
        ([Prompt("", prompts[0]), *prompts[1:]], references),
        (prompts, ["other", *references[1:]]),
    ]
    settings = {"version": 2, "max_prompt_tokens": 19, "max_new_tokens": 9, "keep": "end", "metrics": ("rouge1",)}
    changed = [replace(task, test=PromptSplit("test", *columns)) for columns in rows]
    changed += [replace(task, **{name: value}) for name, value in settings.items()]
    assert len({task.fingerprint(), *(other.fingerprint() for other in changed)}) == 9
