"""Commands of a suite: run it, publish its results, and show results as tables, figures and a report."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cli.application import (
    BackbonesOption,
    DataOption,
    TasksOption,
    WorkersOption,
    app,
    examples,
    finish,
    found_methods,
    labels_of_methods,
    numbers,
    results_folder,
    several,
)
from benchmarks.terminal import RESULTS_WIDTH, output_console
from consistentee.errors import UserError

run_command = partial(app.command, rich_help_panel="Run a suite")
command = partial(app.command, rich_help_panel="See results")

OnlyMethodsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--methods", metavar="A B ...", help="Only these, by label, file.py:Class or folder/ (and the full model)."
    ),
]

ResultsArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="The folder of a run, such as runs/quick, or published results.")
]


@run_command(
    epilog=examples(
        "consistentee run quick",
        "consistentee run cpu-6-layers --data DATA --tasks mcid rte mrpc sst2 --backbones minilm-l6",
        "consistentee run cpu-6-layers --methods full,consistentee mine.py:MyMethod",
        "consistentee run cpu-6-layers --data DATA --dry-run",
        "consistentee run cpu-6-layers --data DATA --workers 4",
        "Run it again at any time: only what is missing is computed.",
    )
)
def run(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="A suite's name, or a YAML file; before any option.")],
    *,
    tasks: TasksOption = None,
    methods: Annotated[
        list[str] | None, several("--methods", "Only these methods or labels, file.py:Class, or all of folder/.")
    ] = None,
    backbones: BackbonesOption = None,
    seeds: Annotated[list[str] | None, several("--seeds", "Seeds of the training.", "0 1 ...")] = None,
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run's folder.", show_default="runs/SUITE")] = None,
    published: Annotated[
        Path | None,
        typer.Option(
            "--published", help="Published results that count as done.", show_default="results/SUITE, where it is"
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute everything again.")] = False,
    timing: Annotated[
        bool, typer.Option("--timing/--no-timing", help="Measure times after the cells; a later run can still do it.")
    ] = True,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what failed before.")] = False,
    workers: WorkersOption = 1,
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", metavar="ADDRESS", help="Run on a dask cluster, such as tcp://host:8786."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and a time estimate; run nothing.")
    ] = False,
) -> None:
    """Run what is missing of a suite: train, measure, time; then write tables and figures."""
    from benchmarks.specs.suites import Filters, load_suite

    spec = load_suite(suite)
    filters = Filters(tasks, found_methods(methods), backbones, numbers("--seeds", seeds))
    if scheduler is not None and workers > 1:
        raise UserError("give --workers or --scheduler, not both: a cluster has workers of its own")
    out = results_folder(out) or Path("runs") / spec.name
    from benchmarks.run.pool import Schedule
    from benchmarks.run.sweep import run_suite

    outcome = run_suite(
        spec,
        filters,
        out=out,
        data_dir=data,
        fresh=fresh,
        retry_failed=retry_failed,
        times=timing,
        published_dir=published,
        schedule=Schedule(workers, scheduler),
        dry_run=dry_run,
    )
    for line in outcome.plan:
        print(line)
    if outcome.table is not None:
        output_console(RESULTS_WIDTH).print(outcome.table)
    for line in outcome.refused:
        print(f"not defined: {line}", file=sys.stderr)
    for line in outcome.failed:
        print(f"failed: {line}", file=sys.stderr)
    finish(bool(outcome.failed))


@run_command(
    epilog=examples(
        "consistentee publish runs/quick",
        "consistentee publish runs/quick --out elsewhere/quick",
    )
)
def publish(
    run_folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run, such as runs/quick.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write.", show_default="results/SUITE")] = None,
) -> None:
    """Write what a run left behind as a few small files: cells, timings, rows, tables, one figure."""
    from benchmarks.commands.publish import publish_run

    for path in publish_run(run_folder, out):
        print(path)


@command(
    epilog=examples(
        "consistentee table runs/quick",
        "consistentee table runs/quick --format latex > table.tex",
        "consistentee table results/cpu-6-layers --published --format md",
    )
)
def table(
    results: ResultsArgument,
    table_format: Annotated[
        str | None, typer.Option("--format", metavar="md|csv|latex|all|long", help="Write and print this format.")
    ] = None,
    methods: OnlyMethodsOption = None,
    published: Annotated[bool, typer.Option("--published", help="With the figures that papers print.")] = False,
) -> None:
    """Show the results of a run; with --format, also write them: table.md, .csv, .tex (or published.md, ...).

    md: one page; all, latex: every table; csv: a line an operating point; long: a line a cell and knob.

    Tables of some --methods are printed and not written: the files are of all.
    """
    from benchmarks.analysis import paper_tables, rendering, tables
    from benchmarks.analysis.frames import load_results

    labels = labels_of_methods(methods)
    found = load_results(results, labels)
    if table_format is None:
        shown = paper_tables.published_tables(found) if published else tables.terminal_tables(found)
        output_console(RESULTS_WIDTH).print(rendering.to_terminal(shown, found.faults))
        return
    text = (paper_tables.render_published if published else tables.render)(found, table_format)
    print(text, end="")
    if labels is not None:
        print(f"of some methods: printed, and not written into {results}", file=sys.stderr)
        return
    path = results / f"{'published' if published else 'table'}{tables.FORMATS[table_format][0]}"
    tables.write_text(path, text)
    print(f"written to {path}", file=sys.stderr)


@command(
    epilog=examples(
        "consistentee reproduce",
        "consistentee reproduce consistentee-glue",
        "consistentee reproduce pabee-glue --format csv > pabee.csv",
        "consistentee reproduce deebert-glue --dry-run --data DATA",
        "consistentee reproduce consistentee-glue --run --backbones bert-base-uncased",
        "Without --run nothing is trained: ours are published results and those of earlier --run.",
    )
)
def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A table's name, or its YAML file; without, all are listed.")
    ] = None,
    *,
    backbones: BackbonesOption = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(
            "--results",
            metavar="DIR ...",
            help="Folders of ours; each curve is of the first that has it.",
            show_default="runs/NAME, results/SUITE",
        ),
    ] = None,
    table_format: Annotated[
        str | None, typer.Option("--format", metavar="md|csv|latex", help="Write and print this format.")
    ] = None,
    run_missing: Annotated[bool, typer.Option("--run", help="First run what is missing, see `run`.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what --run would do, and how long.")] = False,
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of what --run trains.", show_default="runs/NAME")
    ] = None,
    workers: WorkersOption = 1,
) -> None:
    """Compare a paper's table with ours: the same tasks at the printed speed-ups, with intervals and what differs."""
    from benchmarks.commands import reproduce as papers

    if name is None:
        output_console().print(papers.inventory())
        return
    reproduction = papers.Reproduction.of(name, backbones, out=results_folder(out), results=results)
    failed, plan = reproduction.run(data, workers, dry_run=dry_run) if run_missing or dry_run else ([], [])
    if dry_run:
        print("\n".join(plan))
        return
    comparisons, faults = reproduction.comparisons()
    for fault in faults:
        print(f"left out: {fault}", file=sys.stderr)
    if table_format is None:
        output_console(RESULTS_WIDTH).print(papers.for_terminal(comparisons))
    else:
        path = reproduction.write(comparisons, table_format)
        print(path.read_text(encoding="utf-8"), end="")
        print(f"written to {path}", file=sys.stderr)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    finish(bool(failed))


@command(
    epilog=examples(
        "consistentee plot runs/quick",
        "consistentee plot results/cpu-6-layers --format pdf --tasks mcid rte --methods consistentee deebert static",
    )
)
def plot(
    results: ResultsArgument,
    methods: OnlyMethodsOption = None,
    tasks: TasksOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the figures.", show_default="DIR; of some methods or tasks DIR/selected"),
    ] = None,
    figure_format: Annotated[
        str, typer.Option("--format", metavar="png|pdf|svg", help="Of the files; letters are embedded.")
    ] = "png",
) -> None:
    """Draw the figures of a results folder with their captions: points at equal cost, curves, exit layers, ....

    Those of some --methods or --tasks go to its folder selected: the figures of all keep their places.
    """
    from benchmarks.analysis.figures import write_figures
    from benchmarks.analysis.frames import load_results

    labels = labels_of_methods(methods)
    found = load_results(results, labels, tasks)
    folder = results if labels is None and tasks is None else results / "selected"
    paths, missing = write_figures(found, results_folder(out) or folder, file_format=figure_format)
    for path in paths:
        print(path)
    for line in missing:
        print(f"not drawn: {line}", file=sys.stderr)


@command(epilog=examples("consistentee report runs/quick"))
def report(results: ResultsArgument) -> None:
    """Write report.html: headline, curves to explore, exits, provenance and warnings; it needs no network."""
    from benchmarks.analysis.frames import load_results
    from benchmarks.analysis.report import write_report

    print(write_report(load_results(results), results))


@command(
    epilog=examples(
        "consistentee leaderboard runs/quick",
        "consistentee leaderboard results/cpu-6-layers results/cpu-12-layers --format md > leaderboard.md",
    )
)
def leaderboard(
    results: Annotated[
        list[Path], typer.Argument(metavar="DIR", help="Results folders, of this machine and of others.")
    ],
    table_format: Annotated[
        str | None, typer.Option("--format", metavar="md|csv|latex", help="Print this format.")
    ] = None,
) -> None:
    """Compare the methods of several results folders at equal cost; recipes are never mixed."""
    from benchmarks.analysis.rendering import to_terminal
    from benchmarks.analysis.tables import leaderboard_tables, load_leaderboard, render_leaderboard

    found = load_leaderboard(results)
    if table_format is None:
        output_console(RESULTS_WIDTH).print(to_terminal(leaderboard_tables(found), found.faults))
        return
    print(render_leaderboard(found, table_format), end="")
    for fault in found.faults:
        print(f"left out: {fault}", file=sys.stderr)


@command(epilog=examples("consistentee verify runs/quick", "consistentee verify results/quick"))
def verify(results: ResultsArgument) -> None:
    """Check all files of a results folder: schemas, hashes, keys, rows, stages, leftovers; name every fault."""
    from benchmarks.commands.verify import faults_of

    faults = list(faults_of(results))
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        raise typer.Exit(2)
    print(f"{results}: everything is as it was written")
