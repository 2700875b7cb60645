"""Tasks with labels: their YAMLs, labels, cut splits, sources."""

from collections import Counter
from typing import get_args
from unittest.mock import Mock

import pytest
import yaml
from hypothesis import given, strategies as st
from task_files import LABELS, TEXTS, balanced, lines, table, write_task, write_text_task

from benchmarks import list_tasks, load_task
from benchmarks.tasks import loader
from benchmarks.tasks.loader import task_kind
from benchmarks.tasks.specs import MetricName
from benchmarks.tasks.splits import shares
from consistentee.data.metrics import METRICS
from consistentee.errors import UserError

pytestmark = pytest.mark.usefixtures("no_data_directory")


def test_every_task_yaml_is_valid_and_named_after_its_file():
    tasks = list_tasks()
    glue = {"cola", "mnli", "mnli-mm", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli"}
    texts = {"alpaca", "cnn-dm", "dolly", "nyt-continuation", "xsum"}
    larger = {"ag-news", "dbpedia", "paws-wiki", "sick", "snli"}
    assert tasks.keys() == glue | texts | larger | {"mcid", "movie-snippets", "stackoverflow"}
    for name, description in tasks.items():
        spec, _ = loader.spec_of(name)
        assert spec.name == name
        assert (task_kind(name) == "text") == (name in texts)
        assert "\n" not in description
    assert set(get_args(MetricName)) == set(METRICS)


@pytest.mark.parametrize(
    ("write", "keys", "message"),
    [
        (write_task, {"metric": "accuracy"}, r"mine\.yaml is not a task: unknown key 'metric'; did you mean 'metrics'"),
        (write_task, {"files": None}, "give files or hub"),
        (write_task, {"metrics": ["pearson"]}, "pearson and spearman go with target number"),
        (write_task, {"metrics": ["f1"]}, "f1 needs two labels"),
        (write_task, {"target": "sign"}, "target sign needs two labels"),
        (write_task, {"labels": ["a", "b"], "label_values": {"0": "c"}}, "label_values .* that labels lacks: c"),
        (write_task, {"files": {**LABELS, "text": 1}}, "columns must be names"),
        (write_task, {"files": {**LABELS, "text": ["a", "b", "c"]}}, "at most 2 items"),
        (write_text_task, {"kind": "texts"}, r"mine\.yaml: unknown kind 'texts'; did you mean 'text'"),
        (write_text_task, {"label": "x"}, r"mine\.yaml is not a task: unknown key 'label'"),
        (write_text_task, {"metrics": ["accuracy"]}, "metrics.0: unknown value 'accuracy'; known: rouge1"),
        (write_text_task, {"template": "none"}, "is not a task: a template needs a field"),
        (write_text_task, {"template": ["{question} {question}"]}, "a field stands twice in"),
        (write_text_task, {"template": "{a.__class__}"}, "{a.__class__} is not the name of a field"),
        (write_text_task, {"template": "{a"}, "expected '}' before end of string"),
        (write_text_task, {"template": "{other}"}, "fields other, but the columns are given of question"),
        (write_text_task, {"cut_field": "article"}, "no template has the cut_field article"),
        (write_text_task, {"continuation": {"minimum_words": 12}}, "give response, .*, or continuation"),
        (write_text_task, {"files": {**TEXTS, "unwrap": {"article": ["", ""]}}}, "unwrap names .*: article"),
        (write_text_task, {"files": {**TEXTS, "format": "json", "header": False}}, "do not apply to format json"),
    ],
)
def test_faulty_yaml_names_file_and_key(tmp_path, write, keys, message):
    path = write(tmp_path, {})
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **keys}))
    with pytest.raises(UserError, match=message):
        load_task(path)


NUMBERS = {"target": "number", "metrics": ["pearson"]}
SPLITS = {"train.tsv": balanced(10), "validation.tsv": balanced(4), "test.tsv": balanced(3, classes=3)}


@pytest.mark.parametrize(
    ("keys", "contents", "message"),
    [
        (NUMBERS, {"train.tsv": table([("a", "1.5"), ("b", "high")])}, "train.tsv:3: label 'high' is not a number"),
        (NUMBERS, {"train.tsv": table([("a", "1.5"), ("b", "nan")])}, "train.tsv:3: label 'nan' is not a finite"),
        ({}, SPLITS, "test.tsv:4: label 'c2' is not a label of train"),
        ({"labels": ["c0", "c1", "c2"]}, SPLITS, "test.tsv:4: label 'c2' occurs in no training row"),
        ({"labels": ["c0", "c1"]}, {"train.tsv": balanced(10, classes=3)}, "train.tsv:4: label 'c2' is not one of"),
        ({}, {"train.tsv": table([("a", "x"), ("b", "x")])}, "train has a single label, 'x'"),
        ({}, {"train.tsv": balanced(2)}, r"train has too few rows \(2\) to cut a test split"),
    ],
)
def test_faulty_labels_are_named(tmp_path, keys, contents, message):
    files = {file.removesuffix(".tsv"): file for file in contents}
    with pytest.raises(UserError, match=message):
        load_task(write_task(tmp_path, contents, files, **keys))


def test_jsonl_with_numeric_labels(tmp_path):
    content = lines({"text": f"t{i}", "label": i % 11} for i in range(220))
    path = write_task(tmp_path, {"train.jsonl": content}, {"format": "jsonl", "train": "train.jsonl"})
    assert load_task(path).label_names == tuple(map(str, range(11)))  # numerically, not "1", "10", "2"


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


def test_data_directory_by_argument_or_environment(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "mcid"
    folder.mkdir(parents=True)
    for name in ("train.tsv", "dev.tsv", "test.tsv"):
        (folder / name).write_bytes(balanced(8).replace("\n", "\r\n").encode())
    assert load_task("mcid", tmp_path / "data").label_names == ("c0", "c1")
    monkeypatch.setenv("CONSISTENTEE_DATA", str(tmp_path / "data"))
    assert len(load_task("mcid").test) == 8


def test_package_source(tmp_path, monkeypatch):
    rows = "\r\n".join(f"{i}\t{i - 50}\ttext {i}" for i in range(101))
    (tmp_path / "movieReviewSnippets_GroundTruth.txt").write_text(rows)
    fetch = Mock(return_value=tmp_path)
    monkeypatch.setattr(loader, "fetch", fetch)
    task = load_task("movie-snippets")
    assert task.label_names == ("negative", "positive")
    assert len(task.train) + len(task.validation) + len(task.test) == 100
    fetch.side_effect = UserError("no index")
    with pytest.raises(UserError, match=r"no data directory was given; no index\. Give --data"):
        load_task("movie-snippets")


@pytest.mark.real
@pytest.mark.parametrize("name", sorted(list_tasks()))
def test_real_files(name):
    try:
        task = load_task(name)
    except UserError as error:
        pytest.skip(str(error))
    assert min(len(task.train), len(task.validation), len(task.test)) > 10
