"""Commands of a suite: run it, publish its results, and show results as tables, figures and a report."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from benchmarks.cli.application import (
    BackbonesOption,
    DataOption,
    MethodsOption,
    TasksOption,
    command,
    out_folder,
    several,
)
from benchmarks.terminal import RESULTS_WIDTH, output_console
from consistentee.errors import UserError
from consistentee.extras import check_extra

if TYPE_CHECKING:
    from benchmarks.analysis.frames import Results

_TABLES = "headline, scores, tests, promises, own-layers, costs, batches, points or provenance"
ResultsArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run, or published results.")]
FoldersArgument = Annotated[
    list[Path], typer.Argument(metavar="DIR...", help="Runs or published results; the first with a curve counts.")
]
OnlyMineOption = Annotated[
    bool, typer.Option("--only-mine", help="Leave out published results, which otherwise stand beside a run's.")
]


def _results(
    folders: list[Path], methods: list[str] | None, tasks: list[str] | None, only_mine: bool, *more: str
) -> "Results":
    """Read what a table or figure shows: runs among published results, narrowed to methods (and ``more``) and tasks."""
    from benchmarks.analysis.frames import load_folders, published_folders
    from benchmarks.commands.own_methods import find_methods
    from benchmarks.specs.base import label_of

    labels = None if methods is None else [*map(label_of, find_methods(methods)), *more]
    found = load_folders(folders, () if only_mine else published_folders())
    return found.only(labels, tasks) if labels or tasks else found


@command(
    "Run a suite",
    "consistentee run quick",
    "consistentee run cpu-6-layers-float32 --data DATA --tasks mcid --methods full,fastbert mine.py:MyMethod",
    "consistentee run cpu-6-layers-float32 --data DATA --workers 4 --dry-run",
    "Run it again at any time: only missing cells are computed.",
)
def run(
    suite: Annotated[str, typer.Argument(help="A suite's name or YAML file; give it before the options.")],
    *,
    tasks: TasksOption = None,
    methods: MethodsOption = None,
    backbones: BackbonesOption = None,
    seeds: Annotated[list[int] | None, several("--seeds", "Only these seeds.", "0 1 ...", min=0)] = None,
    data: DataOption = None,
    out: Annotated[Path | None, out_folder("The run's folder.", "runs/SUITE")] = None,
    published: Annotated[Path | None, typer.Option(help="Results counted as done; default: results/SUITE.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute everything again.")] = False,
    timing: Annotated[bool, typer.Option("--timing/--no-timing", help="Measure times after the cells.")] = True,
    only_timing: Annotated[bool, typer.Option("--only-timing", help="Only time finished cells.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed cells again.")] = False,
    workers: Annotated[int, typer.Option(metavar="N", min=1, help="Cells that run at once on this machine.")] = 1,
    scheduler: Annotated[str | None, typer.Option(metavar="ADDRESS", help="A dask cluster: tcp://host:8786.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print plan and time estimate; run nothing.")] = False,
) -> None:
    """Run the missing cells of a suite: train, measure and time them; then write tables and a figure."""
    from benchmarks.commands.own_methods import find_methods
    from benchmarks.run.pool import Schedule
    from benchmarks.run.sweep import run_suite
    from benchmarks.specs.suites import Filters, load_suite

    spec = load_suite(suite)
    if scheduler is not None and workers > 1:
        raise UserError("give --workers or --scheduler, not both: a cluster has its own workers")
    if scheduler is not None:
        check_extra("cluster", "--scheduler")
    labels = None if methods is None else find_methods(methods)
    outcome = run_suite(
        spec,
        Filters(tasks, labels, backbones, seeds),
        out=out or Path("runs") / spec.name,
        data_dir=data,
        fresh=fresh,
        retry_failed=retry_failed,
        train=not only_timing,
        times=timing,
        published_dir=published,
        schedule=Schedule(workers, scheduler),
        dry_run=dry_run,
    )
    for line in outcome.plan:
        print(line)
    if outcome.table is not None:
        output_console(RESULTS_WIDTH).print(outcome.table)
    for word, lines in (("not defined", outcome.refused), ("failed", outcome.failed)):
        for line in lines:
            print(f"{word}: {line}", file=sys.stderr)
    raise typer.Exit(bool(outcome.failed))


@command("Run a suite", "consistentee publish runs/quick")
def publish(
    run_folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run, such as runs/quick.")],
    out: Annotated[Path | None, out_folder("Folder to write.", "results/SUITE")] = None,
) -> None:
    """Write the results of a run as a few small files: records, times, rows, tables, one figure."""
    from benchmarks.commands.publish import publish_run

    for path in publish_run(run_folder, out):
        print(path)


@command(
    "See results",
    'consistentee table runs/quick --format latex --table headline --columns "at 2x" area > headline.tex',
    "consistentee table results/cpu-6-layers-float32 --against fastbert --cost flops_ratio --format md",
    "consistentee table results/cpu-6-layers-float32 results/cpu-12-layers --format latex --width page --out tables",
)
def table(
    results: FoldersArgument,
    *,
    table_format: Annotated[
        Literal["md", "csv", "latex"] | None,
        typer.Option("--format", help="Print as text; csv holds every budget."),
    ] = None,
    table_name: Annotated[str | None, typer.Option("--table", metavar="NAME", help=f"Only one: {_TABLES}.")] = None,
    columns: Annotated[list[str] | None, several("--columns", "Only these, of --table or --against.")] = None,
    against: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Only the differences of all methods from this one, tested.")
    ] = None,
    cost: Annotated[
        str | None, typer.Option(metavar="COST", help="Of --against: flops_ratio, speedup_b1 (the clock), ....")
    ] = None,
    width: Annotated[
        Literal["column", "page"] | None,
        typer.Option(help="Of LaTeX; by default a column of a paper, or the page for a table that does not fit."),
    ] = None,
    methods: MethodsOption = None,
    tasks: TasksOption = None,
    only_mine: OnlyMineOption = False,
    out: Annotated[Path | None, out_folder("Write a file for each table, in md, latex or csv, here.", False)] = None,
) -> None:
    """Show all methods at equal cost, of a run among published results, or of several folders of the same recipes.

    Methods that are named are compared on the tasks that they all have.
    """
    from rich.text import Text

    from benchmarks.analysis.equal_cost import LAYERS
    from benchmarks.analysis.provenance import check_times
    from benchmarks.analysis.rendering import formatted, to_csv, to_terminal, write_tables
    from benchmarks.analysis.tables import budget_lines, table_against, table_named, tables_of

    for wrong, sentence in (
        (columns and not (table_name or against), "--columns are those of one table; name it with --table"),
        (table_name and against, "--against shows a table of its own; leave --table out"),
        (cost and not against, "--cost is that of --against; name a method to compare with"),
        (width and table_format != "latex", "--width is that of --format latex"),
        (out and table_format is None, "--out needs --format"),
    ):
        if wrong:
            raise UserError(sentence)
    found = _results(results, methods, tasks, only_mine, *([against] if against else []))
    if against is not None:
        chosen = table_against(found, against, cost or LAYERS)
        if chosen is None:
            raise UserError(f"nothing to compare with {against}: no other method and full model ran on its tasks")
    else:
        chosen = None if table_name is None else table_named(found, table_name)
    for fault in found.faults if table_format else ():
        print(f"left out: {fault}", file=sys.stderr)
    if chosen is None and table_format == "csv" and out is None:
        print(to_csv(budget_lines(found)), end="")
        return
    shown = tables_of(found) if chosen is None else [chosen if columns is None else chosen.only(columns)]
    if table_format is None:
        lines = map(Text, check_times(found))
        # The first table stands last, next to the prompt.
        output_console(RESULTS_WIDTH).print(to_terminal(reversed(shown), found.faults), *lines, sep="\n")
    elif out is not None:
        for path in write_tables(shown, out, table_format, width):
            print(path)
    else:
        print(formatted(shown, table_format, width), end="")


@command(
    "See results",
    "consistentee reproduce consistentee-glue",
    "consistentee reproduce consistentee-glue --backbones bert-base-uncased --results runs/paper-bert-base",
)
def reproduce(
    name: Annotated[str, typer.Argument(help="A table's name (see `list papers`) or YAML file.")],
    *,
    backbones: BackbonesOption = None,
    results: Annotated[Path | None, typer.Option(help="A run of yours; default: what is published.")] = None,
    table_format: Annotated[
        Literal["md", "csv", "latex"] | None, typer.Option("--format", help="Print as text.")
    ] = None,
) -> None:
    """Compare a paper's table with our numbers at the printed speed-ups (score @ speed-up); csv adds differences."""
    from benchmarks.analysis.rendering import formatted, to_csv, to_terminal
    from benchmarks.commands.reproduce import compare_with_ours, paper_csv, paper_table

    comparisons, faults = compare_with_ours(name, backbones, results)
    for fault in faults:
        print(f"left out: {fault}", file=sys.stderr)
    if table_format is None:
        output_console().print(to_terminal(map(paper_table, comparisons)))
    elif table_format == "csv":
        print(to_csv(paper_csv(comparisons)), end="")
    else:
        print(formatted(map(paper_table, comparisons), table_format), end="")


@command(
    "See results",
    "consistentee plot runs/quick",
    "consistentee plot results/cpu-6-layers-float32 --format pdf --tasks mcid mrpc --methods deebert static",
    "consistentee plot runs/mine runs/other --only-mine --figures curves",
)
def plot(
    results: FoldersArgument,
    *,
    methods: MethodsOption = None,
    tasks: TasksOption = None,
    only_mine: OnlyMineOption = False,
    out: Annotated[
        Path | None, out_folder("Folder of the figures.", "the first DIR; with --methods or --tasks DIR/selected")
    ] = None,
    figure_format: Annotated[
        Literal["png", "pdf", "svg"], typer.Option("--format", help="Format of the files; fonts are embedded.")
    ] = "png",
    figures: Annotated[list[str] | None, several("--figures", "Only these: equal-cost, curves, exits.")] = None,
) -> None:
    """Draw figures with captions: points at equal cost, curves, exit layers; of a run among published results.

    Methods that are named are compared on the tasks that they all have.
    """
    from benchmarks.analysis.figures import FIGURES, write_figures

    found = _results(results, methods, tasks, only_mine)
    folder = results[0] if methods is None and tasks is None else results[0] / "selected"
    paths, missing = write_figures(found, out or folder, figures or list(FIGURES), figure_format)
    for path in paths:
        print(path)
    for line in [*(f"not drawn: {line}" for line in missing), *(f"left out: {fault}" for fault in found.faults)]:
        print(line, file=sys.stderr)


@command("See results", "consistentee report runs/quick")
def report(results: ResultsArgument) -> None:
    """Write report.html: headline, curves to explore, exits, provenance and warnings; it needs no network."""
    from benchmarks.analysis.frames import load_results
    from benchmarks.analysis.report import write_report

    print(write_report(load_results(results), results))


@command("See results", "consistentee verify results/quick")
def verify(results: ResultsArgument) -> None:
    """Check all files of a results folder: schemas, hashes, keys, rows, stages, leftovers; name every fault.

    Scores and layers are computed again from the rows.
    """
    from benchmarks.commands.publish import faults_of

    faults = list(faults_of(results))
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        raise typer.Exit(2)
    print(f"{results}: no faults")
