"""new-method: one file that works, under any spelling of a name, and never over another file; and methods of files."""

import pytest

from benchmarks.commands.own_methods import find_methods, words_of, write_method
from benchmarks.testing.check_method import check_method
from consistentee.errors import UserError
from consistentee.methods.method import get_method


@pytest.mark.parametrize("text", ["early-gate", "EarlyGate", "early gate", "early_gate", "Early-Gate", "earlyGate"])
def test_every_spelling_of_a_name_has_the_same_words(text):
    assert words_of(text) == ["early", "gate"]


def test_abbreviations_stay_words():
    assert words_of("HTTPGate2") == ["http", "gate2"]


@pytest.mark.parametrize("text", ["", "-", "3d", "a/b", "class", "gâte", "a.b", "../up"])
def test_what_python_cannot_use_is_no_name(text):
    with pytest.raises(UserError, match="cannot name a method"):
        words_of(text)


def test_the_file_is_short_and_passes_the_contract(tmp_path):
    written = write_method("my gate", tmp_path)
    path = tmp_path / "my_gate.py"
    assert written == f"{path}:MyGate"
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 60
    assert "NewMethod" not in source
    assert "new-method" not in source
    method = get_method(written, hidden=8)
    assert method.name == "my-gate"
    report = check_method(written, method, ["mpnet"])
    assert report.passed, report.fault_lines()


def test_it_never_overwrites_and_names_places_that_cannot_be_written(tmp_path):
    (tmp_path / "gate.py").write_text("mine")
    with pytest.raises(UserError, match=r"gate\.py exists already"):
        write_method("gate", tmp_path)
    assert (tmp_path / "gate.py").read_text() == "mine"
    with pytest.raises(UserError, match=r"must be a \.py file, or a folder that exists"):
        write_method("gate", tmp_path / "gate.txt")
    with pytest.raises(UserError, match=r"nowhere/gate\.py cannot be written: No such file"):
        write_method("gate", tmp_path / "nowhere" / "gate.py")


# ---------------------------------------------------------------------------------------------- files and folders


def test_names_cost_nothing_and_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "consistentee").mkdir()  # a folder may have a method's name: only a slash makes it one
    assert find_methods(["consistentee", "full", "mine.py:Mine"]) == ["consistentee", "full", "mine.py:Mine"]


def test_a_folder_gives_all_its_methods_and_no_imported_or_unfinished_one(tmp_path):
    write_method("gate", tmp_path)
    (tmp_path / "more.py").write_text(
        "from consistentee import Method\nfrom baselines.deebert import DeeBERT\n\n"
        "class Unfinished(Method):\n    name = paper = 'x'\n\n"
        "class Second(DeeBERT):\n    name = 'second'\n\nclass _Base(DeeBERT):\n    pass\n"
    )
    assert find_methods([f"{tmp_path}/"]) == [f"{tmp_path}/gate.py:Gate", f"{tmp_path}/more.py:Second"]


def test_files_of_one_name_are_modules_of_their_own_and_not_in_one_table(tmp_path):
    for folder, paper in (("a", "first"), ("b", "second")):
        (tmp_path / folder).mkdir()
        name = write_method("gate", tmp_path / folder)
        path = tmp_path / folder / "gate.py"
        path.write_text(path.read_text().replace("unpublished", paper))
        assert get_method(name).paper == paper
    assert type(get_method(f"{tmp_path}/a/gate.py:Gate")).__module__ != type(get_method(name)).__module__
    with pytest.raises(UserError, match="are both called 'gate'; change one `name`"):
        find_methods([f"{tmp_path}/a/", f"{tmp_path}/b/gate.py"])


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nothing/", "no such folder of methods: nothing/"),
        ("empty/", "empty/ defines no subclass"),
        ("empty/shared.py", "defines no subclass"),
        ("nowhere.py", r"no such method file: nowhere\.py"),
    ],
)
def test_places_without_methods_are_named(tmp_path, monkeypatch, place, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "shared.py").write_text("from consistentee import Method\n")
    with pytest.raises(UserError, match=message):
        find_methods([place])
