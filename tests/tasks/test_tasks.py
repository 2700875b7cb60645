"""Tasks of labels and of texts: their YAMLs, labels, templates, dropped rows, cut splits, sources."""

from collections import Counter
from typing import get_args
from unittest.mock import Mock

import pytest
import yaml
from documents import ROOT
from hypothesis import given, strategies as st
from task_files import LABELS, TEXTS, balanced, lines, questions, table, write_task, write_text_task

from benchmarks import list_tasks
from benchmarks.tasks import loader
from benchmarks.tasks.check import check_task
from benchmarks.tasks.loader import load_classification_task, load_task, load_text_task, task_kind
from benchmarks.tasks.specs import MetricName, TaskSpec, Template, TextFiles, TextTaskSpec
from benchmarks.tasks.splits import shares
from consistentee import TextTask, UserError
from consistentee.backbones.hub import HubError
from consistentee.data.metrics import METRICS

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


def test_a_template_is_filled_and_knows_what_may_be_cut():
    template = Template("{{{article}}}\n\nQuestion: {question}\nAnswer:")
    assert template.fields == ("article", "question")
    values = {"article": "long", "question": "why?"}
    assert template.prompt(values) == "{long}\n\nQuestion: why?\nAnswer:"
    last, chosen = template.prompt(values), template.prompt(values, "article")
    assert (last.before, last.body, last.after) == ("{long}\n\nQuestion: ", "why?", "\nAnswer:")
    assert (chosen.before, chosen.body, chosen.after) == ("{", "long", "}\n\nQuestion: why?\nAnswer:")
    assert template.prompt(values, "absent") == last


def test_a_task_of_the_other_kind_is_refused(tmp_path):
    path = write_text_task(tmp_path, {"train.jsonl": questions(40)})
    assert isinstance(load_text_task(path), TextTask)
    with pytest.raises(UserError, match="'mine' asks for texts: it is for suites of generation"):
        load_classification_task(path)
    (tmp_path / "other").mkdir()
    other = write_task(tmp_path / "other", {"train.tsv": balanced(40)})
    with pytest.raises(UserError, match="'mine' asks for labels: it is for suites of classification"):
        load_text_task(other)
    assert len(load_classification_task(other).test) == 8


def test_prompts_and_references(tmp_path):
    rows = [{"q": f" q{i}\n", "a": i if i % 2 else f" a{i} "} for i in range(40)]
    files = {"train.jsonl": lines(rows), "test.jsonl": lines(rows[:3])}
    path = write_text_task(tmp_path, files, {"test": "test.jsonl"}, separator="\n", keep="end", max_prompt_tokens=9)
    task = load_text_task(path)
    assert task.test.prompts == ["Q: q0\nA:", "Q: q1\nA:", "Q: q2\nA:"]
    assert task.test.references == ["\na0", "\n1", "\na2"]
    assert (task.test.prompts[0].before, task.test.prompts[0].body) == ("Q: ", "q0")
    assert (task.keep, task.max_prompt_tokens, task.max_new_tokens) == ("end", 9, 64)
    assert task.template == "Q: {question}\nA:"


def test_a_row_gets_the_first_template_whose_fields_it_has(tmp_path):
    rows = [{"q": f"q{i}", "page": [None, "", "text"][i % 3], "a": "x"} for i in range(30)]
    keys = {"template": ["{page}\n{question}", "{question}"], "cut_field": "page"}
    files = {"fields": {"question": "q", "page": "page"}}
    task = load_text_task(write_text_task(tmp_path, {"train.jsonl": lines(rows)}, files, **keys))
    for prompt in (*task.train.prompts, *task.test.prompts):
        has_page = int(str(prompt).rpartition("q")[2]) % 3 == 2
        assert prompt.startswith("text\n") == has_page
        assert prompt.body == ("text" if has_page else str(prompt))
    assert task.template == "{page}\n{question}\n----\n{question}"


def test_rows_that_lack_a_part_are_dropped_and_counted(tmp_path):
    rows = [{"q": f"q{i}", "a": "x"} for i in range(40)]
    rows += [{"q": "q", "a": ""}, {"q": "q", "a": None}, {"q": " ", "a": "x"}]
    path = write_text_task(
        tmp_path, {"train.jsonl": lines(rows)}, complete_rows={"train": 43}, subset_notes="Never said."
    )
    task = load_text_task(path)
    assert len(task.train) + len(task.validation) + len(task.test) == 40
    assert task.notes == (
        "Rows without a response are dropped (2 of 43 in train). "
        "Rows without a text that every prompt needs are dropped (1 of 43 in train). "
        "Test: 8 rows cut from train (seed 1). Validation: 3 rows cut from train (seed 0)."
    )
    with pytest.raises(UserError, match=r"'mine': no row of train is left\. Rows without a response are dropped"):
        load_task(write_text_task(tmp_path, {"train.jsonl": lines(rows[-3:-1])}))


def xsum_row(number: int) -> dict[str, object]:
    article = f"###\nArticle: News {number}.\n\nSummarize the above article in 1 sentence.\n"
    return {"article": article, "summary_gt": f"New {number}.", "stop": ["###"], "n": 1}


def test_xsum_layout_and_the_hub_give_the_same_prompts(tmp_path):
    (tmp_path / "xsum").mkdir()
    file = tmp_path / "xsum" / "xsum_0shot.jsonl"
    file.write_text(lines(xsum_row(i) for i in range(100)))
    task = load_text_task("xsum", tmp_path)
    assert [len(s) for s in (task.train, task.validation, task.test)] == [40, 10, 50]
    assert "holds evaluation rows, from which all three splits are cut" in task.notes
    number = int(task.train.references[0].split()[1].strip("."))
    assert task.train.prompts[0] == xsum_row(number)["article"]
    assert task.train.prompts[0].body == f"News {number}."
    spec, _ = loader.spec_of("xsum")
    hub_row = spec.hub.row("hub:1", {"document": f"News {number}.", "summary": f"New {number}."})
    assert spec.templates[0].prompt(hub_row.fields) == task.train.prompts[0]

    file.write_text(lines([xsum_row(0), {**xsum_row(1), "article": "News 1."}]))
    with pytest.raises(UserError, match=r"xsum_0shot\.jsonl:2: the text in column 'article' must begin with"):
        load_task("xsum", tmp_path)


def test_a_continuation_divides_sentences(tmp_path, monkeypatch):
    sentence = "one two three four five six seven eight nine ten eleven twelve thirteen"
    sentences = [" ".join(sentence.split()[: 11 + i % 3]) for i in range(60)]
    rows = "\r\n".join(f"{i}_1\t0.1\t{text} " for i, text in enumerate(sentences))
    (tmp_path / "nytEditorialSnippets_GroundTruth.txt").write_bytes(rows.encode())
    monkeypatch.setattr(loader, "fetch", lambda _shipment: tmp_path)
    task = load_text_task("nyt-continuation")
    assert "Rows of fewer than 12 words are dropped (20 of 60 in train)." in task.notes
    assert "the first half of the words of a sentence" in task.notes
    assert len(task.train) + len(task.validation) + len(task.test) == 40
    pairs = set(zip(task.train.prompts, task.train.references, strict=True))
    assert pairs == {
        ("one two three four five six", " seven eight nine ten eleven twelve"),
        ("one two three four five six", " seven eight nine ten eleven twelve thirteen"),
    }


def test_every_source_that_was_tried_is_listed(tmp_path, monkeypatch):
    monkeypatch.setattr("consistentee.backbones.hub.ask", Mock(side_effect=HubError("no answer")))
    tried = rf"no file {tmp_path}/dolly/.*; hub data set databricks/databricks-dolly-15k: no answer.*Give --data DIR"
    with pytest.raises(UserError, match=tried):
        load_task("dolly", tmp_path)


def test_check_task_measures_prompts_and_responses(tmp_path):
    contents = {
        "train.jsonl": questions(150) + lines([{"q": "q1", "a": "other"}]),
        "v.jsonl": questions(120, "v") + questions(1),
        "t.jsonl": lines({"q": f"t{i} " + "word " * 30, "a": "yes " * 20} for i in range(120)),
    }
    files = {"validation": "v.jsonl", "test": "t.jsonl"}
    path = write_text_task(tmp_path, contents, files, max_prompt_tokens=16, max_new_tokens=8)
    report = check_task(str(path))
    assert report.errors == []
    assert report.rows.query("split == 'train'")["length"].tolist() == [3] * 151
    assert report.rows.query("split == 'test'")["response_length"].tolist() == [20] * 120
    assert report.warnings == [
        "100% of the prompts of test have more than 16 words: they are cut, and the start stays",
        "100% of the responses of test have more than 8 words: they cannot be written to the end",
        "1 rows of train repeat an earlier text with another answer",
        "1 rows of validation (0.8%) have a text of train",
    ]


def test_every_field_of_a_task_is_documented():
    words = set((ROOT / "docs" / "tasks.md").read_text().replace("`", " ").replace("|", " ").split())
    assert {*TaskSpec.model_fields, *TextTaskSpec.model_fields, *TextFiles.model_fields} <= words
