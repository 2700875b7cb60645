"""Commands for a user's own model: accelerate it, and time what was saved."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cli.application import (
    AllowCodeOption,
    DataOption,
    KnobOption,
    command,
    out_folder,
    parsed_parameters,
    several,
)
from benchmarks.terminal import RESULTS_WIDTH, output_console, print_line

_DATA_HELP = "CSV, TSV, JSON lines or Parquet file, or a task's name."
TextOption = Annotated[
    list[str] | None,
    several("--text", "Column of the text; two columns for pairs. By default it is guessed.", "COLUMN"),
]


@command(
    "One model",
    "consistentee accelerate my-classifier reviews.csv --loss 0.5 --out faster",
    "consistentee accelerate my-classifier new.csv --train trained-on.csv --text review --label stars --out faster",
    "consistentee accelerate my-pair-classifier pairs.tsv --text premise hypothesis --loss 1 --out faster",
)
def accelerate(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a fine-tuned *ForSequenceClassification.")],
    rows: Annotated[str, typer.Argument(metavar="DATA", help=f"{_DATA_HELP} The model was not trained on these rows.")],
    *,
    out: Annotated[Path, out_folder("New folder of the faster model.")] = Path("accelerated"),
    loss: Annotated[float, typer.Option(min=0.01, max=99, help="Points of accuracy that you accept to lose.")] = 0.5,
    probability: Annotated[float, typer.Option(min=0.01, max=0.9999, help="Probability of the promise.")] = 0.9,
    train: Annotated[
        Path | None, typer.Option(help="Rows for training exits alone: may be those the model was trained on.")
    ] = None,
    text: TextOption = None,
    label: Annotated[str | None, typer.Option(help="Column of the label; by default it is guessed.")] = None,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="Try torch.compile as well.")] = True,
    settings: Annotated[list[str] | None, several("--set", "Fields of the training recipe.", "KEY=VALUE ...")] = None,
    data: DataOption = None,
) -> None:
    """Make your classifier faster, and prove what this loses at most.

    Your model's weights do not change. Exits are trained on its frozen layers, in float32 and on an int8 copy; several
    exit rules, int8 alone, shorter models and torch.compile compete on this machine. The fastest one whose loss against
    your model is proven to be small enough is saved for `consistentee predict` and `ee.pipeline`.
    A proof takes rows: 461 that are kept for it alone for 0.5 points, a third of DATA, and more if answers change.
    """
    from benchmarks.commands.deploy import accelerate_model, rows_of, table_of

    task, sentences = rows_of(model, rows, train=train, text=text or [], label=label, data_dir=data)
    console = output_console(RESULTS_WIDTH)
    for sentence in sentences:
        print_line(console, sentence)
    fields = parsed_parameters(settings, "--set")
    found = accelerate_model(model, task, out, fields, loss=loss, probability=probability, compiles=compiled)
    console.print(table_of(found))
    for line in [*found.block.splitlines(), f"Saved in {out}: `consistentee predict {out} TEXT` uses it."]:
        print_line(console, line)


@command("One model", "consistentee time my-model reviews.csv", "consistentee time my-model movie-snippets")
def time(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="A folder written by accelerate, train or a run.")],
    rows: Annotated[str, typer.Argument(metavar="DATA", help=_DATA_HELP)],
    *,
    text: TextOption = None,
    knob: KnobOption = None,
    data: DataOption = None,
    allow_code: AllowCodeOption = False,
) -> None:
    """Time a saved classifier at batch 1 and 32 on this machine, in rounds with its stock model."""
    from benchmarks.commands.deploy import time_model

    table = time_model(model, rows, text or [], knob=knob, allow_code=allow_code, data_dir=data)
    output_console(RESULTS_WIDTH).print(table)
