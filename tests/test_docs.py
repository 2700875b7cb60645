"""What the documentation shows, works."""

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from small_suite import write_task

from benchmarks.analysis.leaderboard import load_leaderboard
from benchmarks.analysis.plots import curve_on_test, styles
from benchmarks.analysis.results import load_panels
from benchmarks.analysis.tables import write_table
from benchmarks.cli import app
from benchmarks.contract.run import check_method, fault_lines
from benchmarks.contract.watching import FIT_SECTION, KNOB_SECTION, STATE_SECTION, BrokenContractError
from benchmarks.harness.spec import Filters, RecipeSpec, TimingSpec, load_suite
from benchmarks.harness.sweep import run_suite
from benchmarks.new_method import write_method
from consistentee.method import get_method

ROOT = Path(__file__).parent.parent


GUIDE = (ROOT / "docs" / "add_a_method.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


def test_the_method_of_the_guide_is_what_new_method_writes_and_is_short(tmp_path):
    written = write_method("gate", tmp_path).rpartition(":")[0]
    assert CODE[0] == Path(written).read_text(encoding="utf-8")
    assert len(CODE[0].splitlines()) <= 60


def test_the_method_of_the_guide_runs_in_the_quick_suite_and_stands_beside_the_others(
    tmp_path, tiny_backbone, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("gate.py").write_text(CODE[0], encoding="utf-8")
    quick = load_suite("quick")
    small = RecipeSpec(epochs=1, max_length=24, frozen_steps=4)
    timing = TimingSpec(rows=8, batch_sizes=(1, 4))
    suite = quick.model_copy(
        update={"tasks": (str(write_task(tmp_path, "toy")),), "backbones": (str(tiny_backbone("bert")),)}
        | {"recipe": small, "timing": timing, "bootstrap_resamples": 100}
    )
    methods = ["full", "majority", "static", "calm-softmax", "gate.py:Gate"]
    outcome = run_suite(suite, Filters(methods=methods), out=Path("results"), console=Console(file=io.StringIO()))
    assert outcome.failed == ()
    assert outcome.finished == len(methods)
    assert "| Gate | confidence=" in write_table(Path("results")).read_text(encoding="utf-8")
    panels, _ = load_panels(Path("results"))
    assert "Gate" in styles(panels)
    assert len(curve_on_test(panels[0], "Gate").scores) == 75
    for standing in load_leaderboard([Path("results")]).standings:
        assert {entry.method for entry in standing.entries} == {"Gate", "calm-softmax"}
        assert {entry.place for entry in standing.entries} == {1, 2}


@pytest.mark.real
@pytest.mark.timeout(1800)
def test_the_guide_from_nothing_to_a_curve_on_a_real_task(tmp_path):
    commands = re.search(r"```\n(consistentee new-method.*?)```", GUIDE, re.DOTALL).group(1).splitlines()
    for command in commands:
        words = [sys.executable, "-m", "benchmarks.cli", *command.split()[1:]]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert "Gate" in done.stdout
    assert (tmp_path / "results" / "quick" / "curves.png").is_file()


def test_the_rule_with_a_memory_of_the_guide_passes_the_contract(tmp_path):
    imports = "from consistentee import ExitRule\nfrom consistentee.exits import top_probability\n"
    source = CODE[0].replace('ThresholdRule(head_probability("gate"), knob, exit_when="above")', "TwiceSure(knob)")
    path = tmp_path / "gate.py"
    path.write_text(source + imports + CODE[1], encoding="utf-8")
    report = check_method("gate.py:Gate", get_method(f"{path}:Gate"), ["bert"])
    assert report.passed, fault_lines(report)


def test_sections_that_check_method_points_to_exist():
    sections = re.findall(r"^## (.*)$", GUIDE, re.MULTILINE)
    assert {BrokenContractError("x").section, STATE_SECTION, KNOB_SECTION, FIT_SECTION} <= set(sections)


def test_commands_that_the_documents_show_exist():
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    for document in ("README.md", "docs/add_a_method.md", "docs/running.md", "docs/tasks.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        for block in re.findall(r"```\n(.*?)```", text, re.DOTALL):
            shown = set(re.findall(r"^consistentee ([\w-]+)", block, re.MULTILINE))
            assert shown <= known, document


def test_files_that_the_documents_link_to_exist():
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "add_a_method.md"):
        links = re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text(encoding="utf-8"))
        assert links
        for link in links:
            assert (document.parent / link).exists(), f"{document.name}: {link}"
