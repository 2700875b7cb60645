"""Tasks: their YAMLs, the readers' messages about faulty rows, labels, cut splits, sources."""

import csv
import io
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given, strategies as st

from benchmarks import list_tasks, load_task
from benchmarks.tasks import loader
from benchmarks.tasks.loader import rows_of_dataset, task_kind, task_shipment
from benchmarks.tasks.readers import read_file
from benchmarks.tasks.specs import Cut, Files, Hub, MetricName
from benchmarks.tasks.splits import shares
from consistentee.backbones.wheels import is_fetched
from consistentee.data.metrics import METRICS
from consistentee.errors import UserError

PLAIN = {"format": "tsv", "train": "train.tsv", "text": "text", "label": "label"}


@pytest.fixture(autouse=True)
def no_data_directory(monkeypatch, tmp_path, request):
    if "real" not in request.keywords:
        monkeypatch.delenv("CONSISTENTEE_DATA", raising=False)
        monkeypatch.setenv("CONSISTENTEE_CACHE", str(tmp_path / "cache"))


def write_task(folder: Path, contents: dict[str, str], files: dict | None = None, **keys) -> Path:
    """Write a task's YAML and its files; ``contents`` by file name."""
    for name, content in contents.items():
        (folder / name).write_bytes(content.encode())
    spec = {"schema_version": 1, "name": "mine", "version": 1, "description": "mine", "metrics": ["accuracy"]}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**spec, "files": {**PLAIN, **(files or {})}, **keys}))
    return path


def table(rows, header="text\tlabel"):
    return "\n".join([header, *("\t".join(row) for row in rows)]) + "\n"


def balanced(rows: int, classes: int = 2) -> str:
    return table([(f"text {i}", f"c{i % classes}") for i in range(rows)])


# ---------------------------------------------------------------------------------------------- the YAML files


def test_every_task_yaml_is_valid_and_named_after_its_file():
    tasks = list_tasks()
    glue = {"cola", "mnli", "mnli-mm", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli"}
    texts = {"alpaca", "cnn-dm", "dolly", "nyt-continuation", "xsum"}
    assert tasks.keys() == glue | texts | {"mcid", "movie-snippets", "stackoverflow"}
    for name, description in tasks.items():
        spec, _ = loader.spec_of(name)
        assert spec.name == name
        assert (task_kind(name) == "text") == (name in texts)
        assert "\n" not in description
    assert set(get_args(MetricName)) == set(METRICS)


def test_listing_tasks_imports_nothing_heavy():
    code = "import sys, benchmarks; benchmarks.list_tasks(); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "pandas", "datasets", "sklearn", "matplotlib"} & set(modules)


def test_unknown_task_gets_the_nearest_known_ones():
    with pytest.raises(UserError, match="unknown task 'sst'; did you mean 'sst2'"):
        load_task("sst")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"metric": "accuracy"}, r"mine\.yaml is not a task: metric: extra inputs"),
        ({"metrics": ["bleu"]}, "metrics.0: input should be 'accuracy'"),
        ({"schema_version": 2}, "schema_version: input should be 1"),
        ({"files": None}, "give files or hub"),
        ({"metrics": ["pearson"]}, "pearson and spearman go with target number"),
        ({"metrics": ["f1"]}, "f1 needs two labels"),
        ({"target": "sign"}, "target sign needs two labels"),
        ({"labels": ["a", "b"], "label_values": {"0": "c"}}, "label_values names classes that labels lacks: c"),
        ({"files": {**PLAIN, "text": 1}}, "columns must be names"),
        ({"files": {**PLAIN, "text": ["a", "b", "c"]}}, "a list of two"),
        ({"name": "../mine"}, "name: string should match"),
        ({"validation": {"fraction": 2, "at_most": 1, "seed": 0}}, "validation.fraction"),
    ],
)
def test_faulty_yaml_names_file_and_key(tmp_path, keys, message):
    path = write_task(tmp_path, {})
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **keys}))
    with pytest.raises(UserError, match=message):
        load_task(path)


def test_a_file_that_is_absent_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.yaml cannot be read"):
        load_task(tmp_path / "absent.yaml")


# -------------------------------------------------------------------------------------------------- faulty rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table([("a", "x"), ("b",)]), r"train\.tsv:3: 1 cell, but the first line has 2"),
        (table([("a", "x"), ("b", "y", "z")]), r"train\.tsv:3: 3 cells, but the first line has 2"),
        (table([("a", "x"), ("b", " ")]), r"train\.tsv:3: missing label in column 'label'"),
        (table([("  ", "x")]), r"train\.tsv:2: empty text in column 'text'"),
        (table([("a", "x"), ("b", "x")]), "train has a single label, 'x'"),
        (
            table([("a", "x")], header="sentence\tlabel"),
            r"train\.tsv:1: no column 'text'; the header has sentence, label",
        ),
        (table([("a", "x")], header="text\ttext\tlabel"), r"train\.tsv:1: more than one column 'text'"),
        ("text\tlabel\n", r"train\.tsv holds no rows"),
        ("", r"train\.tsv holds no rows"),
        ("\n", r"train\.tsv holds no rows"),
    ],
)
def test_faulty_row_is_named_by_file_and_line(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        load_task(write_task(tmp_path, {"train.tsv": content}))


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path):
    path = write_task(tmp_path, {})
    (tmp_path / "train.tsv").write_bytes(b"text\tlabel\na\tx\ncaf\xe9\ty\n")
    with pytest.raises(UserError, match=r"train\.tsv:3: not UTF-8"):
        load_task(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('"two\nlines"\tx\nb\n', r"train\.tsv:4: 1 cell, but the first line has 2"),
        ('a\tx\n"never closed\ty\n', r"train\.tsv:3: malformed row"),
        ("a\tx\n\tb\n", r"train\.tsv:3: empty text"),
    ],
)
def test_faulty_row_of_quoted_cells_is_named_by_its_first_line(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        load_task(write_task(tmp_path, {"train.tsv": "text\tlabel\n" + rows}, {"quoting": "csv"}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "2: not JSON"),
        ("[1]", "2: a row must be a JSON object"),
        ('{"label": "x"}', "2: no text in column 'text'"),
        ('{"text": 3, "label": "x"}', "2: column 'text' must hold text, got 3"),
        ('{"text": "a"}', "2: missing label"),
        ('{"text": "a", "label": null}', "2: missing label"),
        ('{"text": "a", "label": ["x"]}', "2: the label in column 'label' must be a text or a number"),
        ("", "2: not JSON"),
    ],
)
def test_faulty_json_line_is_named(tmp_path, line, message):
    content = f'{{"text": "a", "label": "x"}}\n{line}\n{{"text": "b", "label": "y"}}\n'
    path = write_task(tmp_path, {"train.jsonl": content}, {"format": "jsonl", "train": "train.jsonl"})
    with pytest.raises(UserError, match=r"train\.jsonl:" + message):
        load_task(path)


@pytest.mark.parametrize("label", ["high", "nan", "inf"])
def test_target_that_is_no_number_is_named(tmp_path, label):
    content = table([("a", "1.5"), ("b", label)])
    path = write_task(tmp_path, {"train.tsv": content}, target="number", metrics=["pearson"])
    with pytest.raises(UserError, match=rf"train\.tsv:3: label '{label}' is not a (finite )?number"):
        load_task(path)


@pytest.mark.parametrize("labels", [None, ["c0", "c1", "c2"]])
def test_label_that_train_lacks_is_named(tmp_path, labels):
    files = {"test": "test.tsv", "validation": "validation.tsv"}
    contents = {"train.tsv": balanced(10), "validation.tsv": balanced(4), "test.tsv": balanced(3, classes=3)}
    keys = {"labels": labels} if labels else {}
    with pytest.raises(UserError, match=r"test\.tsv:4: label 'c2' (is not a label of train|occurs in no training row)"):
        load_task(write_task(tmp_path, contents, files, **keys))


def test_label_outside_the_yaml_is_named(tmp_path):
    path = write_task(tmp_path, {"train.tsv": balanced(10, classes=3)}, labels=["c0", "c1"])
    with pytest.raises(UserError, match=r"train\.tsv:4: label 'c2' is not one of the labels of task 'mine' \(c0, c1\)"):
        load_task(path)


# ------------------------------------------------------------------------------------------------ what is read

CELL = st.text(st.characters(blacklist_characters="\t\n\r", blacklist_categories=["Cs"]), min_size=1).filter(str.strip)


@given(texts=st.lists(CELL, min_size=1, max_size=8), line_end=st.sampled_from(["\n", "\r\n"]))
def test_plain_tsv_round_trip(tmp_path_factory, texts, line_end):
    path = tmp_path_factory.mktemp("rows") / "train.tsv"
    path.write_bytes(line_end.join(["text\tlabel", *(f"{text}\tx" for text in texts), ""]).encode())
    rows = read_file(path, Files(**PLAIN))
    assert [row.text for row in rows] == texts
    assert [row.place for row in rows] == [f"{path}:{line}" for line in range(2, len(texts) + 2)]


QUOTED_CELL = st.text(st.characters(blacklist_categories=["Cs", "Cc"]) | st.sampled_from('\t\n",'), min_size=1)


@given(texts=st.lists(QUOTED_CELL.filter(str.strip), min_size=1, max_size=8), kind=st.sampled_from(["tsv", "csv"]))
def test_quoted_round_trip(tmp_path_factory, texts, kind):
    path = tmp_path_factory.mktemp("rows") / f"train.{kind}"
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter="\t" if kind == "tsv" else ",")
    writer.writerows([("text", "label"), *((text, "x") for text in texts)])
    path.write_bytes(buffer.getvalue().encode())
    rows = read_file(path, Files(**{**PLAIN, "format": kind, "quoting": "csv"}))
    assert [row.text for row in rows] == texts


def test_quotes_marks_and_odd_separators_belong_to_plain_text(tmp_path):
    content = '\ufefftext\tlabel\n" unbalanced\tx\na\u2028b\x85c\x0bd\ty\n'
    (tmp_path / "train.tsv").write_bytes(content.encode())
    rows = read_file(tmp_path / "train.tsv", Files(**PLAIN))
    assert [row.text for row in rows] == ['" unbalanced', "a\u2028b\x85c\x0bd"]


def test_pairs_without_header_by_column_number(tmp_path):
    rows = [(str(i), f"c{i % 2}", f"first {i}", f"second {i}") for i in range(20)]
    content = "\n".join("\t".join(row) for row in rows)
    task = load_task(write_task(tmp_path, {"train.tsv": content}, {"header": False, "text": [3, 4], "label": 2}))
    assert task.label_names == ("c0", "c1")
    assert all(first.startswith("first") and second.startswith("second") for first, second in task.train.texts)


def test_jsonl_with_numeric_labels(tmp_path):
    content = "\n".join(json.dumps({"text": f"t{i}", "label": i % 11}) for i in range(220))
    path = write_task(tmp_path, {"train.jsonl": content}, {"format": "jsonl", "train": "train.jsonl"})
    assert load_task(path).label_names == tuple(str(i) for i in range(11))  # numerically, not "1", "10", "2"


def test_label_values_and_regression_and_sign(tmp_path):
    values = {"labels": ["no", "yes"], "label_values": {"0": "no", "1": "yes"}, "metrics": ["accuracy", "f1"]}
    task = load_task(write_task(tmp_path, {"train.tsv": table([(f"t{i}", str(i % 2)) for i in range(20)])}, **values))
    assert task.label_names == ("no", "yes")
    assert all(label == int(text[1:]) % 2 for text, label in zip(task.train.texts, task.train.labels, strict=True))

    numbers = {"train.tsv": table([(f"t{i}", f"{i - 10}.0") for i in range(21)])}
    task = load_task(write_task(tmp_path, numbers, target="number", metrics=["spearman"]))
    assert task.regression
    assert task.num_labels == 1
    assert sorted([*task.train.labels, *task.validation.labels, *task.test.labels]) == list(range(-10, 11))

    task = load_task(write_task(tmp_path, numbers, target="sign", labels=["below", "above"]))
    assert len(task.train) + len(task.validation) + len(task.test) == 20
    assert all(label == (int(text[1:]) > 10) for text, label in zip(task.test.texts, task.test.labels, strict=True))
    assert "Rows rated exactly 0 are dropped (1 of 21 in train)." in task.notes


# ------------------------------------------------------------------------------------------------ splits


def test_missing_splits_are_cut_from_train_by_class_and_always_alike(tmp_path):
    path = write_task(tmp_path, {"train.tsv": balanced(300, classes=3)})
    task = load_task(path)
    assert [len(s) for s in (task.train, task.validation, task.test)] == [216, 24, 60]
    assert Counter(task.test.labels) == {0: 20, 1: 20, 2: 20}
    assert Counter(task.validation.labels) == {0: 8, 1: 8, 2: 8}
    texts = [*task.train.texts, *task.validation.texts, *task.test.texts]
    assert len(set(texts)) == 300
    assert load_task(path).fingerprint() == task.fingerprint()
    assert "Test: 60 rows cut from train (seed 1). Validation: 24 rows cut from train (seed 0)." in task.notes


@given(counts=st.dictionaries(st.integers(0, 9), st.integers(1, 40), min_size=1), part=st.floats(0, 1))
def test_shares_are_proportional_and_leave_every_class_a_row(counts, part):
    size = int(part * sum(counts.values()))
    divided = shares(counts, size)
    assert sum(divided.values()) <= size
    for label, share in divided.items():
        assert 0 <= share <= counts[label] - 1
        exact = size * counts[label] / sum(counts.values())
        assert share == counts[label] - 1 or abs(share - exact) < 1


def test_too_few_rows_to_cut_from(tmp_path):
    with pytest.raises(UserError, match=r"train has too few rows \(2\) to cut a test split from it"):
        load_task(write_task(tmp_path, {"train.tsv": balanced(2)}))


def test_size_rule():
    assert Cut(fraction=0.1, at_most=1000, seed=0).size(2490) == 249
    assert Cut(fraction=0.1, at_most=1000, seed=0).size(67349) == 1000


def test_texts_that_occur_twice_and_subsets_are_noted(tmp_path):
    contents = {"train.tsv": balanced(30), "validation.tsv": balanced(1), "test.tsv": balanced(40)}
    files = {"validation": "validation.tsv", "test": "test.tsv"}
    keys = {"complete_rows": {"train": 99, "test": 40}, "subset_notes": "Beware", "notes": "Mine."}
    task = load_task(write_task(tmp_path, contents, files, **keys))
    assert len(task.test) == 40
    assert task.notes == (
        "Mine. Train is a subset: 30 of 99 rows. Beware. 1 validation text also occurs in train. "
        "30 test texts also occur in train."
    )


# ------------------------------------------------------------------------------------------------ sources


def test_data_directory_by_argument_or_environment(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "mcid"
    folder.mkdir(parents=True)
    for name in ("train.tsv", "dev.tsv", "test.tsv"):
        (folder / name).write_bytes(balanced(8).replace("\n", "\r\n").encode())
    assert load_task("mcid", tmp_path / "data").label_names == ("c0", "c1")
    monkeypatch.setenv("CONSISTENTEE_DATA", str(tmp_path / "data"))
    assert len(load_task("mcid").test) == 8


def test_everything_that_was_tried_is_listed(tmp_path):
    with pytest.raises(UserError) as error:
        load_task("mcid")
    assert str(error.value) == (
        "task 'mcid' cannot be had: no data directory was given. "
        "Give --data DIR (or set CONSISTENTEE_DATA), where DIR/mcid holds train.tsv, dev.tsv, test.tsv"
    )
    with pytest.raises(UserError, match=r"no file .*mcid/train\.tsv or .*dev\.tsv or .*test\.tsv"):
        load_task("mcid", tmp_path)


def test_package_source(tmp_path, monkeypatch):
    (tmp_path / "movieReviewSnippets_GroundTruth.txt").write_text(
        "\r\n".join(f"{i}\t{i - 50}\ttext {i}" for i in range(101))
    )
    monkeypatch.setattr(loader, "fetch", lambda _shipment: tmp_path)
    task = load_task("movie-snippets")
    assert task.label_names == ("negative", "positive")
    assert len(task.train) + len(task.validation) + len(task.test) == 100

    def fail(_shipment):
        raise UserError("no index")

    monkeypatch.setattr(loader, "fetch", fail)
    with pytest.raises(UserError, match=r"no data directory was given; no index\. Give --data"):
        load_task("movie-snippets")


HUB = Hub(path="someone/pairs", config="easy", train="train", test="validation", text=["a", "b"], label="label")


def hub_dataset(labels=(1, 0, 1, 0)):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "a": datasets.Value("string"),
            "b": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
        }
    )
    rows = {"a": [f"a{i}" for i in range(4)], "b": [f"b{i}" for i in range(4)], "label": list(labels)}
    part = datasets.Dataset.from_dict(rows, features=features)
    return datasets.DatasetDict({"train": part, "validation": part, "secret": part})


def test_hub_dataset_becomes_rows_with_class_names():
    rows = rows_of_dataset(hub_dataset(), HUB, "hub")
    assert list(rows) == ["train", "test"]
    assert [(row.place, row.text, row.label) for row in rows["test"]][:2] == [
        ("hub validation:1", ("a0", "b0"), "yes"),
        ("hub validation:2", ("a1", "b1"), "no"),
    ]


def test_hub_dataset_with_missing_parts():
    with pytest.raises(UserError, match="hub has no split 'other'; it has train, validation, secret"):
        rows_of_dataset(hub_dataset(), HUB.model_copy(update={"test": "other"}), "hub")
    with pytest.raises(UserError, match="hub train has no column 'c'"):
        rows_of_dataset(hub_dataset(), HUB.model_copy(update={"text": "c"}), "hub")
    with pytest.raises(UserError, match="hub train:3: missing label"):
        rows_of_dataset(hub_dataset((1, 0, -1, 0)), HUB, "hub")


def test_hub_dataset_is_kept_for_later_calls(monkeypatch, tmp_path):
    downloads = []
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)
    monkeypatch.setattr("datasets.load_dataset", lambda *names: downloads.append(names) or hub_dataset())
    spec = {"schema_version": 1, "name": "mine", "version": 1, "description": "mine", "metrics": ["accuracy"]}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**spec, "hub": {**HUB.model_dump(exclude_none=True), "validation": "secret"}}))
    first = load_task(path)
    assert load_task(path).fingerprint() == first.fingerprint()
    assert downloads == [("someone/pairs", "easy")]
    for file in (tmp_path / "cache" / "datasets" / "someone--pairs--easy").rglob("*.json"):
        file.write_text("{")
    with pytest.raises(UserError, match="someone--pairs--easy is damaged"):
        load_task(path)


@pytest.mark.slow  # the libraries of the hub take seconds to import; test_text_tasks.py: what is said
def test_unreachable_hub_fails_within_seconds(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_OFFLINE", None)
    code = """
import time
from benchmarks import load_task
from consistentee.errors import UserError
start = time.perf_counter()
try:
    load_task("sst2")
except UserError as error:
    print(error)
print(time.perf_counter() - start)
"""
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    message, seconds = run.stdout.splitlines()
    assert "no data directory was given; hub data set nyu-mll/glue (sst2): " in message
    assert float(seconds) < 10


# ------------------------------------------------------------------------------------------------ real data

REAL = {  # train (before the cut), test, classes
    "cola": (8551, 1043, 2),
    "sst2": (67349, 872, 2),
    "mrpc": (3668, 408, 2),
    "rte": (2490, 277, 2),
    "stsb": (5749, 1500, 0),
    "wnli": (635, 71, 2),
    "qnli": (9999, 5463, 2),
    "qqp": (11948, 7599, 2),
    "mnli": (12925, 7468, 3),
    "mnli-mm": (12925, 999, 3),
    "mcid": (1220, 349, 16),
    "stackoverflow": (18000, 1000, 20),
}


@pytest.mark.real
@pytest.mark.parametrize("name", REAL)
def test_real_files(name):
    spec, _ = loader.spec_of(name)
    data = os.environ.get("CONSISTENTEE_DATA")
    if data is None or not (Path(data) / spec.files.folder).is_dir():
        pytest.skip(f"CONSISTENTEE_DATA has no {spec.files.folder}")
    task = load_task(name)
    train, test, classes = REAL[name]
    cut = 0 if spec.files.validation else len(task.validation)
    assert len(task.train) + cut == train
    assert len(task.test) == test
    assert len(task.label_names) == classes
    assert cut in (0, min(1000, round(train / 10)))
    if classes:
        assert len(set(task.test.labels)) == classes


@pytest.mark.real
def test_real_label_counts():
    if not os.environ.get("CONSISTENTEE_DATA"):
        pytest.skip("CONSISTENTEE_DATA is not set")
    counts = {name: Counter(load_task(name).test.labels) for name in ("cola", "mrpc", "qqp", "rte", "mnli", "mcid")}
    assert counts["cola"] == {0: 322, 1: 721}
    assert counts["mrpc"] == {0: 129, 1: 279}
    assert counts["qqp"] == {0: 4871, 1: 2728}
    assert counts["rte"] == {0: 146, 1: 131}
    assert counts["mnli"] == {0: 2680, 1: 2353, 2: 2435}
    assert set(counts["mcid"].values()) == {21, 22}
    assert "5 validation texts also occur in train. 15 test texts also occur in train." in load_task("mcid").notes


@pytest.mark.real
def test_real_movie_snippets():
    try:
        task = load_task("movie-snippets")
    except UserError as error:
        pytest.skip(str(error))
    assert is_fetched(task_shipment("movie-snippets"))
    assert (len(task.train), len(task.validation), len(task.test)) == (7711, 857, 2000)
    assert task.label_names == ("negative", "positive")
