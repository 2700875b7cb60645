"""Commands of one model: accelerate, time and train it, predict and generate with it."""

import json
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand

from benchmarks.cli.application import (
    AllowCodeOption,
    DataOption,
    KnobOption,
    ParametersOption,
    command,
    out_folder,
    parsed_parameters,
    several,
)
from benchmarks.terminal import RESULTS_WIDTH, filled_table, output_console, print_line
from consistentee.errors import UserError

if TYPE_CHECKING:
    from consistentee.engine.transcript import NewToken

_DATA_HELP = "CSV, TSV, JSON lines or Parquet file, or a task's name."
TextOption = Annotated[
    list[str] | None,
    several("--text", "Column of the text; two columns for pairs. By default it is guessed.", "COLUMN"),
]
SettingsOption = Annotated[
    list[str] | None, several("--set", "Fields of the recipe, see `consistentee train --help`.", "KEY=VALUE ...")
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
    settings: SettingsOption = None,
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


class HelpWithSettings(TyperCommand):
    """A command whose help ends with the fields of ``--set``."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from consistentee.training.recipe import BaseSettings, RecipeSettings, TokenRecipeSettings

        super().format_help(ctx, formatter)
        for title, declared in (("labels", RecipeSettings), ("texts", TokenRecipeSettings)):
            fields: dict[str, Any] = vars(declared)["__pydantic_fields__"]
            rows = [
                (f"{name}={_usual(fields[name])}", fields[name].description)
                for name in sorted(fields, key=lambda name: hasattr(BaseSettings, name))
            ]
            output_console().print(filled_table([f"Fields of --set, tasks of {title}:", ""], [], rows))


def _usual(field: Any) -> str:
    """Return a field's default as it is typed, followed by the other choices, if it is a choice of names."""
    if get_origin(field.annotation) is Literal:
        return "|".join(dict.fromkeys([field.default, *get_args(field.annotation)]))
    return json.dumps(field.default)


_BACKBONE_HELP = "Catalogue name, directory or hub id; by default minilm-l6, for tasks of texts smollm2-135m."


@command(
    "One model",
    "consistentee train movie-snippets --method consistentee-paper --backbone minilm-l6 --out my-model",
    "consistentee train my-task.yaml --method mine.py:MyMethod --param alpha=0.1 --set epochs=6 --out my-model",
    "consistentee train reviews.csv --method deebert --out my-model",
    "consistentee train alpaca --method consistentee-tokens --set exit_steps=600 --data DATA --out my-decoder",
    cls=HelpWithSettings,
)
def train(
    task: Annotated[str, typer.Argument(help="A task's name, its YAML file, or a table of texts and labels.")],
    *,
    method: Annotated[str, typer.Option(help="A method's name, or file.py:Class.")],
    out: Annotated[Path, out_folder("Folder of the trained model.")],
    backbone: Annotated[str | None, typer.Option(help=_BACKBONE_HELP)] = None,
    param: ParametersOption = None,
    settings: SettingsOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training.")] = 0,
    risk: Annotated[
        float | None, typer.Option(help="Choose the knob by risk control: 0.02 accepts 2 points lost.")
    ] = None,
    data: DataOption = None,
) -> None:
    """Train one method on one task, choose its knob on validation data, and save the model for predict or generate."""
    from benchmarks.commands.train import train_model

    values, fields = parsed_parameters(param), parsed_parameters(settings, "--set")
    report = train_model(
        task, method, values, backbone=backbone, out=out, settings=fields, seed=seed, data_dir=data, risk=risk
    )
    output_console().print(report)


@command(
    "One model",
    'consistentee predict my-model --knob 0.9 "a triumph from first to last"',
    "consistentee predict my-model --file reviews.csv --out labelled.csv",
    "cat reviews.csv | consistentee predict my-model --file - > labelled.csv",
)
def predict(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="A folder written by train or accelerate.")],
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT...", help="Texts to classify.")] = None,
    *,
    file: Annotated[Path | None, typer.Option(help="Classify a table of texts instead; - is CSV from a pipe.")] = None,
    out: Annotated[Path | None, typer.Option(help="CSV to write for --file; by default standard output.")] = None,
    text: TextOption = None,
    knob: KnobOption = None,
    allow_code: AllowCodeOption = False,
) -> None:
    """Show label, probability, exit layer and time of each text, or write them for a file of texts as CSV."""
    from consistentee.deployment.pipeline import Classifier, load_saved
    from consistentee.models.encoder import MultiExitModel

    rows = texts or []
    if (file is None) == (not rows):
        raise UserError("give texts, or a table of texts with --file, and not both")
    if not all(row.strip() for row in rows):
        raise UserError("an empty text cannot be classified")
    saved, method, knob = load_saved(model, MultiExitModel, knob, allow_code=allow_code)
    classifier = Classifier(saved, method.rule(saved, knob))
    if file is not None:
        from benchmarks.commands.deploy import label_file

        label_file(classifier, file, out, text or [])
        return
    classifier(rows[:1])  # warm-up: the first call of a process is slower
    lines = []
    for row in rows:
        start = perf_counter()
        (answer,) = classifier(row)
        milliseconds = 1000 * (perf_counter() - start)
        label = [answer["label"]] if "label" in answer else []
        lines.append([row, *label, f"{answer['score']:.3f}", answer["exit_layer"], f"{milliseconds:.1f}"])
    words = ["text", *(["value"] if saved.num_labels == 1 else ["label", "probability"])]
    title, caption = f"{method.name}, {method.knob.name}={knob:.4g}", "ms: one text alone, tokenising included"
    output_console().print(filled_table(words, [f"exit layer of {saved.num_layers}", "ms"], lines, title, caption))


@command("One model", 'consistentee generate my-decoder --knob 0.8 --max-new-tokens 40 "Once upon a time"')
def generate(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="A folder written by train, for a task of texts.")],
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="Texts to continue.")],
    *,
    knob: KnobOption = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=0, help="Length of texts; default: as trained.")] = None,
    max_prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Cut longer prompts at their start.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put prompts into the tokenizer's chat template.")] = False,
    allow_code: AllowCodeOption = False,
) -> None:
    """Continue prompts: a line each, tokens with exit layers as token/12. A summary goes to standard error."""
    from consistentee.deployment.pipeline import load_saved
    from consistentee.methods.token_methods import TokenMethod
    from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder

    saved, method, knob = load_saved(model, MultiExitDecoder, knob, allow_code=allow_code)
    if chat and not saved.tokenizer.chat_template:
        raise UserError(f"the tokenizer of {model} has no chat template: leave out --chat")
    if chat:
        saved.description.chat_template = "auto"
    assert isinstance(method, TokenMethod)
    length = max_new_tokens if max_new_tokens is not None else saved.description.max_new_tokens or 64
    options = {"max_new_tokens": length, "max_prompt_tokens": max_prompt_tokens}
    unit = "layer calls a token" if method.drafts else "layers on average"
    for prompt in prompts:
        written = method.generate(saved, [prompt], knob, **options, batch_size=1, stream=_show_token)
        print(flush=True)
        parts = [f"{method.name}, {method.knob.name}={knob:.4g}", f"{len(written.tokens[0])} new tokens"]
        if written.decoded_tokens:
            parts.append(f"{written.average_layers:.1f} of {saved.num_layers} {unit}")
            parts.append(f"{written.decoded_tokens / written.decode_seconds:.1f} tokens/s")
        print(", ".join([*parts, f"ended by {written.ended_by[0]}"]), file=sys.stderr)


def _show_token(token: "NewToken") -> None:
    text = token.text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    print(f"{text}/{token.exit_layer}", end="", flush=True)
