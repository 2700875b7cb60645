"""Compare a paper's table with our results, and run the missing cells."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.analysis.frames import FULL, Results, load_results
from benchmarks.papers.comparison import PaperComparison
from benchmarks.papers.specs import PaperSetting, PaperTable, load_paper
from benchmarks.run.pool import Schedule
from benchmarks.run.sweep import run_suite
from benchmarks.specs.base import folder_name, short_name
from benchmarks.specs.suites import Filters, load_suite
from benchmarks.store.results_folder import kind_of_results
from consistentee.errors import UserError
from consistentee.methods.method import available_methods

_PUBLISHED = Path("results")


def run_missing(
    name: str,
    backbones: Sequence[str] | None = None,
    *,
    out: Path | None = None,
    data_dir: Path | None = None,
    workers: int = 1,
    dry_run: bool = False,
) -> tuple[list[str], list[str]]:
    """Run the missing cells of a table, one backbone after the other, by the suite of the backbone.

    Returns the failed cells, one line each, and the plan of a dry run, which trains nothing.
    """
    table = load_paper(name)
    tasks = [column.task for column in table.columns]
    failed: list[str] = []
    plan: list[str] = []
    for setting in _settings(table, backbones, table.settings):
        outcome = run_suite(
            load_suite(setting.suite),
            Filters(tasks, [FULL, *_labels(table, setting)], [setting.backbone]),
            out=_folder(table, setting, out),
            data_dir=data_dir,
            schedule=Schedule(workers),
            dry_run=dry_run,
        )
        failed += outcome.failed
        plan += [f"{setting.backbone}, as suite {setting.suite}:", *outcome.plan]
    return failed, plan


def compare_with_ours(
    name: str, backbones: Sequence[str] | None = None, out: Path | None = None
) -> tuple[list[PaperComparison], list[str]]:
    """Return a paper's table with our records of every backbone, and the faults of these records.

    Without ``backbones`` these are the backbones that have records of a method of the table.
    """
    table = load_paper(name)
    found: list[PaperComparison] = []
    faults: dict[str, None] = {}
    for setting in _settings(table, backbones, (*table.settings, table.paper_setting)):
        results = _results_of(table, setting, out)
        command = f"consistentee reproduce {name} --run --backbones {setting.backbone} --data DATA"
        labels = tuple(_labels(table, setting))
        found.append(PaperComparison(table, short_name(setting.backbone), results, labels, command))
        faults |= dict.fromkeys([] if results is None else results.faults)
    known = [one for one in found if {record.label for record in one.records}.intersection(one.labels)]
    return found if backbones is not None else known or found[:1], list(faults)


def _settings(
    table: PaperTable, backbones: Sequence[str] | None, usual: Sequence[PaperSetting]
) -> Sequence[PaperSetting]:
    return usual if backbones is None else [table.setting_for(backbone) for backbone in backbones]


def _folder(table: PaperTable, setting: PaperSetting, out: Path | None) -> Path:
    return (out or Path("runs") / table.name) / folder_name(setting.backbone)


def _results_of(table: PaperTable, setting: PaperSetting, out: Path | None) -> Results | None:
    """Return the records of a backbone: a run begins with what is published, so its folder holds all of it."""
    tasks, backbone = {column.task for column in table.columns}, short_name(setting.backbone)
    for place in (_folder(table, setting, out), _PUBLISHED / setting.suite):
        if kind_of_results(place) == "classification":
            results = load_results(place)
            return results.where([r.task in tasks and r.backbone == backbone for r in results.records])
    return None


def _labels(table: PaperTable, setting: PaperSetting) -> list[str]:
    """Return the curves of a table that the suite of a backbone has, or can have."""
    suite = load_suite(setting.suite)
    known = {*(entry.label for entry in suite.methods), *available_methods(suite.method_group)}
    labels = [label for label in table.labels if label in known]
    if not labels:
        raise UserError(f"suite {suite.name!r} has none of the methods of {table.name}: {', '.join(table.labels)}")
    return labels
