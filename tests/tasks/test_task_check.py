"""check-task: what a task looks like, and what would spoil its scores."""

from dataclasses import replace

from small_suite import write_task

from benchmarks.tasks import check
from benchmarks.tasks.check import check_task
from benchmarks.testing.tiny import make_task
from consistentee.data.tasks import Split


def task_of(monkeypatch, train, validation, test, **changes):
    """Let the loader return a task with these (text, label) rows."""
    rows = {"train": train, "validation": validation, "test": test}
    splits = {n: Split(n, [text for text, _ in part], [label for _, label in part]) for n, part in rows.items()}
    task = replace(make_task(), **{"label_names": ("no", "yes"), **splits, **changes})
    monkeypatch.setattr(check, "load_task", lambda name, data_dir: task)
    return check_task("mcid")


def many(prefix, count=150):
    return [(f"{prefix} {i}", i % 2) for i in range(count)]


def test_repeats_and_contradictions_are_counted(monkeypatch):
    train = [("one", 0), ("Ｏne", 1), ("two", 0), ("two ", 0), ("three", 1), ("four", 0)]
    test = [("five", 0), ("one", 0), ("six", 1), ("seven", 1)]
    report = task_of(monkeypatch, train, [("five", 0), ("TWO", 1)], [*test, *many("t")])
    assert report.errors == [], "a little leakage is a warning"
    found = [finding for finding in report.warnings if "text" in finding]
    assert found == [
        "1 rows of train repeat an earlier text with another answer",
        "1 rows of validation (50.0%) have a text of train",
        "1 rows of test (0.6%) have a text of train",
        "1 rows of test (0.6%) have a text of validation",
    ]

    sound = task_of(monkeypatch, many("a"), many("b"), many("c"))
    assert (sound.errors, sound.warnings, set(sound.rows["length"])) == ([], [], {2})
    much = task_of(monkeypatch, many("a"), many("b"), [*many("c", 120), *many("a", 30)])
    assert "30 rows of test (20.0%) have a text of train: the score would measure memory" in much.errors[0]


def test_labels_that_are_missing_are_named(monkeypatch):
    names = tuple(f"class {i}" for i in range(9))
    report = task_of(monkeypatch, many("a"), many("b"), [(f"c {i}", 1) for i in range(150)], label_names=names)
    assert any("train has no row of class 2, class 3, class 4, class 5, class 6, ..." in e for e in report.errors)
    assert any("every row of test has the same label" in e for e in report.errors)
    assert any("validation has no row of class 2" in w and "never scored there" in w for w in report.warnings)


def test_small_and_one_sided_splits_and_long_texts_are_warned_of(monkeypatch):
    one_sided = [(f"c {i}", int(i < 5)) for i in range(200)]
    report = task_of(monkeypatch, [("word " * 200 + str(i), i % 2) for i in range(150)], many("b", 40), one_sided)
    assert report.errors == []
    assert "98% of test are no: accuracy hardly differs between methods" in report.warnings
    assert "validation has 40 rows: one row is 2.5 points, and knobs are chosen on it" in report.warnings
    assert any(w.startswith("100% of the rows of train have more than 128 words") for w in report.warnings)


def test_lengths_in_tokens_of_a_backbone(tmp_path, tiny_backbone):
    path = write_task(tmp_path, "toy")
    words, tokens = check_task(str(path)), check_task(str(path), backbone=str(tiny_backbone("bert")))
    assert (tokens.rows["length"] == words.rows["length"] + 2).all()  # [CLS] and [SEP]
