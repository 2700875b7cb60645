"""Commands of a suite: run it, publish its results."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cli.application import app, examples, finish
from benchmarks.cli.arguments import (
    BackbonesOption,
    DataOption,
    TasksOption,
    WorkersOption,
    found_methods,
    numbers,
    results_folder,
    several,
)
from benchmarks.terminal import RESULTS_WIDTH, output_console
from consistentee.errors import UserError

command = partial(app.command, rich_help_panel="Run a suite")


@command(
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
    remeasure: Annotated[
        bool, typer.Option("--remeasure", help="Train and measure here what is published too, and show it beside.")
    ] = False,
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
    if dry_run:
        from benchmarks.run.dry_run import plan_lines

        again = {"fresh": fresh, "retry_failed": retry_failed, "remeasure": remeasure, "times": timing}
        lines = plan_lines(spec, filters, out=out, data_dir=data, workers=workers, published_dir=published, **again)
        print("\n".join(lines))
        return
    from benchmarks.run.pool import Schedule
    from benchmarks.run.sweep import run_suite

    outcome = run_suite(
        spec,
        filters,
        out=out,
        data_dir=data,
        fresh=fresh,
        retry_failed=retry_failed,
        remeasure=remeasure,
        times=timing,
        published_dir=published,
        schedule=Schedule(workers, scheduler),
    )
    if outcome.table is not None:
        output_console(RESULTS_WIDTH).print(outcome.table)
    for line in outcome.refused:
        print(f"not defined: {line}", file=sys.stderr)
    for line in outcome.failed:
        print(f"failed: {line}", file=sys.stderr)
    finish(bool(outcome.failed))


@command(
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
