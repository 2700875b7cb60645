import dataclasses
import io
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure
from records_by_hand import write_results
from typer.main import get_group
from typer.testing import CliRunner

from benchmarks import cli
from benchmarks.analysis.figures import FigureKind
from benchmarks.cli import app
from benchmarks.cli.application import normalised as normalised_for
from benchmarks.cli.arguments import listed, numbers, parsed_parameters
from benchmarks.commands import doctor
from benchmarks.run.pool import Schedule
from benchmarks.specs.suites import list_suites
from consistentee.backbones.catalog import Backbone
from consistentee.backbones.wheels import Shipment
from consistentee.errors import UserError
from consistentee.models import classifiers
from consistentee.models.encoder.multi_exit_model import ModelDescription
from consistentee.training.recipe import RecipeSettings, TokenRecipeSettings


def call(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args], env={"CONSISTENTEE_DATA": "", "COLUMNS": "200"})


def normalised(args):
    return normalised_for(args, get_group(app).commands)


@pytest.fixture
def runs(monkeypatch):
    """Replace run_suite: keeps what it was called with, and ends as ``outcome`` says."""
    seen = SimpleNamespace(calls=[], outcome=SimpleNamespace(table=None, refused=(), failed=()))

    def run_suite(suite, filters, **options):
        seen.calls.append((suite, filters, options))
        if isinstance(seen.outcome, BaseException):
            raise seen.outcome
        return seen.outcome

    monkeypatch.setattr("benchmarks.run.sweep.run_suite", run_suite)
    return seen


# ---------------------------------------------------------------------------------------------- arguments


def test_several_words_after_an_option():
    assert normalised(["run", "s", "--tasks", "a", "b", "--out", "x", "--seeds", "0", "1"]) == (
        ["run", "s", "--tasks", "a", "--tasks", "b", "--out", "x", "--seeds", "0", "--seeds", "1"]
    )


def test_only_options_of_the_command_spread():
    words = ["predict", "DIR", "--knob", "0.5", "text", "--tasks", "a", "b"]
    assert normalised(words) == words
    assert normalised(["train", "t", "--param", "a=1", "b=2"]) == ["train", "t", "--param", "a=1", "--param", "b=2"]


def test_debug_may_stand_anywhere_before_the_double_dash():
    assert normalised(["run", "s", "--debug"]) == ["--debug", "run", "s"]
    assert normalised(["predict", "DIR", "--", "--debug"]) == ["predict", "DIR", "--", "--debug"]


def test_an_option_without_words_is_left_for_the_parser_to_refuse():
    assert normalised(["run", "s", "--tasks"]) == ["run", "s", "--tasks"]
    assert call("run", "quick", "--tasks").exit_code == 2


def test_values_may_have_commas():
    assert listed(["a,b", "c"]) == ["a", "b", "c"]
    assert listed(None) is None
    assert listed(["a,b", "a", " b"]) == ["a", "b"]
    assert numbers("--seeds", ["0", "1,0", "00"]) == [0, 1]
    assert numbers("--risk", ["0.5,1", "2"], float) == [0.5, 1.0, 2.0]
    for wrong in ("x", "1.5", "-1"):
        with pytest.raises(UserError, match="--seeds takes whole numbers"):
            numbers("--seeds", [wrong])


def test_parameters_are_read_as_yaml():
    assert parsed_parameters(["alpha=0.05", "estimator=exact", "shared=true", "name=a=b"]) == {
        "alpha": 0.05,
        "estimator": "exact",
        "shared": True,
        "name": "a=b",
    }
    for bad in ("alpha", "0x=1", "a=[1"):
        with pytest.raises(UserError, match="--param"):
            parsed_parameters([bad])


# ---------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize(
    ("words", "shown"),
    [(["--help"], "Examples"), (["new-method", "gate"], "written: gate.py:Gate"), (["check-method", "--help"], "Exit")],
)
def test_help_and_new_method_are_quick_and_load_nothing_heavy(words, shown, tmp_path):
    program = f"import sys; from benchmarks.cli import main; sys.argv = ['consistentee', *{words}]\n"
    program += "try: main()\nexcept SystemExit: pass\n"
    program += "print('HEAVY', [m for m in ('torch', 'transformers', 'pandas', 'matplotlib', 'sklearn', 'scipy') "
    program += "if m in sys.modules])"
    best = min(_seconds(program, shown, tmp_path) for _ in range(3))
    assert best < 0.7


def test_the_help_of_every_command_loads_nothing_heavy(tmp_path):
    program = "import sys; from typer.testing import CliRunner; from benchmarks.cli import app\n"
    program += "names = [c.name or c.callback.__name__ for c in app.registered_commands]\n"
    program += "codes = {CliRunner().invoke(app, [name, '--help']).exit_code for name in names}\n"
    program += "heavy = [m for m in ('torch', 'transformers', 'pandas', 'matplotlib', 'scipy') if m in sys.modules]\n"
    program += "print(len(names) > 12, codes, heavy)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "True {0} []\n"


def _seconds(program, shown, folder):
    (folder / "gate.py").unlink(missing_ok=True)
    start = _processor_seconds_of_children()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=folder)
    assert "HEAVY []" in done.stdout
    assert shown in done.stdout
    return _processor_seconds_of_children() - start


def _processor_seconds_of_children():
    """What finished children took of the processor: a busy machine does not make a program slow to start."""
    times = os.times()
    return times.children_user + times.children_system


@pytest.mark.parametrize(
    "command",
    [
        *("list", "fetch", "run", "table", "plot", "report", "train", "predict", "doctor"),
        *("new-method", "check-method", "check-task", "check-backbone", "leaderboard", "publish", "risk"),
    ],
)
def test_every_command_teaches_by_example(command):
    shown = call(command, "--help")
    assert shown.exit_code == 0
    assert f"consistentee {command}" in shown.output


def test_version():
    assert call("--version").output.startswith("consistentee ")


# ---------------------------------------------------------------------------------------------- run


def test_run_as_typed(runs, tmp_path):
    done = call(
        *("run", "cpu-6-layers", "--data", tmp_path, "--tasks", "mcid", "rte", "mrpc", "sst2"),
        *("--backbones", "minilm-l6", "--seeds", "0,1", "--retry-failed"),
    )
    assert done.exit_code == 0, done.output
    ((suite, filters, options),) = runs.calls
    assert suite.name == "cpu-6-layers"
    assert filters.tasks == ["mcid", "rte", "mrpc", "sst2"]
    assert filters.backbones == ["minilm-l6"]
    assert filters.seeds == [0, 1]
    assert filters.methods is None
    assert options["data_dir"] == tmp_path
    assert options["out"] == Path("runs/cpu-6-layers")
    assert options["retry_failed"]
    assert not options["fresh"]


def test_run_side_by_side(runs):
    assert call("run", "quick").exit_code == 0
    assert call("run", "quick", "--workers", "4").exit_code == 0
    assert call("run", "quick", "--scheduler", "tcp://host:8786").exit_code == 0
    assert [options["schedule"] for _, _, options in runs.calls] == [
        Schedule(1),
        Schedule(4),
        Schedule(address="tcp://host:8786"),
    ]
    done = call("run", "quick", "--workers", "2", "--scheduler", "tcp://host:8786")
    assert done.exit_code == 2
    assert "not both" in done.output
    assert call("run", "quick", "--workers", "0").exit_code == 2


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_results_need_a_folder(runs, tmp_path, more):
    (tmp_path / "file").write_text("mine")
    done = call("run", "quick", "--out", tmp_path / "file", *more)
    assert done.exit_code == 2
    assert "file is a file; give a folder" in done.output
    assert runs.calls == []


def test_dry_run_prints_the_plan_and_runs_nothing(runs, monkeypatch):
    seen = {}

    def plan_lines(suite, filters, **options):
        seen.update(options, methods=filters.methods)
        return ["the plan", "its estimate"]

    monkeypatch.setattr("benchmarks.run.dry_run.plan_lines", plan_lines)
    done = call("run", "quick", "--dry-run", "--methods", "full", "--workers", "2", "--retry-failed")
    assert done.output == "the plan\nits estimate\n"
    assert (seen["methods"], seen["workers"], seen["retry_failed"], seen["fresh"]) == (["full"], 2, True, False)
    assert runs.calls == []


def test_run_names_failures_and_ends_with_1(runs):
    runs.outcome = SimpleNamespace(table="THE TABLE", refused=("a: no regression",), failed=("b: ValueError: no",))
    done = call("run", "quick")
    assert done.exit_code == 1
    assert "THE TABLE" in done.output
    assert "failed: b: ValueError: no" in done.output
    assert "not defined: a" in done.output


def test_interruption_ends_with_130_and_a_word(runs):
    runs.outcome = KeyboardInterrupt()
    done = call("run", "quick")
    assert done.exit_code == 130
    assert "finished is kept" in done.output


def test_user_errors_are_one_sentence_and_2(runs):
    runs.outcome = UserError("the disk is\n full")
    done = call("run", "quick")
    assert done.exit_code == 2
    assert done.output.strip() == "error: the disk is full"


def test_unexpected_errors_hint_at_debug(runs):
    runs.outcome = ZeroDivisionError("oh")
    done = call("run", "quick")
    assert done.exit_code == 1
    assert done.output.strip() == "error: ZeroDivisionError: oh (add --debug to see where)"


def test_debug_shows_where(runs):
    runs.outcome = UserError("no")
    done = call("run", "quick", "--debug")
    assert done.exit_code == 2
    assert "Traceback" in done.output


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["run", "quik"], "unknown suite 'quik'; did you mean 'quick'?"),
        (["run", "quick", "--data", "no-such-folder"], "no such data directory: no-such-folder"),
        (["run", "quick", "--seeds", "one"], "--seeds takes whole numbers"),
        (["run", "quick", "--seeds", ""], "--seeds names nothing"),
        (["run", "quick", "--seeds=0,-1"], "--seeds takes whole numbers of at least 0, got -1"),
        (["run", "quick", "--tasks", ""], "--tasks names nothing"),
        (["run", "quick", "--methods", ","], "--methods names nothing"),
        (["run", "quick", "--backbones", ","], "--backbones names nothing"),
        (["plot", "no-such-folder", "--tasks", ""], "--tasks names nothing"),
        (["check-method", "full", "--families", ","], "--families names nothing"),
        (["list", "method"], "unknown list 'method'; did you mean 'methods'?"),
        (["fetch", "minilm-16"], "unknown backbone or task 'minilm-16'; did you mean 'minilm-l6'"),
        (["fetch", "mcid"], "shipped in no package"),
        (["table", "no-such-folder"], "holds no results"),
        (["table", __file__], f"{__file__} is a file; give a folder of results"),
        (["plot", "no-such-folder"], "holds no results"),
        (["predict", "no-such-folder", "text"], "no such model folder"),
        (["table", "no-such-folder", "--methods", "mine/"], "no such folder of methods: mine/"),
        (["leaderboard", "no-such-folder"], "no results to compare; no-such-folder holds no results"),
        (["check-method", "nowhere.py:Mine"], "no such method file: nowhere.py"),
        (["check-method", "deebart"], "unknown method 'deebart'; did you mean 'deebert'"),
        (["check-method", "full", "--families", "bertt"], "unknown family 'bertt'; did you mean 'bert'"),
        (["check-task", "mcdi"], "unknown task 'mcdi'; did you mean 'mcid'"),
        (["check-task", "nowhere.yaml"], "no such task file: nowhere.yaml"),
        (["new-method", "3d"], "cannot name a method"),
        (["new-method", "deebert"], "a method called 'deebert' is registered already"),
        (["train", "mcid", "--method", "deebart", "--out", "x"], "unknown method 'deebart'; did you mean 'deebert'"),
        (["train", "mcid", "--method", "deebert", "--param", "a", "--out", "x"], "--param takes key=value"),
    ],
)
def test_bad_input_is_named_in_one_sentence(args, sentence):
    done = call(*args)
    assert done.exit_code == 2
    assert sentence in done.output
    assert done.output.count("\n") == 1


def test_wrong_options_are_refused_by_the_parser():
    assert call("run", "quick", "--taskz", "a").exit_code == 2
    assert "Invalid value for '--seed'" in call("train", "t", "--method", "full", "--out", "o", "--seed=-1").output
    assert call("frobnicate").exit_code == 2


# ---------------------------------------------------------------------------------------------- results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_results(folder)
    return folder


def test_table_on_the_terminal(results):
    done = call("table", results)
    assert done.exit_code == 0
    assert "Points against the full model at equal cost" in done.output
    for text in ("full depth", "deebert", "ms/row", "≤50%"):
        assert text in done.output


def test_table_as_a_file(results):
    done = call("table", results, "--format", "latex")
    assert done.exit_code == 0
    assert r"\toprule" in done.output
    assert (results / "table.tex").is_file()
    assert call("table", results, "--format", "html").exit_code == 2


def test_table_and_plot_of_some_methods(results, monkeypatch):
    done = call("table", results, "--methods", "deebert")
    assert done.exit_code == 0
    assert "deebert" in done.output
    assert "full depth" in done.output  # what the others are measured against
    assert "pabee" not in done.output
    drawn = []
    listing = FigureKind("curves", "", "", lambda found: drawn.extend(found.methods))
    monkeypatch.setattr("benchmarks.analysis.figures.FIGURES", [listing])
    assert call("plot", results, "--methods", "deebert", "static", "--out", results / "mine").exit_code == 0
    assert drawn == ["full", "deebert", "static", "majority"]
    drawn.clear()
    assert call("plot", results, "--tasks", "mcid").exit_code == 0
    assert "pabee" in drawn
    unknown_task = call("plot", results, "--tasks", "mcit")
    assert (unknown_task.exit_code, "did you mean 'mcid'" in unknown_task.output) == (2, True)
    unknown = call("plot", results, "--methods", "deebart")
    assert unknown.exit_code == 2
    assert "unknown method in these results 'deebart'; did you mean 'deebert'" in unknown.output


@pytest.mark.parametrize("table_format", ["md", "csv", "long"])
def test_a_table_of_some_methods_takes_no_place_of_the_complete_one(results, table_format):
    complete = call("table", results, "--format", table_format)
    before = {path: path.read_bytes() for path in results.iterdir() if path.is_file()}
    done = call("table", results, "--methods", "deebert", "--format", table_format)
    assert done.exit_code == 0, done.output
    assert ("pabee" in complete.stdout, "pabee" in done.stdout, "deebert" in done.stdout) == (True, False, True)
    assert done.stderr == f"of some methods: printed, and not written into {results}\n"
    assert {path: path.read_bytes() for path in results.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("words", [["--tasks", "mcid"], ["--methods", "deebert"]])
def test_figures_of_some_take_no_place_of_the_complete_ones(tmp_path, monkeypatch, words):
    write_results(tmp_path)
    monkeypatch.setattr("benchmarks.analysis.figures.FIGURES", [FigureKind("curves", "", "", lambda _: Figure())])
    assert call("plot", tmp_path).output == f"{tmp_path / 'curves.png'}\n"
    (tmp_path / "curves.png").write_text("of all")
    assert call("plot", tmp_path, *words).output == f"{tmp_path / 'selected' / 'curves.png'}\n"
    elsewhere = tmp_path / "elsewhere"
    assert call("plot", tmp_path, *words, "--out", elsewhere).output == f"{elsewhere / 'curves.png'}\n"
    assert (tmp_path / "curves.png").read_text() == "of all"
    assert "is a file; give a folder" in call("plot", tmp_path, "--out", tmp_path / "curves.png").output


def test_plot(results):
    done = call("plot", results)
    assert done.exit_code == 0
    assert str(results / "curves.png") in done.output
    assert not (results / "curves.pdf").exists()
    assert call("plot", results, "--format", "svg").exit_code == 0
    assert (results / "curves.svg").is_file()
    unknown = call("plot", results, "--format", "gif")
    assert (unknown.exit_code, "unknown figure format 'gif'" in unknown.output) == (2, True)


# ---------------------------------------------------------------------------------------------- list, doctor


def test_list_names_all_four_kinds():
    done = call("list")
    assert done.exit_code == 0
    for name in ("consistentee", "movie-snippets", "minilm-l6", "quick", "Methods", "Tasks", "Backbones", "Suites"):
        assert name in done.output


def test_list_says_where_the_rows_of_a_task_come_from():
    sources = {line.split()[0]: line.rstrip() for line in call("list", "tasks").output.splitlines() if line.split()}
    assert sources["mcid"].endswith("--data")
    assert sources["rte"].endswith("--data or the hub")
    assert "package, " in sources["movie-snippets"]


def test_list_of_suites_is_a_line_each_and_detail_says_more():
    lines = [line for line in call("list", "suites").output.splitlines() if line.strip()]
    assert len(lines) == 3 + len(list_suites())
    assert any(line.split()[0] == "quick" and line.split()[-3:-1] == ["in", "packages"] for line in lines[3:])
    assert "disk gb: 0.6" in call("list", "suites", "--detail").output


def test_a_method_that_cannot_be_imported_is_listed_with_the_reason(monkeypatch):
    from benchmarks.commands import inventory

    monkeypatch.setattr(inventory, "available_methods", lambda *_: {"broken": None})
    monkeypatch.setattr(inventory, "method_class_of", lambda name: (_ for _ in ()).throw(UserError("no module x")))
    done = call("list", "methods")
    assert "unavailable" in done.output
    assert "no module x" in done.output


BROKEN_PLUGINS = {
    "ends_the_process": ("raise SystemExit(3)", "SystemExit: 3"),
    "lacks_a_module": ("import nothing_like_it", "No module named 'nothing_like_it'"),
    "cannot_be_read": ("class Mine(:", "SyntaxError"),
    "knows_no_class": ("", "has no attribute 'Mine'"),
    "is_no_method": ("Mine = 3", "is not a subclass of consistentee.Method"),
    "says_little": (
        "from consistentee import Method\nclass Mine(Method):\n    name = paper = 'x'\n    knob = 'x'\n",
        "must be a consistentee.Knob",
    ),
    "is_half_done": (
        "from consistentee import Knob, Method\nclass Mine(Method):\n"
        "    name = paper = 'x'\n    knob = Knob('k', (1.0,))\n",
        "does not define fit and rule",
    ),
}


def test_broken_plugins_never_take_the_command_line_down(monkeypatch, tmp_path):
    from importlib.metadata import EntryPoint

    from benchmarks.commands import inventory
    from consistentee.methods import method

    for name, (source, _) in BROKEN_PLUGINS.items():
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    points = {name: EntryPoint(name, f"{name}:Mine", "consistentee.methods") for name in BROKEN_PLUGINS}
    points["full"] = EntryPoint("full", "baselines.references:Full", "consistentee.methods")
    for module in (inventory, method):
        stand_in = lambda group=method.ENTRY_POINT_GROUP: points if group == method.ENTRY_POINT_GROUP else {}  # noqa: E731
        monkeypatch.setattr(module, "available_methods", stand_in)
    done = call("list", "methods")
    assert done.exit_code == 0
    shown = " ".join(done.output.split())
    assert shown.count("unavailable") == len(BROKEN_PLUGINS)
    for _, reason in BROKEN_PLUGINS.values():
        assert reason in shown
    assert "the backbone itself" in shown


@pytest.fixture
def plugin_folder(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    assert call("new-method", "early gate", "--out", folder).exit_code == 0
    assert call("new-method", "LateGate", "--out", folder / "another_name.py").exit_code == 0
    (folder / "broken.py").write_text("raise SystemExit('no')")
    (folder / "shared.py").write_text("LEARNING_RATE = 1")
    return folder


def test_methods_of_a_folder_are_listed_and_the_broken_file_with_its_reason(plugin_folder, monkeypatch):
    monkeypatch.chdir(plugin_folder.parent)
    done = call("list", "methods", "--methods", "mine/", "nowhere.py")
    assert done.exit_code == 0
    for text in ("early_gate.py:EarlyGate", "another_name.py:LateGate", "SystemExit: no", "no such method file"):
        assert text in done.output
    assert done.output.count("unavailable") == 2


def test_run_takes_the_methods_of_a_folder(runs, plugin_folder):
    done = call("run", "quick", "--methods", "full", f"{plugin_folder}/")
    assert done.exit_code == 0, done.output
    ((_, filters, _),) = runs.calls
    gates = [f"{plugin_folder}/another_name.py:LateGate", f"{plugin_folder}/early_gate.py:EarlyGate"]
    assert filters.methods == ["full", *gates]
    assert f"unavailable: {plugin_folder}/broken.py" in done.output


def test_run_takes_all_methods_of_one_file(runs, plugin_folder):
    assert call("run", "quick", "--methods", plugin_folder / "early_gate.py").exit_code == 0
    assert runs.calls[0][1].methods == [f"{plugin_folder}/early_gate.py:EarlyGate"]


def test_check_method_ends_with_1_where_the_contract_is_broken(plugin_folder):
    sound = call("check-method", plugin_folder / "early_gate.py", "--families", "bert")
    assert sound.exit_code == 0, sound.output
    assert "all checks pass" in sound.output
    source = (plugin_folder / "early_gate.py").read_text()
    (plugin_folder / "early_gate.py").write_text(source.replace("self.check_knob(model, knob)", "pass"))
    broken = call("check-method", plugin_folder / "early_gate.py", "--families", "bert", "--param", "hidden=8")
    assert broken.exit_code == 1
    assert "rule() takes knobs that are out of range" in broken.output
    assert "the contract is broken" in broken.output


def test_doctor_reports_and_never_waits_for_the_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("CONSISTENTEE_CACHE", str(tmp_path / "cache"))
    answered = threading.Event()

    def answer(*_, **__):
        answered.wait(20)
        return io.BytesIO()

    monkeypatch.setattr("urllib.request.urlopen", answer)
    monkeypatch.setattr(doctor, "HUB_SECONDS", 0.2)
    start = time.perf_counter()
    done = call("doctor", "--data", tmp_path)
    taken = time.perf_counter() - start
    answered.set()
    assert taken < 10
    assert done.exit_code == 0, done.output
    assert "no answer within 0.2 seconds" in done.output
    assert "holds no task" in done.output
    assert "not in the cache" in done.output
    assert "auto trains in" in done.output


def test_doctor_finds_data_and_a_hub(monkeypatch, tmp_path):
    (tmp_path / "mcid").mkdir()
    for split in ("train", "dev", "test"):
        (tmp_path / "mcid" / f"{split}.tsv").write_text("x\n")
    assert doctor.check_data(tmp_path).state.endswith("holds mcid")
    assert doctor.check_data(None).verdict == "warn"
    assert doctor.check_data(tmp_path / "nothing").verdict == "problem"
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO())
    assert doctor.check_hub().verdict == "ok"


def test_doctor_sees_missing_and_old_libraries(monkeypatch):
    monkeypatch.setattr(doctor, "requires", lambda name: ["no-such-library>=1", "numpy>=9999", "rich>=1"])
    found = {finding.subject: finding for finding in doctor.check_requirements()}
    assert found["no-such-library"].verdict == "problem"
    assert "needs >=9999" in found["numpy"].state
    assert "rich" not in found


def test_doctor_ends_with_1_where_there_is_a_problem(tmp_path):
    done = call("doctor", "--data", tmp_path / "nothing")
    assert done.exit_code == 1
    assert "problem" in done.output


def test_doctor_uses_what_it_calls_ok(monkeypatch, tiny_backbone, tiny_decoder_backbone, tmp_path):
    folders = {"encoder": tmp_path / "encoder", "decoder": tmp_path / "decoder"}
    shutil.copytree(tiny_backbone("bert"), folders["encoder"])
    shutil.copytree(tiny_decoder_backbone("llama"), folders["decoder"])
    shipment = Shipment("tiny", (), "")
    encoder = Backbone(str(folders["encoder"]), 4, 32, shipment, "", "mean")
    decoder = Backbone(str(folders["decoder"]), 4, 32, shipment, "")
    monkeypatch.setattr(doctor, "list_backbones", lambda: {"encoder": encoder, "decoder": decoder})
    monkeypatch.setattr(doctor, "list_tasks", list)
    monkeypatch.setattr(doctor, "is_fetched", lambda shipment: True)
    assert [finding.verdict for finding in doctor.check_shipments()] == ["ok", "ok"]
    for folder in folders.values():
        (folder / "model.safetensors").write_bytes(b"damaged")
    found = doctor.check_shipments()
    assert [finding.verdict for finding in found] == ["problem", "problem"]
    assert all("model.safetensors cannot be read" in finding.state for finding in found)
    monkeypatch.setattr(doctor, "is_fetched", lambda shipment: False)
    assert [finding.verdict for finding in doctor.check_shipments()] == ["warn", "warn"]


def test_doctor_warns_of_a_full_disk(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    assert doctor.check_cache().verdict == "problem"


def test_main_is_the_entry_point():
    assert callable(cli.main)


# ---------------------------------------------------------------------------------------------- train, predict


@pytest.fixture(scope="module")
def task_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    rows = [f"{'low' if i % 60 < 30 else 'high'}\tw{i % 60} w{i % 60} w{(i * 7) % 60}" for i in range(150)]
    (folder / "train.tsv").write_text("\n".join(["label\ttext", *rows]) + "\n")
    (folder / "toy.yaml").write_text(
        "schema_version: 1\nname: toy\nversion: 1\ndescription: low words or high words\nmetrics: [accuracy]\n"
        "files: {format: tsv, text: text, label: label, train: train.tsv}\n"
    )
    return folder / "toy.yaml"


@pytest.fixture(scope="module")
def trained(task_file, tiny_backbone, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "toy"
    done = call(
        *("train", task_file, "--method", "pabee", "--backbone", tiny_backbone("bert"), "--out", out),
        *("--param", "tolerance=0.2", "--set", "epochs=1", "max_length=16"),
    )
    assert done.exit_code == 0, done.output
    assert "within 1 point" in done.output
    assert "saved in" in done.output
    return out


def test_predict_shows_label_probability_layer_and_time(trained):
    done = call("predict", trained, "w1 w2 w3", "w55 [bold]w56")
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.output.splitlines() if line.strip().startswith("w")]
    assert len(lines) == 2
    assert "[bold]w56" in done.output  # texts are shown as they are, never read as markup
    label, probability, layer, milliseconds = lines[0][-4:]
    assert label in ("low", "high")
    assert 0.5 <= float(probability) <= 1
    assert 1 <= int(layer) <= 4
    assert float(milliseconds) > 0


def test_predict_with_a_knob(trained):
    done = call("predict", trained, "w1", "--knob", "3")
    assert "patience=3" in done.output
    assert done.output.count("w1") == 1
    refused = call("predict", trained, "w1", "--knob", "77")
    assert refused.exit_code == 2
    assert "must lie in" in refused.output


METHOD_WITH_A_KIND = """
from consistentee import get_method
from consistentee.models.classifiers import CLASSIFIER_KINDS, ClassifierSpec, LinearClassifier
from consistentee.methods.method import method_class_of

class Mine(LinearClassifier):
    "A kind of a user's own."

CLASSIFIER_KINDS["mine"] = Mine

class Patient(method_class_of("pabee")):
    def fit(self, model, task, recipe):
        model.use_classifier(ClassifierSpec("mine"), recipe.seed)
        return super().fit(model, task, recipe)
"""


def test_predict_loads_a_method_with_its_own_kind_of_classifier(task_file, tiny_backbone, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(METHOD_WITH_A_KIND)
    shipped = dict(classifiers.CLASSIFIER_KINDS)
    monkeypatch.setattr(classifiers, "CLASSIFIER_KINDS", dict(shipped))
    monkeypatch.chdir(tmp_path)
    done = call(
        *("train", task_file, "--method", "mine.py:Patient", "--backbone", tiny_backbone("bert"), "--out", "model"),
        *("--set", "epochs=1", "max_length=16", "max_rows=30"),
    )
    assert done.exit_code == 0, done.output
    monkeypatch.setattr(classifiers, "CLASSIFIER_KINDS", shipped)  # as in a new process
    monkeypatch.chdir(tmp_path.parent)
    assert "--allow-code" in done.output
    refused = call("predict", tmp_path / "model", "w1 w2")
    assert refused.exit_code == 2
    assert f"a method in {tmp_path / 'mine.py'}" in " ".join(refused.output.split())
    done = call("predict", tmp_path / "model", "w1 w2", "--allow-code")
    assert done.exit_code == 0, done.output
    assert "w1 w2" in done.output


def test_risk_control_chooses_the_stored_knob(task_file, tiny_backbone, tmp_path):
    """Nothing can be proven of the few validation rows at 1 %; at 90 % anything can."""
    options = ("--method", "calm-softmax", "--backbone", tiny_backbone("bert"), "--set", "epochs=1", "max_length=16")
    done = call("train", task_file, *options, "--out", tmp_path / "safe", "--risk", "0.01", "--bound", "ltt")
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())  # lines break where the console ends
    assert "full depth: no early exit is proven to keep a gap loss of at most 0.01, by ltt on" in said
    assert ModelDescription.read(tmp_path / "safe").default_knob == 1.0
    done = call("train", task_file, *options, "--out", tmp_path / "bold", "--risk", "0.9", "--loss", "consistency")
    assert done.exit_code == 0, done.output
    assert "(consistency loss of at most 0.9, by ucb on" in done.output
    assert ModelDescription.read(tmp_path / "bold").default_knob < 1.0
    refused = call("train", task_file, *options, "--out", tmp_path / "no", "--risk", "0.1", "--bound", "crx")
    assert refused.exit_code == 2
    assert "unknown bound 'crx'; did you mean 'crc'" in refused.output


def test_risk_shows_every_bound_and_its_promise(task_file, trained):
    done = call("risk", trained, task_file, "--risk", "0.3", "0.9")
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.output.splitlines() if line.strip().startswith(("gap", "consistency"))]
    assert [line[:3] for line in lines] == [
        [loss, bound, risk]
        for loss in ("gap", "consistency")
        for risk in ("30", "90")
        for bound in ("crc", "ucb", "ltt")
    ]
    studied = call("risk", trained, task_file, "--risk", "0.3", "--splits", "5", "--loss", "gap")
    assert studied.exit_code == 0, studied.output
    lines = [line.split() for line in studied.output.splitlines() if line.strip().startswith("gap")]
    assert [line[-1] for line in lines] == ["kept"] * 3
    wrong = call("risk", trained, "movie-snippets", "--risk", "0.3")
    assert wrong.exit_code == 2
    assert call("risk", trained, task_file, "--risk", "low").output.startswith("error: --risk takes numbers")


def test_predict_takes_pairs(trained):
    assert call("predict", trained, "--pair", "w1", "w2").exit_code == 0
    assert "w1 | w2" in call("predict", trained, "w1\tw2").output
    odd = call("predict", trained, "--pair", "w1")
    assert odd.exit_code == 2
    assert "even number" in odd.output
    assert call("predict", trained, "a\tb\tc").exit_code == 2
    for nothing in ([" "], ["--pair", "", "w1"], ["--pair", "w1", " "]):
        done = call("predict", trained, *nothing)
        assert (done.exit_code, "an empty text" in done.output) == (2, True)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["epoch=3"], "unknown field of --set 'epoch'; did you mean 'epochs'"),
        (["exit_steps=3"], "unknown field of --set 'exit_steps'"),
        (["seed=3"], "unknown field of --set 'seed'"),
        (["max_rows=9", "learning_rate=-1"], "--set learning_rate: Input should be greater than 0"),
        (["epochs"], "--set takes key=value, got 'epochs'"),
    ],
)
def test_wrong_settings_are_named(pairs, message, tmp_path):
    done = call("train", "mcid", "--method", "pabee", "--out", tmp_path / "model", "--set", *pairs)
    assert done.exit_code == 2
    assert message in done.output


def test_the_help_of_train_names_every_setting():
    shown = call("train", "--help").output
    for declared in (RecipeSettings, TokenRecipeSettings):
        for field in dataclasses.fields(declared):
            assert f"{field.name}=" in shown
    for line in ("epochs=3", "precision=float32|bfloat16|auto", "max_rows=1000", "group_by_length=false"):
        assert line in shown


def test_a_method_that_reads_labels_is_not_trained(tmp_path):
    done = call("train", "movie-snippets", "--method", "oracle", "--out", tmp_path / "model")
    assert done.exit_code == 2
    assert "oracle reads the true labels" in done.output


def test_train_never_writes_over_other_files(trained, tmp_path):
    (tmp_path / "precious").write_text("mine")
    done = call("train", "mcid", "--method", "pabee", "--out", tmp_path)
    assert done.exit_code == 2
    assert "holds other files" in done.output


def test_a_method_that_reads_labels_cannot_predict(trained):
    from consistentee.models.encoder.multi_exit_model import MultiExitModel

    model = MultiExitModel.from_pretrained(trained)
    model.description.method_name = "oracle"
    model.description.method_parameters = {}
    model.description.default_knob = None
    folder = trained.with_name("oracle")
    model.save_pretrained(folder)
    done = call("predict", folder, "w1")
    assert done.exit_code == 2
    assert "cannot predict" in done.output
