"""``consistentee accelerate`` on a tiny model: the promise, the saved folder, the command line, and a service."""

import json
import re
import shutil
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Thread

import numpy as np
import pandas as pd
import pytest
from classifiers_on_disk import NAMES, save_classifier, write_rows
from command_line import call, succeed
from documents import blocks_of
from small_suite import wait_until
from typer.testing import CliRunner

import consistentee as ee
from benchmarks.cli import app
from benchmarks.commands import instead
from benchmarks.commands.deploy import rows_of
from benchmarks.tasks.data_files import find_columns, labelled_rows, read_table
from benchmarks.testing.tiny import random_texts
from consistentee.data.tasks import Split, TaskData
from consistentee.deployment import timing
from consistentee.deployment.risk_control import proven, rows_needed
from consistentee.deployment.ways import Incoming, Way, worth_testing
from consistentee.errors import UserError

QUICK = ("--loss", "12", "--no-compile", "--set", "frozen_steps=8", "epochs=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier, rows, and the accelerated model with what the command printed."""
    folder = tmp_path_factory.mktemp("accelerated")
    save_classifier(folder / "mine")
    write_rows(folder / "rows.csv", headings=("Review", "Label"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "TIMED_ROWS", {1: 4, 32: 32})
        patch.setattr(timing, "time_runs", partial(timing.time_runs, rounds=1))
        done = succeed("accelerate", folder / "mine", folder / "rows.csv", "--out", folder / "faster", *QUICK)
    (folder / "printed").write_text(done.output, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def report(folder):
    """The report that lies in the folder of the accelerated model."""
    return json.loads((folder / "faster" / "accelerated.json").read_text(encoding="utf-8"))


def test_the_command_says_what_it_read_tried_chose_and_promises(folder, report):
    printed = (folder / "printed").read_text(encoding="utf-8")
    assert "Columns: text from 'Review', label from 'Label'." in printed
    assert "Rows: 100 for exits, 100 for choosing, 100 for the proof." in printed
    ways = ("as it is", "entropy", "price", "ensemble", "same answer", "every text", "linear exits", "attention exits")
    weights = ("your model", "the int8 model", "your first 2 layers", "your first 2 layers in int8")
    assert all(words in printed for words in (*ways, *weights))
    assert report["block"] in printed
    assert re.search(r"Your model: \d+\.\d% \(100 rows\)\.\nChosen: ", report["block"])
    assert sum(report["promise"]["share_by_exit_layer"]) == pytest.approx(1, abs=1e-3)
    assert len(report["tried"]) >= 21
    speed = 1.05**2 * np.prod(list(report["promise"]["speed"].values()))
    faster = [line for line in report["tried"] if line["timed"] and np.prod(list(line["speed"].values())) > speed]
    named = [line for line in faster if not line["proven"] and line["points"] <= 12 and line["name"] != "torch.compile"]
    assert ("Faster, but not proven" in report["block"]) == bool(named)


def test_a_saved_folder_answers_the_same_in_another_place(folder, report, tmp_path, monkeypatch):
    shutil.copytree(folder / "faster", tmp_path / "elsewhere")
    texts = random_texts(20)
    answers = ee.pipeline(tmp_path / "elsewhere")(texts)
    assert answers == ee.pipeline(folder / "faster")(texts)
    assert {answer["label"] for answer in answers} <= set(NAMES.values())
    model, _, _ = ee.load(tmp_path / "elsewhere")
    assert model.num_layers == len(report["promise"]["share_by_exit_layer"])
    monkeypatch.setattr(timing, "TIMED_ROWS", {1: 4, 32: 32})
    printed = succeed("time", folder / "faster", folder / "rows.csv").output
    assert re.search(r"the model that it was made of\W+4\.0", printed)


def test_the_saved_model_does_on_the_rows_of_the_proof_what_its_report_says(folder, report):
    promise = report["promise"]
    task, _ = rows_of(str(folder / "mine"), str(folder / "rows.csv"))
    answers = ee.pipeline(folder / "faster")(task.test.texts)
    labels = [task.label_names[label] for label in task.test.labels]
    right = [answer["label"] == label for answer, label in zip(answers, labels, strict=True)]
    assert 100 * np.mean(right) == pytest.approx(promise["accuracy"] - promise["points_expected"], abs=1.01)
    mean_layer = np.mean([answer["exit_layer"] for answer in answers])
    assert mean_layer == pytest.approx(promise["average_layers"], abs=0.05)


def test_predict_labels_a_file_and_what_comes_through_a_pipe(folder, tmp_path):
    succeed("predict", folder / "faster", "--file", folder / "rows.csv", "--out", tmp_path / "out.csv")
    written = pd.read_csv(tmp_path / "out.csv")
    assert list(written.columns) == ["Review", "label", "probability", "exit_layer"]
    assert len(written) == 300
    assert set(written["label"]) <= set(NAMES.values())
    piped = CliRunner().invoke(app, ["predict", str(folder / "faster"), "--file", "-"], input="text\nw1 w2\nw3\n")
    assert piped.exit_code == 0, piped.output
    assert piped.stdout.splitlines()[0] == "text,label,probability,exit_layer"
    assert len(piped.stdout.splitlines()) == 3


def test_the_promise_holds_in_200_redraws_of_the_proof():
    generator = np.random.default_rng(0)
    population = 20_000
    # Points lost and won of twelve ways, of which the last five lose more than 1 point.
    lost, won = np.linspace(0, 0.04, 12), np.linspace(0, 0.022, 12)
    draws = generator.random((population, 1))
    losses = (draws < lost).astype(float) - (draws > 1 - won)
    risks = losses.mean(axis=0)
    assert (risks > 0.01).sum() >= 4
    broken = gained = 0
    for _ in range(200):
        rows = generator.integers(population, size=3000)
        passed = proven(losses[rows[:1500]], losses[rows[1500:]], loss=1.0, probability=0.9)
        broken += any(risks[index] > 0.01 for index in passed)
        gained += len(passed) > 3
    assert broken <= 20
    assert gained > 40


def test_many_ways_just_above_the_loss_do_not_pass_by_their_number():
    """Rows that chose must not prove: the best of 40 bad ways looks good on them."""
    generator = np.random.default_rng(1)
    broken = reused = 0
    for _ in range(200):
        choosing, proof = (generator.random((600, 40)) < 0.0105 for _ in range(2))
        broken += bool(proven(choosing.astype(float), proof.astype(float), loss=1.0, probability=0.9))
        reused += bool(proven(choosing.astype(float), choosing.astype(float), loss=1.0, probability=0.9))
    assert broken <= 20
    assert reused > 40, "this test would see it"


def test_ways_after_one_that_fails_are_not_proven():
    choosing = np.zeros((2000, 3))
    choosing[:2, 1], choosing[:6, 2] = 1, 1
    proof = np.zeros((2000, 3))
    proof[:100, 1] = 1
    assert proven(choosing, proof, 1.0, 0.9) == [0]


@pytest.mark.parametrize("choosing", [154, 1000])
def test_a_proof_takes_as_many_rows_as_are_asked_for(choosing):
    needed = rows_needed(0.5, 0.9, choosing)
    for rows, passes in ((needed - 1, []), (needed, [0])):
        assert proven(np.zeros((choosing, 1)), np.zeros((rows, 1)), 0.5, 0.9) == passes


def test_speed_ups_are_medians_of_rounds():
    taken = {"stock": {1: [2.0, 4.0, 2.0]}, "other": {1: [1.0, 1.0, 2.0]}}
    assert timing.speed_ups(taken, "stock") == {"stock": {1: 1.0}, "other": {1: 2.0}}


def test_names_and_numbers_of_labels_are_not_mixed():
    rated = pd.DataFrame({"text": ["a"] * 5, "label": ["0", "1", "2", "3", "4"]})
    columns = find_columns(rated, "rated")
    assert labelled_rows(rated, columns, "rated", list("12345")).labels == [0, 1, 2, 3, 4]
    assert labelled_rows(rated.assign(label=list("12345")), columns, "rated", list("12345")).labels == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="row 1 has label '0'"):
        labelled_rows(rated.assign(label=list("01235")), columns, "rated", list("12345"))


def test_columns_are_guessed_or_asked_for(tmp_path):
    table = pd.DataFrame({"premise": ["a"], "hypothesis": ["b"], "gold": [1]})
    for path, write in (("x.jsonl", "to_json"), ("x.parquet", "to_parquet"), ("x.tsv", "to_csv")):
        options = {"to_json": {"orient": "records", "lines": True}, "to_csv": {"sep": "\t", "index": False}}
        getattr(table, write)(tmp_path / path, **options.get(write, {}))
        read = read_table(tmp_path / path)
        columns = find_columns(read, path)
        assert str(columns) == "text from 'premise' and 'hypothesis', label from 'gold'"
        split = labelled_rows(read, columns, path, list(NAMES.values()))
        assert (split.texts, split.labels) == ([("a", "b")], [1])
    other = pd.DataFrame({"one": ["a"], "two": ["b"]})
    with pytest.raises(UserError, match="which of one, two is the label"):
        find_columns(other, "x")
    assert find_columns(other, "x", label="two").texts == ("one",)
    with pytest.raises(UserError, match="unknown column"):
        find_columns(other, "x", text=["three"])
    titles = pd.DataFrame({"title": ["good"], "headline": ["a film"]})
    assert find_columns(titles, "x", label="title").texts == ("headline",), "the label is never the text"
    (tmp_path / "x.csv").write_text("text,label\nfoo,bar,red\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"x\.csv:2: 3 cells, but the first line has 2"):
        read_table(tmp_path / "x.csv")


def test_no_row_is_swallowed_by_a_lone_quote(tmp_path):
    """In a TSV file quotes belong to the text if they do not stand around cells; in a CSV file they are a fault."""
    texts = ['"quiet" film', '"a lone quote', "plain", '"another']
    (tmp_path / "x.tsv").write_text("\n".join(["text\tlabel", *(f"{text}\tred" for text in texts)]), encoding="utf-8")
    assert read_table(tmp_path / "x.tsv")["text"].tolist() == texts
    (tmp_path / "x.csv").write_text('text,label\n"a lone quote,red\nend,red\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"x\.csv:2: malformed row"):
        read_table(tmp_path / "x.csv")


def test_labels_that_differ_in_case_are_not_mixed():
    table = pd.DataFrame({"text": ["a"] * 3, "label": ["us", "US", "it"]})
    columns = find_columns(table, "x")
    assert labelled_rows(table, columns, "x", ["US", "us", "it"]).labels == [1, 0, 2]
    with pytest.raises(UserError, match="row 3 has label 'it'"):
        labelled_rows(table, columns, "x", ["US", "us", "It"])


def test_rows_of_the_proof_train_no_exits(folder):
    with pytest.raises(UserError, match="nothing is left to train exits on"):
        rows_of(str(folder / "mine"), str(folder / "rows.csv"), train=folder / "rows.csv")


def test_a_task_with_fewer_labels_has_the_numbers_of_the_model(folder):
    labels = [number % 2 for number in range(6)]
    split = Split("x", random_texts(6), labels)
    task = TaskData("two", 1, split, split, split, ("blue", "red"), ("accuracy",))
    found = Incoming(str(folder / "mine"), task, None).task
    assert found.label_names == ("red", "green", "blue")
    assert sorted(found.validation.labels) == [0, 0, 0, 2, 2, 2]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({"count": 30}, (), "10 rows are too few for a proof"),
        ({"labels": ("red", "green", "purple")}, (), "has label 'purple', which the model does not know"),
        ({}, ("--label", "Stars"), "unknown column of"),
        ({}, ("--set", "steps=1"), "unknown argument"),
    ],
)
def test_rows_that_do_not_fit_are_one_sentence(rows, options, message, folder, tmp_path):
    path = write_rows(tmp_path / "rows.csv", headings=("Review", "Label"), **rows)
    done = call("accelerate", folder / "mine", path, "--out", tmp_path / "out", *options)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert done.stderr.count("\n") == 1 or "loading the model" in done.stderr


def test_a_method_of_ones_own_travels_in_the_folder_and_runs_only_unchanged(tiny_model, tmp_path):
    source = tmp_path / "mine.py"
    source.write_text("from baselines.pabee import PABEE\n\nclass Mine(PABEE):\n    name = 'mine'\n", encoding="utf-8")
    ee.get_method(f"{source}:Mine").save(tiny_model(), None, tmp_path / "model")
    source.unlink()
    (tmp_path / "model").rename(tmp_path / "moved")
    assert ee.pipeline(tmp_path / "moved", allow_code=True)("w1")[0]["exit_layer"] >= 2
    with (tmp_path / "moved" / "method" / "mine.py").open("a", encoding="utf-8") as file:
        file.write("import antigravity\n")
    with pytest.raises(UserError, match="is not the file that was saved"):
        ee.pipeline(tmp_path / "moved", allow_code=True)


def test_the_service_of_the_page_answers_parallel_requests(folder, monkeypatch):
    uvicorn = pytest.importorskip("uvicorn")
    pytest.importorskip("fastapi")
    (block,) = [block for block in blocks_of("docs/deploy.md", "python") if block.test]
    monkeypatch.chdir(folder)
    exec(compile(block.source, block.place, "exec"), module := {})
    server = uvicorn.Server(uvicorn.Config(module["app"], port=0, log_level="error"))
    thread = Thread(target=server.run)
    thread.start()

    def ask(texts):
        port = server.servers[0].sockets[0].getsockname()[1]
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/classify", json.dumps(texts).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read())

    try:
        wait_until(lambda: server.started or not thread.is_alive())
        requests = [random_texts(count, seed=count) for count in (1, 3, 40, 300, 2, 7, 1, 64)]
        with ThreadPoolExecutor(8) as pool:
            answered = list(pool.map(ask, requests))
    finally:
        server.should_exit = True
        thread.join(30)
    alone = ee.pipeline(folder / "faster")
    for texts, given in zip(requests, answered, strict=True):
        assert [answer["label"] for answer in given] == [answer["label"] for answer in alone(texts)]


def test_a_way_that_is_neither_the_safest_nor_the_fastest_is_not_tested():
    def way(name, lost, speed):
        return Way(name, "", None, None, 0.0, (), np.repeat([1.0, 0.0], [lost, 500 - lost]), 3.0, speed)

    safest, beaten, fastest, same = way("a", 0, 1.2), way("b", 3, 1.5), way("c", 2, 2.0), way("d", 2, 2.0)
    assert worth_testing([safest, beaten, fastest, same], 1.0) == [safest, fastest, same]


def test_the_table_of_what_to_pick_averages_over_tasks(report, tmp_path):
    for task, shift in (("one", 0.0), ("two", 1.0)):
        (tmp_path / "runs" / task / "accelerated").mkdir(parents=True)
        shifted = {**report, "tried": [{**line, "points": line["points"] + shift} for line in report["tried"]]}
        (tmp_path / "runs" / task / "accelerated" / "accelerated.json").write_text(json.dumps(shifted))
        (tmp_path / "runs" / task / "environment.json").write_text("{}")
    instead.write_tables(tmp_path / "runs", tmp_path / "out")
    tried = pd.read_csv(tmp_path / "out" / "tried.csv")
    assert len(tried) == 2 * len(report["tried"])
    int8 = next(line for line in report["tried"] if (line["on"], line["name"]) == ("the int8 model", "no exits"))
    page = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    line = next(line for line in page.splitlines() if line.startswith("| the int8 model, no exits |"))
    assert f"| {int8['points'] + 0.5:+.2f} | {int8['points'] + 1:+.2f} |" in line
    assert page.count(report["promise"]["chosen"].split(",")[0]) >= 2


def test_a_stock_classifier_is_fine_tuned_and_saved_as_transformers_does(tmp_path):
    save_classifier(tmp_path / "mine")
    texts = random_texts(64, seed=5)
    split = ee.Split("train", texts, [int(text.split()[0][1:]) % 3 for text in texts])
    task = ee.TaskData("rows", 1, split, split, split, ("red", "green", "blue"), ("accuracy",))
    instead.fine_tune(str(tmp_path / "mine"), task, ee.Recipe(epochs=2, max_rows=64), tmp_path / "tuned")
    assert ee.MultiExitModel.from_classifier(str(tmp_path / "tuned")).description.label_names == task.label_names
