"""The command line: words become arguments, errors one sentence and an exit code; help loads nothing heavy."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import call, succeed
from matplotlib.figure import Figure
from records_by_hand import write_results
from typer.main import get_group

from benchmarks.cli import app
from benchmarks.cli.application import normalised, parsed_parameters
from benchmarks.commands import doctor, inventory
from benchmarks.run.pool import Schedule
from benchmarks.specs.suites import list_suites, load_suite
from consistentee.backbones import hub
from consistentee.errors import UserError, wrong_kind
from consistentee.methods.method import TOKEN_ENTRY_POINT_GROUP, available_methods, method_class_of

COMMANDS = sorted(get_group(app).commands)
HEAVY = ("torch", "transformers", "pandas", "matplotlib", "sklearn", "scipy")
QUICK = Path(__file__).parents[2] / "results" / "quick"


@pytest.fixture
def runs(monkeypatch):
    """Replace run_suite: keeps what it was called with, and ends as ``outcome`` says."""
    seen = SimpleNamespace(calls=[], outcome=SimpleNamespace(table=None, refused=(), failed=(), plan=()))

    def run_suite(suite, filters, **options):
        seen.calls.append((suite, filters, options))
        if isinstance(seen.outcome, BaseException):
            raise seen.outcome
        return seen.outcome

    monkeypatch.setattr("benchmarks.run.sweep.run_suite", run_suite)
    return seen


# ---------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("run s --tasks a,b c --out x --seeds 0 1", "run s --tasks a --tasks b --tasks c --out x --seeds 0 --seeds 1"),
        ("predict DIR --knob 0.5 text --tasks a b", "predict DIR --knob 0.5 text --tasks a b"),
        ("train t --param a=1 b=[2,3]", "train t --param a=1 --param b=[2,3]"),
        ("run s --device cpu --tasks a b --threads 2", "--device cpu --threads 2 run s --tasks a --tasks b"),
        ("predict DIR -- --debug", "predict DIR -- --debug"),
    ],
)
def test_options_take_several_words_and_debug_may_stand_anywhere(words, expected):
    assert normalised(words.split(), get_group(app).commands) == expected.split()


def test_parameters_are_read_as_yaml():
    found = parsed_parameters(["alpha=0.05", "estimator=exact", "shared=true", "name=a=b"])
    assert found == {"alpha": 0.05, "estimator": "exact", "shared": True, "name": "a=b"}
    for bad in ("alpha", "0x=1", "a=[1"):
        with pytest.raises(UserError, match="--param"):
            parsed_parameters([bad])


# ---------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize(("words", "shown"), [(["--help"], "Examples"), (["new-method", "gate"], "written: gate.py")])
def test_some_commands_load_nothing_heavy_and_are_quick(words, shown, tmp_path):
    program = f"import sys; from benchmarks.cli import main; sys.argv = ['consistentee', *{words}]\n"
    program += f"try: main()\nexcept SystemExit: pass\nprint([m for m in {HEAVY} if m in sys.modules])"
    for attempt in ("first", "second"):
        (tmp_path / attempt).mkdir()
        before = os.times()
        done = in_a_process(program, tmp_path / attempt)
        after = os.times()  # of the processor: a busy machine does not make a program slow to start
        seconds = after.children_user + after.children_system - before.children_user - before.children_system
        assert shown in done
        assert done.endswith("[]\n")
        if seconds < 0.7:
            break
    assert seconds < 0.7


def test_the_help_of_every_command_teaches_by_example_and_loads_nothing_heavy(tmp_path):
    assert len(COMMANDS) > 12
    program = "import sys; from typer.testing import CliRunner; from benchmarks.cli import app\n"
    program += f"shown = {{name: CliRunner().invoke(app, [name, '--help']) for name in {COMMANDS}}}\n"
    program += "print([name for name in shown if f'consistentee {name}' not in shown[name].stdout])\n"
    program += "print('mcid' in CliRunner().invoke(app, ['list', 'tasks']).stdout)\n"
    program += f"print({{done.exit_code for done in shown.values()}}, [m for m in {HEAVY} if m in sys.modules])"
    assert in_a_process(program, tmp_path) == "[]\nTrue\n{0} []\n"
    assert call("--version").output.startswith("consistentee ")


def test_examples_and_advice_name_methods_that_exist():
    examples = [line for command in get_group(app).commands.values() for line in command.epilog.splitlines()]
    advice = [str(wrong_kind("x", kind)) for kind in ("encoder", "decoder")]
    named = [
        re.findall(r"[\w.:-]+", words)
        for words in re.findall("--methods? ((?:(?!--).)+)", "\n".join(examples + advice))
    ]
    labels = {entry.label for suite in list_suites() for entry in load_suite(suite).methods}
    known = {*labels, *available_methods(), *available_methods(TOKEN_ENTRY_POINT_GROUP)}
    assert len(named) > 5
    assert {name for names in named for name in names if ".py:" not in name} <= known


def in_a_process(program: str, folder: Path) -> str:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout


# ---------------------------------------------------------------------------------------------- run


def test_run_as_typed(runs, tmp_path):
    succeed(
        *("run", "cpu-6-layers-float32", "--data", tmp_path, "--tasks", "mcid", "rte", "mrpc", "sst2"),
        *("--backbones", "minilm-l6", "--seeds", "0,1", "1", "--retry-failed", "--workers", "4"),
    )
    ((suite, filters, options),) = runs.calls
    assert suite.name == "cpu-6-layers-float32"
    assert filters.tasks == ["mcid", "rte", "mrpc", "sst2"]
    assert (filters.backbones, filters.seeds, filters.methods) == (["minilm-l6"], [0, 1], None)
    assert (options["data_dir"], options["out"]) == (tmp_path, Path("runs/cpu-6-layers-float32"))
    assert (options["retry_failed"], options["fresh"], options["dry_run"]) == (True, False, False)
    assert options["schedule"] == Schedule(4)
    succeed("run", "quick", "--scheduler", "tcp://host:8786")
    assert runs.calls[1][2]["schedule"] == Schedule(address="tcp://host:8786")


def test_run_names_failures_and_ends_with_1(runs):
    runs.outcome = SimpleNamespace(table="THE TABLE", refused=("a: no",), failed=("b: ValueError: no",), plan=("A",))
    done = call("run", "quick")
    assert done.exit_code == 1
    for text in ("A\n", "THE TABLE", "failed: b: ValueError: no", "not defined: a"):
        assert text in done.output


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt("interrupted; all is kept"), 130, "interrupted; all is kept"),
        (UserError("the disk is\n full"), 2, "error: the disk is full"),
        (ZeroDivisionError("oh"), 1, "error: ZeroDivisionError: oh (add --debug"),
    ],
)
def test_errors_are_one_sentence_and_an_exit_code(runs, error, code, said):
    runs.outcome = error
    done = call("run", "quick")
    assert (done.exit_code, done.output.count("\n")) == (code, 1)
    assert said in done.output
    assert "Traceback" in call("run", "quick", "--debug").output


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ("run quik", "unknown suite 'quik'; did you mean 'quick'?"),
        ("run quick --data no-such-folder", "'no-such-folder' does not exist"),
        ("run quick --seeds one", "'--seeds'"),
        ("run quick --tasks ,", "'--tasks' requires an argument"),
        ("run quick --taskz a", "--tasks"),
        ("run quick --workers 0", "'--workers'"),
        ("run quick --workers 2 --scheduler tcp://host:8786", "not both"),
        ("frobnicate", "'frobnicate'"),
        ("list method", "did you mean 'methods'?"),
        ("fetch minilm-16", "did you mean 'minilm-l6'"),
        ("fetch mcid", "shipped in no package"),
        ("table no-such-folder", "holds no results"),
        (f"table {__file__}", "is a file"),
        (f"run quick --out {__file__}", "is a file"),
        ("predict no-such-folder text", "no such model folder"),
        ("table no-such-folder --methods mine/", "no such folder of methods: mine/"),
        ("check-method full --families bertt", "did you mean 'bert'"),
        ("check-task mcdi", "did you mean 'mcid'"),
        ("new-method deebert", "registered already"),
        ("train mcid --method deebart --out x", "did you mean 'deebert'"),
        ("train mcid --method pabee --out x --set epoch=3", "--set unknown key 'epoch'; did you mean 'epochs'"),
        ("train movie-snippets --method oracle --out x", "oracle reads the true labels"),
        ("train no.csv --method pabee --out x", "no such file: no.csv"),
        (f"plot {QUICK} --out /proc/x", "cannot write to /proc/x"),
        (f"table {QUICK} --format md --out /proc/x", "cannot write to /proc/x"),
        ("new-method gate --out /proc/gate.py", "/proc/gate.py"),
    ],
)
def test_bad_input_is_named_in_one_sentence(args, sentence):
    done = call(*args.split())
    assert done.exit_code == 2
    assert sentence in done.output
    assert done.output.count("\n") == 1


# ---------------------------------------------------------------------------------------------- results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_results(folder, labels=("full", "deebert", "pabee", "calm-softmax", "static"))
    return folder


def test_all_tables_or_one_on_the_terminal_in_a_format_and_in_files(results, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.analysis.frames.published_folders", list)  # which would be read every time
    done = succeed("table", results)
    for text in ("Points against the full model at equal cost", "deebert", "ms/row", "1.5x"):
        assert text in done.output
    assert r"\toprule" in call("table", results, "--format", "latex").output
    words = ("--table", "headline", "--methods", "calm-softmax", "pabee", "--tasks", "mcid", "--columns", "at 2x")
    text = call("table", results, "--format", "latex", *words).output
    for line in (r"\label{tab:headline}", r"method & at 2x \\", r"CALM (softmax) & \textbf{"):
        assert line in text
    assert (text.count("{tabular}"), "DeeBERT" in text) == (2, False)
    tests = ("--against", "static", "--format", "latex", "--columns", "at 2x", "--width")
    assert r"\begin{table*}" in call("table", results, *tests, "page").output
    assert r"method & at 2x \\" in call("table", results, *tests, "column").output
    assert "method,points 2x" in call("table", results, "--format", "csv", *words).output
    assert "calm-softmax" in call("table", results, *words).output
    done = call("table", results, "--format", "md", "--table", "tests", "--out", tmp_path)
    assert (done.output, (tmp_path / "tests.md").exists()) == (f"{tmp_path / 'tests.md'}\n", True)
    text = call("table", results, "--against", "static", "--methods", "pabee", "--format", "md").output
    assert ["Points against static" in text, "\n| pabee | 1 | +" in text, "deebert" in text] == [1, 1, 0]
    costs = [("--against", "static", "--cost", cost, "--format", "csv") for cost in ("layers", "speedup_b1")]
    by_layers, by_clock = (call("table", results, *words).output.splitlines() for words in costs)
    assert (by_layers[0], len(by_layers)) == (by_clock[0], len(by_clock))
    for more, sentence in (
        (["--columns", "at 2x"], "name it with --table"),
        (["--cost", "speedup_b1"], "name a method to compare with"),
        (["--against", "static", "--cost", "flops"], "did you mean 'flops_ratio'"),
        (["--against", "statik"], "did you mean 'static'"),
        (["--against", "static", "--methods", "static"], "nothing to compare with static"),
        (["--against", "static", "--table", "tests"], "leave --table out"),
        (["--out", str(tmp_path)], "--out needs --format"),
        (["--format", "long", "--table", "tests"], "'long'"),
        (["--tasks", "mcit"], "did you mean 'mcid'"),
        (["--width", "page"], "--width is that of --format latex"),
        (["--width", "wide"], "'wide'"),
    ):
        done = call("table", results, *more)
        assert (done.exit_code, sentence in done.output) == (2, True), more


def test_table_over_several_folders(results):
    done = succeed("table", results, QUICK)
    for words in ("mcid", "movie-snippets", "Check the times: "):
        assert words in done.output
    assert "holds no results" in call("table", results, results / "nothing").output
    of_texts = call("table", QUICK, QUICK.with_name("decoding-batches"))
    assert (of_texts.exit_code, "holds results of generation" in of_texts.output) == (2, True)


def test_reproduce_shows_both_numbers(monkeypatch, tmp_path):
    """The tables of docs/paper_tables.md are those of all published results."""
    monkeypatch.chdir(tmp_path)
    write_results(tmp_path / "results" / "cpu-6-layers-float32", tasks=("rte",), labels=("full", "static"))
    done = succeed("reproduce", "consistentee-glue", "--backbones", "minilm-l6", "--format", "csv")
    assert "our_backbone" in done.stdout.splitlines()[0]
    assert "'latx'" in call("reproduce", "consistentee-glue", "--format", "latx").output


def test_table_and_plot_of_some_methods(tmp_path, monkeypatch):
    drawn: list[str] = []

    def draw(found):
        drawn.extend(found.methods)
        return Figure(), ""

    monkeypatch.setattr("benchmarks.analysis.figures.FIGURES", {"curves": draw})
    monkeypatch.setattr("benchmarks.analysis.frames.published_folders", list)
    write_results(tmp_path, labels=("full", "majority", "deebert", "pabee", "static"))
    assert call("plot", tmp_path).output == f"{tmp_path / 'curves.png'}\n"
    (tmp_path / "curves.png").write_text("of all")
    drawn.clear()
    for words in (["--methods", "deebert", "static"], ["--tasks", "mcid"]):
        assert call("plot", tmp_path, *words).output == f"{tmp_path / 'selected' / 'curves.png'}\n"
    assert drawn[:4] == ["full", "deebert", "static", "majority"]
    assert call("plot", tmp_path, "--out", tmp_path / "a", "--format", "svg").output == f"{tmp_path / 'a/curves.svg'}\n"
    assert (tmp_path / "curves.png").read_text() == "of all"
    shown = call("table", tmp_path, "--methods", "deebert").output
    assert ("deebert" in shown, "full depth" in shown, "pabee" in shown) == (True, True, False)
    for words, hint in ((["--tasks", "mcit"], "'mcid'"), (["--methods", "deebart"], "'deebert'")):
        assert f"did you mean {hint}" in call("plot", tmp_path, *words).output
    assert "'gif'" in call("plot", tmp_path, "--format", "gif").output
    assert "unknown figure 'curve'" in call("plot", tmp_path, "--figures", "curve").output


# ---------------------------------------------------------------------------------------------- list


def test_list_names_all_kinds_where_rows_come_from_and_methods_that_cannot_be_loaded(monkeypatch):
    def load(name):
        if name == "berxit":
            raise UserError("it cannot be imported")
        return method_class_of(name)

    monkeypatch.setattr(inventory, "method_class_of", load)
    done = succeed("list")
    for name in ("consistentee", "minilm-l6", "quick", "deebert-glue", "Methods", "Tasks", "Backbones", "Suites"):
        assert name in done.output
    sources = {line.split()[0]: line.rstrip() for line in done.output.splitlines() if line.split()}
    assert sources["mcid"].endswith("--data")
    assert sources["rte"].endswith("--data or the hub")
    assert "package, " in sources["movie-snippets"]
    shown = " ".join(done.output.split())
    for text in ("berxit unavailable it cannot be imported", "token-static generation", "tolerance=0.1"):
        assert text in shown


def test_commands_take_the_methods_of_a_folder_and_of_a_file(runs, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    succeed("new-method", "early gate", "--out", folder)
    succeed("new-method", "LateGate", "--out", folder / "another_name.py")
    (folder / "shared.py").write_text("LEARNING_RATE = 1")
    names = [f"{folder}/another_name.py:LateGate", f"{folder}/early_gate.py:EarlyGate"]
    for methods, found in (([f"{folder}/"], names), ([folder / "early_gate.py"], names[1:])):
        succeed("run", "quick", "--methods", "full", *methods)
        assert runs.calls[-1][1].methods == ["full", *found]
    (folder / "broken.py").write_text("raise SystemExit('no')")
    done = call("run", "quick", "--methods", "full", f"{folder}/")
    assert (done.exit_code, f"{folder}/broken.py cannot be imported" in done.output) == (2, True)


def test_check_method_ends_with_1_where_the_contract_is_broken(tmp_path):
    gate = tmp_path / "gate.py"
    succeed("new-method", "gate", "--out", gate)
    source = gate.read_text()
    gate.write_text(source.replace("    def rule(", "    def check_knob(self, *_):\n        pass\n\n    def rule("))
    broken = call("check-method", gate, "--families", "bert", "--param", "hidden=8")
    assert broken.exit_code == 1
    assert "rule() takes knobs that are out of range" in broken.output
    assert "the contract is broken" in broken.output


# ---------------------------------------------------------------------------------------------- doctor


def test_doctor_reports_and_never_waits_for_the_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("CONSISTENTEE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: time.sleep(20))
    monkeypatch.setattr(hub, "DEADLINE", 0.2)
    start = time.perf_counter()
    done = succeed("doctor")
    assert time.perf_counter() - start < 10
    for text in ("no answer within 0.2 seconds", "auto trains in"):
        assert text in done.output
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    full = call("doctor")
    assert (full.exit_code, "problem" in full.output) == (1, True)
