"""Paper tables by name: which there are, what is missing of ours, running it, and both compared."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.analysis.frames import FULL, Results, load_results, merge
from benchmarks.analysis.paper_tables import Comparison, paper_csv, paper_table
from benchmarks.analysis.rendering import to_csv, to_latex, to_markdown, to_terminal
from benchmarks.analysis.tables import write_text
from benchmarks.specs.base import BaseSuite, display_name, folder_name
from benchmarks.specs.papers import PaperSetting, PaperTable, list_papers, load_paper
from benchmarks.specs.suites import load_suite, select_methods
from benchmarks.store.stored_results import kind_of_results
from benchmarks.terminal import add_columns, add_row, plain_table
from consistentee.errors import UserError, unknown_name
from consistentee.methods.method import available_methods

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

_RESULTS = Path("results")


def inventory() -> "Table":
    """Return the tables that can be named."""
    shown = plain_table("Paper tables")
    add_columns(shown, "name", "what it is", "methods", "tasks", "quoted from")
    for name in list_papers():
        table = load_paper(name)
        methods = dict.fromkeys(method.printed for method in table.methods)
        tasks = [column.printed for column in table.columns]
        add_row(shown, name, table.title, ", ".join(methods), ", ".join(tasks), table.table)
    return shown


@dataclass(frozen=True)
class Reproduction:
    """A paper's table, and where ours are.

    Attributes:
        name: of the table, or of its YAML file.
        table: the paper's.
        backbones: ours; None: those that there are records of.
        out: what runs of it fill, one folder a backbone.
        results: folders to read instead of ``out`` and of the suites' published results, each curve from the first
            that has it; None: those.
    """

    name: str
    table: PaperTable
    backbones: Sequence[str] | None
    out: Path
    results: Sequence[Path] | None

    @classmethod
    def of(
        cls,
        name: str,
        backbones: Sequence[str] | None = None,
        *,
        out: Path | None = None,
        results: Sequence[Path] | None = None,
    ) -> "Reproduction":
        """Return that of a table by its name, or of a YAML file; ``out`` is ``runs/NAME``. Raises UserError."""
        table = load_paper(name)
        return cls(name, table, backbones, Path("runs") / table.name if out is None else out, results)

    def comparisons(self) -> tuple[list[Comparison], list[str]]:
        """Return the table for every backbone asked for; by default for those that there are records of.

        Also what could not be read, or compared with the rest. Raises UserError for a folder without results that was
        asked for.
        """
        table, found = self.table, []
        faults: dict[str, None] = {}
        for setting in self._settings((*table.settings, table.paper_setting)):
            results = self._results_of(setting)
            labels, backbone = _labels(table, setting), display_name(setting.backbone)
            command = f"consistentee reproduce {self.name} --run --backbones {setting.backbone} --data DATA"
            found.append(Comparison(table, backbone, results, tuple(labels), command))
            faults |= dict.fromkeys([] if results is None else results.faults)
        known = [comparison for comparison in found if comparison.results is not None and comparison.results.cells]
        return found if self.backbones is not None else known or found[:1], list(faults)

    def run(self, data_dir: Path | None, workers: int = 1, *, dry_run: bool = False) -> tuple[list[str], list[str]]:
        """Run what is missing, one backbone after the other.

        Returns:
            What failed, a line a cell; and of a dry run, which trains nothing, the plan in lines for people.
        """
        from benchmarks.run.pool import Schedule
        from benchmarks.run.sweep import run_suite

        failed: list[str] = []
        plan: list[str] = []
        for setting, suite, out, published in self._runs():
            outcome = run_suite(
                suite,
                out=out,
                data_dir=data_dir,
                published_dir=published,
                schedule=Schedule(workers),
                dry_run=dry_run,
            )
            failed += outcome.failed
            plan += [f"{setting.backbone}, as suite {setting.suite}:", *outcome.plan]
        return failed, plan

    def write(self, comparisons: Sequence[Comparison], table_format: str) -> Path:
        """Write the table in one format, and return the file. Raises UserError for an unknown format."""
        if table_format not in _FORMATS:
            raise unknown_name("table format", table_format, _FORMATS)
        ending = "tex" if table_format == "latex" else table_format
        path = self.out / f"{self.table.name}.{ending}"
        write_text(path, _FORMATS[table_format](comparisons))
        return path

    def _settings(self, unasked: Sequence[PaperSetting]) -> list[PaperSetting]:
        if self.backbones is None:
            return list(unasked)
        return [self.table.setting_for(backbone) for backbone in self.backbones]

    def _runs(self) -> Iterator[tuple[PaperSetting, BaseSuite, Path, Path | None]]:
        """Yield every backbone, its suite cut to the table, its folder, and what is published of the suite."""
        for setting in self._settings(self.table.settings):
            base = load_suite(setting.suite)
            tasks = tuple(column.task for column in self.table.columns)
            suite = base.model_copy(
                update={
                    "name": self.table.name,
                    "description": self.table.title,
                    "tasks": tasks,
                    "task_overrides": {task: own for task, own in base.task_overrides.items() if task in tasks},
                    "backbones": (setting.backbone,),
                    "methods": tuple(select_methods(base, [FULL, *_labels(self.table, setting)])),
                }
            )
            published = _RESULTS / base.name
            yield setting, suite, self._folder(setting), published if kind_of_results(published) else None

    def _folder(self, setting: PaperSetting) -> Path:
        return self.out / folder_name(setting.backbone)

    def _results_of(self, setting: PaperSetting) -> Results | None:
        """Return the records of a backbone: a run begins with what is published, so its folder holds all of it."""
        places = self.results
        if places is None:
            possible = (self._folder(setting), _RESULTS / setting.suite)
            places = [place for place in possible if kind_of_results(place) == "classification"][:1]
        tasks, backbone = {column.task for column in self.table.columns}, display_name(setting.backbone)
        found = []
        for place in dict.fromkeys(places):
            results = load_results(place)
            cells = [c for c in results.cells if c.record.task in tasks and c.record.backbone == backbone]
            found.append(results.with_cells(cells))
        return merge(found) if found else None


def _labels(table: PaperTable, setting: PaperSetting) -> list[str]:
    """Return those curves of a table that the suite of a backbone has, or can have."""
    suite = load_suite(setting.suite)
    known = {*(entry.label for entry in suite.methods), *available_methods(suite.method_group)}
    labels = [label for label in table.labels if label in known]
    if not labels:
        raise UserError(f"suite {suite.name!r} has none of the methods of {table.name}: {', '.join(table.labels)}")
    return labels


def for_terminal(comparisons: Sequence[Comparison]) -> "Group":
    """Return the tables for a terminal."""
    return to_terminal([paper_table(comparison) for comparison in comparisons])


_FORMATS: dict[str, Callable[[Sequence[Comparison]], str]] = {
    "md": lambda comparisons: to_markdown([paper_table(comparison) for comparison in comparisons]),
    "csv": lambda comparisons: to_csv(paper_csv(comparisons)),
    "latex": lambda comparisons: to_latex([paper_table(comparison) for comparison in comparisons]),
}
