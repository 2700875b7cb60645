"""Methods of one's own: new files, and files and folders as names."""

import pytest

from benchmarks.commands.own_methods import find_methods, words_of, write_method
from consistentee import UserError, get_method


def test_every_spelling_of_a_name_has_the_same_words_and_other_names_are_refused():
    for text in ("early-gate", "EarlyGate", "early gate", "early_gate"):
        assert words_of(text) == ["early", "gate"]
    for text in ("", "3d", "class", "gâte", "../up"):
        with pytest.raises(UserError, match="cannot name a method"):
            words_of(text)


def test_new_method_never_overwrites_a_file(tmp_path):
    (tmp_path / "gate.py").write_text("mine")
    with pytest.raises(UserError, match=r"gate\.py cannot be written: File exists"):
        write_method("gate", tmp_path)
    assert (tmp_path / "gate.py").read_text() == "mine"
    with pytest.raises(UserError, match=r"must be a \.py file, or a folder that exists"):
        write_method("gate", tmp_path / "gate.txt")
    with pytest.raises(UserError, match=r"nowhere/gate\.py cannot be written: No such file"):
        write_method("gate", tmp_path / "nowhere" / "gate.py")


def test_names_are_kept_without_imports_and_a_folder_gives_its_own_finished_methods(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deebert").mkdir()  # a folder may have a method's name: only a slash makes it one
    assert find_methods(["deebert", "full", "mine.py:Mine"]) == ["deebert", "full", "mine.py:Mine"]
    write_method("gate", tmp_path)
    (tmp_path / "more.py").write_text(
        "from consistentee import Method\nfrom baselines.deebert import DeeBERT\n\n"
        "class Unfinished(Method):\n    name = paper = 'x'\n\n"
        "class Second(DeeBERT):\n    name = 'second'\n\nclass _Base(DeeBERT):\n    pass\n"
    )
    assert find_methods([f"{tmp_path}/"]) == [f"{tmp_path}/gate.py:Gate", f"{tmp_path}/more.py:Second"]


def test_files_of_the_same_name_are_separate_modules(tmp_path):
    for folder, paper in (("a", "first"), ("b", "second")):
        (tmp_path / folder).mkdir()
        name = write_method("gate", tmp_path / folder)
        path = tmp_path / folder / "gate.py"
        path.write_text(path.read_text().replace("unpublished", paper))
        assert get_method(name).paper == paper
    assert type(get_method(f"{tmp_path}/a/gate.py:Gate")).__module__ != type(get_method(name)).__module__
    with pytest.raises(UserError, match="are both called 'gate'; change one `name`"):
        find_methods([f"{tmp_path}/a/", f"{tmp_path}/b/gate.py"])


@pytest.mark.parametrize("place", ["empty/", "empty/shared.py"])
def test_places_without_methods_are_named(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "shared.py").write_text("from consistentee import Method\n")
    with pytest.raises(UserError, match=f"{place} defines no subclass"):
        find_methods([place])
