"""Rows of files and of hub data sets: what is read, and the messages about faulty rows."""

import csv
import io
from functools import partial

import datasets
import pandas as pd
import pytest
from hypothesis import example, given, strategies as st
from task_files import LABELS, TEXTS, balanced, questions, table, write_task, write_text_task

from benchmarks import load_task
from benchmarks.tasks.check import check_task, report_tables
from benchmarks.tasks.loader import read_file, rows_of_dataset
from benchmarks.tasks.specs import Files, Hub, TextHub
from benchmarks.terminal import output_console
from consistentee.errors import UserError

QUOTED = {"quoting": "csv"}
LABELS_JSON = {"format": "jsonl", "train": "train.jsonl"}
JSON = {**TEXTS, "format": "json", "train": "train.json"}
NO_JSON = f"{questions(1)}%s\n{questions(1)}"


@pytest.mark.parametrize(
    ("files", "content", "message"),
    [
        ({}, table([("a", "x"), ("b",)]), "3: 1 cell, but the first line has 2"),
        ({}, table([("a", "x"), ("b", " ")]), "3: missing label in column 'label'"),
        ({}, table([("  ", "x")]), "2: empty text in column 'text'"),
        ({}, table([("a", "x")], header="sentence\tlabel"), "1: no column 'text'; the header has sentence, label"),
        ({}, table([("a", "x")], header="text\ttext\tlabel"), "1: more than one column 'text'"),
        ({}, "text\tlabel\n", " holds no rows"),
        ({}, "text\tlabel\na\tx\ncaf\udce9\ty\n", "3: not UTF-8"),
        # Quoted cells: a row is named by its first line.
        (QUOTED, 'text\tlabel\n"two\nlines"\tx\nb\n', "4: 1 cell, but the first line has 2"),
        (QUOTED, 'text\tlabel\na\tx\n"never closed\ty\n', "3: malformed row"),
        # JSON lines.
        (TEXTS, NO_JSON % "{", "2: not JSON"),
        (TEXTS, NO_JSON % "[1]", "2: a row must be a JSON object"),
        (TEXTS, NO_JSON % '{"a": "x"}', "2: no column 'q'; it has a"),
        (TEXTS, NO_JSON % '{"q": ["x"], "a": "y"}', "2: column 'q' must hold text, got"),
        (LABELS_JSON, '{"text": null, "label": "x"}', "1: empty text in column 'text'"),
        (LABELS_JSON, '{"text": "a", "label": null}', "1: missing label"),
        (LABELS_JSON, r'{"text": "b\ud800d", "label": "b"}', "1: .* half of a surrogate .*, at character 2"),
        (LABELS_JSON, '{"text": ' + "[" * 20_000, "1: not JSON"),
        # One JSON list: a row is named by its number.
        (JSON, '{"q": "x"}', " not a JSON list"),
        (JSON, '[\n{"q": "x", "a": "y"},\n7]', ", row 2: a row must be a JSON object"),
        (JSON, '[\n{"q": "x", "a": "y"}\n{"q": "x", "a": "y"}]', " not JSON .*line 3"),
    ],
)
def test_faulty_rows_are_named_by_file_and_line(tmp_path, files, content, message):
    name = files.get("train", "train.tsv")
    path = (write_text_task if "fields" in files else write_task)(tmp_path, {name: content}, files)
    with pytest.raises(UserError, match=rf"{name}:?{message}"):
        load_task(path)


TSV_CELL = st.text(st.characters(blacklist_characters="\t\n\r", blacklist_categories=["Cs"]), min_size=1)
QUOTED_CELL = st.text(st.characters(blacklist_categories=["Cs", "Cc"]) | st.sampled_from('\t\n",'), min_size=1)


@given(texts=st.lists(TSV_CELL.filter(str.strip), min_size=1, max_size=8), line_end=st.sampled_from(["\n", "\r\n"]))
@example(texts=['" unbalanced', "a\u2028b\x85c\x0bd"], line_end="\n")
def test_plain_tsv_round_trip(tmp_path_factory, texts, line_end):
    path = tmp_path_factory.mktemp("rows") / "train.tsv"
    path.write_bytes(line_end.join(["\ufefftext\tlabel", *(f"{text}\tx" for text in texts), ""]).encode())
    rows = read_file(path, Files(**LABELS))
    assert [row.text for row in rows] == texts
    assert [row.place for row in rows] == [f"{path}:{line}" for line in range(2, len(texts) + 2)]


@given(texts=st.lists(QUOTED_CELL.filter(str.strip), min_size=1, max_size=8), kind=st.sampled_from(["tsv", "csv"]))
def test_quoted_round_trip(tmp_path_factory, texts, kind):
    path = tmp_path_factory.mktemp("rows") / f"train.{kind}"
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter="\t" if kind == "tsv" else ",")
    writer.writerows([("text", "label"), *((text, "x") for text in texts)])
    path.write_bytes(buffer.getvalue().encode())
    rows = read_file(path, Files(**{**LABELS, "format": kind, "quoting": "csv"}))
    assert [row.text for row in rows] == texts


def test_pairs_without_header_by_column_number(tmp_path):
    rows = [(str(i), f"c{i % 2}", f"first {i}", f"second {i}") for i in range(20)]
    content = "\n".join("\t".join(row) for row in rows)
    task = load_task(write_task(tmp_path, {"train.tsv": content}, {"header": False, "text": [3, 4], "label": 2}))
    assert task.label_names == ("c0", "c1")
    assert all(first.startswith("first") and second.startswith("second") for first, second in task.train.texts)


def test_long_cells_and_control_characters_do_no_harm(tmp_path, capsys):
    names = "x" * 5_000, "\x1b[31mred\x07"
    rows = "text,label\n" + "".join(f"{'word ' * 30_000}{row},{names[row % 2]}\n" for row in range(40))
    path = write_task(tmp_path, {"train.csv": rows}, {"format": "csv", "train": "train.csv"})
    task = load_task(path)
    assert len(task.train.texts[0]) > 131_072
    assert set(task.label_names) == set(names)
    output_console().print(report_tables(check_task(str(path))))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) < 1_000
    assert "\x1b" not in shown
    assert "\\x1b[31mred\\x07" in shown


HUB = Hub(path="someone/pairs", config="easy", train="train", test="validation", text=["a", "b"], label="label")
TEXT_HUB = TextHub(path="someone/news", test="validation", fields={"article": "a"}, response="b")


def with_classes(**columns):
    """Return a data set whose labels are two named classes."""
    names = datasets.ClassLabel(names=["no", "yes"])
    return datasets.Dataset.from_dict(columns).cast_column("label", names)


def hub_dataset(labels=(1, 0, 1, 0), b=("b0", "b1", "b2", "b3")):
    part = with_classes(a=["a0", "a1", "a2", "a3"], b=list(b), label=list(labels))
    return datasets.DatasetDict({"train": part, "validation": part, "secret": part})


def test_hub_dataset_becomes_rows_with_class_names():
    rows = rows_of_dataset(hub_dataset(), HUB, "hub")
    assert list(rows) == ["train", "test"]
    assert [(row.place, row.text, row.label) for row in rows["test"]][:2] == [
        ("hub validation:1", ("a0", "b0"), "yes"),
        ("hub validation:2", ("a1", "b1"), "no"),
    ]
    rows = rows_of_dataset(hub_dataset(b=["s0", None, "s2", ""]), TEXT_HUB, "hub")
    assert [(row.fields["article"], row.response) for row in rows["test"]][:2] == [("a0", "s0"), ("a1", "")]


@pytest.mark.parametrize(
    ("dataset", "hub", "message"),
    [
        ({}, HUB.model_copy(update={"test": "other"}), "hub has no split 'other'; it has train, validation, secret"),
        ({}, HUB.model_copy(update={"text": ["c"]}), "hub train has no column 'c'"),
        ({"labels": (1, 0, -1, 0)}, HUB, "hub train:3: missing label"),
    ],
)
def test_hub_dataset_with_missing_parts(dataset, hub, message):
    with pytest.raises(UserError, match=message):
        rows_of_dataset(hub_dataset(**dataset), hub, "hub")


def test_hub_dataset_is_kept_for_later_calls(monkeypatch, tmp_path):
    downloads = []
    monkeypatch.setenv("CONSISTENTEE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)
    monkeypatch.setattr("datasets.load_dataset", lambda *names: downloads.append(names) or hub_dataset())
    hub = {**HUB.model_dump(exclude_none=True), "validation": "secret"}
    path = write_task(tmp_path, {"train.tsv": balanced(4)}, hub=hub)
    (tmp_path / "train.tsv").unlink()
    first = load_task(path)
    assert load_task(path).fingerprint() == first.fingerprint()
    assert downloads == [("someone/pairs", "easy")]
    for file in (tmp_path / "cache" / "datasets" / "someone--pairs--easy").rglob("*.json"):
        file.write_text("{")
    with pytest.raises(UserError, match="someone--pairs--easy is damaged"):
        load_task(path)


def saved_dataset(folder, splits=("train", "validation", "test")):
    """Write a data set of 20 rows a split as ``save_to_disk`` does."""
    parts = {
        split: with_classes(text=[f"{split} {i}" for i in range(20)], label=[i % 2 for i in range(20)])
        for split in splits
    }
    datasets.DatasetDict(parts).save_to_disk(folder)
    return parts


def test_a_saved_data_set_is_a_task_with_its_own_splits_and_class_names(tmp_path):
    saved_dataset(tmp_path / "reviews")
    task = load_task(tmp_path / "reviews")
    assert (task.name, task.label_names, len(task.test)) == ("reviews", ("no", "yes"), 20)
    assert (task.test.texts[1], task.test.labels[1]) == ("test 1", 1)
    files = {"format": "datasets", "folder": "reviews", "test": "validation"}
    path = write_task(tmp_path, {}, {"train": "train", **files})
    assert load_task(path).test.texts[0] == "validation 0"
    with pytest.raises(UserError, match=r"reviews has no split 'tran'; it has train, validation, test"):
        load_task(write_task(tmp_path, {}, {**files, "train": "tran"}))
    with pytest.raises(UserError, match=r"no folder .*elsewhere"):
        load_task(write_task(tmp_path, {}, {"train": "train", **files, "folder": "elsewhere"}))


def test_a_copy_of_a_data_set_of_the_hub_is_a_task(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    parts = saved_dataset(tmp_path / "saved", splits=("train", "test"))
    (tmp_path / "copy" / "data").mkdir(parents=True)
    for split, part in parts.items():
        part.to_parquet(tmp_path / "copy" / "data" / f"{split}-00000-of-00001.parquet")
    task = load_task(tmp_path / "copy")
    assert (task.label_names, len(task.train) + len(task.validation), len(task.test)) == (("no", "yes"), 20, 20)


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl", "rows.parquet"])
def test_a_table_is_a_task_whose_columns_are_found(tmp_path, name):
    rows = pd.DataFrame({"review": [f"text {i}, long" for i in range(40)], "label": ["bad", "good"] * 20})
    path = tmp_path / name
    writers = {
        ".csv": partial(rows.to_csv, index=False),
        ".tsv": partial(rows.to_csv, index=False, sep="\t"),
        ".parquet": rows.to_parquet,
        ".jsonl": partial(rows.to_json, orient="records", lines=True),
    }
    writers[path.suffix](path)
    task = load_task(path)
    assert (task.name, task.label_names) == ("rows", ("bad", "good"))
    assert sorted([*task.train.texts, *task.validation.texts, *task.test.texts]) == sorted(rows["review"])
    rows["label"] = [number % 11 for number in range(40)]
    writers[path.suffix](path)
    assert load_task(path).label_names == tuple(map(str, range(11)))  # numerically, not "1", "10", "2"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b,c\n1,2,3\n", "rows.csv: which of a, b, c is the label\\? say it in the YAML file of a task"),
        ("a,b,label\n1,2,3\n", "rows.csv: which of a, b, label is the text\\? say it in the YAML file of a task"),
        ("text,label\na,x\nb\n", "rows.csv:3: 1 cell, but the first line has 2"),
    ],
)
def test_tables_that_cannot_be_a_task_are_refused_by_name(tmp_path, content, message):
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        load_task(tmp_path / "rows.csv")


def test_parquet_without_its_columns_or_damaged_is_named(tmp_path):
    pd.DataFrame({"text": ["a", ""], "label": ["x", "y"]}).to_parquet(tmp_path / "train.parquet")
    files = {"format": "parquet", "train": "train.parquet"}
    with pytest.raises(UserError, match=r"train.parquet:2: empty text in column 'text'"):
        load_task(write_task(tmp_path, {}, files))
    with pytest.raises(UserError, match=r"train.parquet has no column 'body'"):
        load_task(write_task(tmp_path, {}, {**files, "text": "body"}))
    (tmp_path / "train.parquet").write_text("no")
    with pytest.raises(UserError, match=r"train.parquet cannot be read as Parquet"):
        load_task(write_task(tmp_path, {}, files))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty cannot be read as a data set"):
        load_task(tmp_path / "empty")
