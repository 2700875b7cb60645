"""TextTask, PromptSplit, Prompt, and the rule by which prompts are cut."""

import copy
import pickle
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from benchmarks.testing.tiny import make_text_task
from consistentee.data.tasks import Prompt, PromptSplit, cut_prompt, fit_prompt
from consistentee.errors import UserError


def by_word(text):
    """A tokenizer: a start token, then one for every word."""
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
