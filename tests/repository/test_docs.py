"""Everything that the documentation shows works; `tox -e notebooks` compares the outputs of notebooks."""

import ast
import json
import re
from pathlib import Path

import pytest
import typer
from documents import DOCUMENTS, ROOT, blocks_of
from shown import DOCUMENTS_WITH_TABLES, PAGES, with_its_signatures, with_its_tables

import benchmarks
import consistentee as ee
import consistentee.signals
import consistentee.training
from benchmarks.cli import app
from benchmarks.commands.own_methods import write_method
from benchmarks.testing.check_method import check_method
from benchmarks.testing.report import FIT_SECTION, KNOB_SECTION, STATE_SECTION, TOKEN_SECTION, BrokenContractError
from consistentee.methods.method import get_method
from consistentee.models import classifiers

GUIDE = (ROOT / "docs" / "add_a_method.md").read_text(encoding="utf-8")
CODE = [block.source for block in blocks_of("docs/add_a_method.md", "python")]


def test_the_method_of_the_guide_is_what_new_method_writes_and_is_short(tmp_path):
    written = write_method("gate", tmp_path).rpartition(":")[0]
    assert CODE[0] == Path(written).read_text(encoding="utf-8")
    assert len(CODE[0].splitlines()) <= 60


def test_the_rule_and_the_kind_of_classifier_of_the_guide_pass_the_contract(tmp_path, monkeypatch):
    monkeypatch.setattr(classifiers, "CLASSIFIER_KINDS", dict(classifiers.CLASSIFIER_KINDS))
    first = "        train_jointly("
    method = CODE[0].replace(first, f'        model.use_classifier(ClassifierSpec("max"), recipe.seed)\n{first}')
    method = method.replace('ThresholdRule(head_probability("gate"), knob, exit_when="above")', "TwiceSure(knob)")
    assert 'ClassifierSpec("max")' in method
    assert "TwiceSure" in method
    imported = "from consistentee import ClassifierSpec\n"
    assert passes_the_contract(tmp_path, method + CODE[1] + imported + CODE[2])


def test_the_method_of_generation_of_the_guide_passes_the_contract(tmp_path):
    assert passes_the_contract(tmp_path, CODE[3], "TokenGate", "llama")


def passes_the_contract(folder: Path, source: str, name: str = "Gate", family: str = "bert") -> bool:
    (folder / "gate.py").write_text(source, encoding="utf-8")
    report = check_method(f"gate.py:{name}", get_method(f"{folder / 'gate.py'}:{name}"), [family])
    assert {finding.verdict for finding in report.findings} == {"pass"}, report.fault_lines()
    return True


def test_sections_that_check_method_points_to_exist():
    sections = re.findall(r"^## (.*)$", GUIDE, re.MULTILINE)
    assert {BrokenContractError("x").section, STATE_SECTION, KNOB_SECTION, FIT_SECTION, TOKEN_SECTION} <= set(sections)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_within_sentences_exist_with_their_options(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    commands = typer.main.get_command(app).commands
    for line in re.findall(r"`(consistentee [^`#]*)`", text):
        command, *words = line.split()[1:]
        assert command in commands, f"{document}: {line}"
        known = {name for parameter in commands[command].params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, f"{document}: {line}"


def test_files_that_the_documents_link_to_exist():
    for document in (*DOCUMENTS, "CONTRIBUTING.md", "results/README.md", "results/generation.md"):
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / document).read_text(encoding="utf-8")):
            assert ((ROOT / document).parent / link).exists(), f"{document}: {link}"


def test_every_public_name_has_its_place_in_the_api_pages():
    pages = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("docs/api/*.md"))
    shown = set(re.findall(r"::: [\w.]+\.(\w+)|`(\w+)`", pages))
    public = {*ee.__all__, *ee.signals.__all__, *ee.training.__all__, *benchmarks.__all__}
    assert public <= {name for pair in shown for name in pair}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_api_pages_show_the_signatures_of_today(page):
    said = page.read_text(encoding="utf-8")
    assert said == with_its_signatures(said), "write them anew: python tests/shown.py"
    assert said.count("<!-- signature -->") == said.count("<!-- ::: ") > 10


PUBLIC_MODULES = {"consistentee", "consistentee.signals", "consistentee.training", "benchmarks"}
SHOWN = {block.place: block.source for document in DOCUMENTS for block in blocks_of(document, "python")}
SHOWN["the template"] = (ROOT / "benchmarks" / "commands" / "method_template.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("source", SHOWN.values(), ids=SHOWN)
def test_examples_import_from_public_modules_alone(source):
    imported = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {getattr(node, "module", alias.name) for node in imported for alias in node.names}
    assert {module for module in modules if module.startswith(("consistentee", "benchmarks"))} <= PUBLIC_MODULES


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_was_executed_and_is_small(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(output["output_type"] != "error" for cell in code for output in cell["outputs"])
    assert path.stat().st_size < 500_000


@pytest.mark.parametrize("document", DOCUMENTS_WITH_TABLES)
def test_a_page_shows_the_tables_of_the_published_results(document):
    said, today = with_its_tables(document)
    assert said == today, "write them anew: python tests/shown.py"
