"""Text tasks: their YAMLs, templates, dropped rows, cut splits, sources."""

import pytest
from documents import ROOT
from task_files import balanced, lines, questions, write_task, write_text_task

from benchmarks.tasks import loader
from benchmarks.tasks.check import check_task
from benchmarks.tasks.loader import load_classification_task, load_task, load_text_task
from benchmarks.tasks.specs import TaskSpec, Template, TextFiles, TextTaskSpec
from consistentee.backbones.hub import HubError
from consistentee.data.tasks import TextTask
from consistentee.errors import UserError

pytestmark = pytest.mark.usefixtures("no_data_directory")


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
    def unreachable(question, repository):
        raise HubError("no answer")

    monkeypatch.setattr("consistentee.backbones.hub.ask", unreachable)
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
