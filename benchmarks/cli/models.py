"""Commands of one model: train it, choose its knob by risk control, predict and generate with it."""

from pathlib import Path
from typing import Annotated, Any

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
from benchmarks.terminal import output_console


class HelpWithSettings(TyperCommand):
    """A command whose help ends with the fields of ``--set``."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from benchmarks.commands.settings import explained_settings

        super().format_help(ctx, formatter)
        output_console().print(explained_settings())


_DEFAULT_BACKBONES = "minilm-l6, for tasks of texts smollm2-135m"


@command(
    "One model",
    "consistentee train movie-snippets --method consistentee --backbone minilm-l6 --out my-model",
    "consistentee train mcid --method consistentee --param alpha=0.1 --set epochs=6 --data DATA --out my-model",
    "consistentee train my-task.yaml --method mine.py:MyMethod --out my-model",
    "consistentee train movie-snippets --method deebert --risk 0.02 --out my-model",
    "consistentee train alpaca --method consistentee-tokens --set exit_steps=600 --data DATA --out my-decoder",
    cls=HelpWithSettings,
)
def train(
    task: Annotated[str, typer.Argument(help="A task's name, or its YAML file.")],
    *,
    method: Annotated[str, typer.Option(help="A method's name, or file.py:Class.")],
    out: Annotated[Path, out_folder("Folder of the trained model.")],
    backbone: Annotated[
        str | None, typer.Option(help="Catalogue name, directory or hub id.", show_default=_DEFAULT_BACKBONES)
    ] = None,
    param: ParametersOption = None,
    settings: Annotated[
        list[str] | None, several("--set", "How to train: the fields are listed below.", "KEY=VALUE ...")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training.")] = 0,
    risk: Annotated[
        float | None,
        typer.Option(help="Store the earliest knob proven (UCB, 0.9) to lose at most this share of points."),
    ] = None,
    data: DataOption = None,
) -> None:
    """Train one method on one task, choose its knob on validation data, and save the model for predict or generate."""
    from benchmarks.commands.train import train_model

    report = train_model(
        task,
        method,
        parsed_parameters(param),
        backbone=backbone,
        out=out,
        settings=parsed_parameters(settings, "--set"),
        seed=seed,
        data_dir=data,
        risk=risk,
    )
    output_console().print(report)


@command(
    "One model",
    "consistentee risk my-model movie-snippets --risk 0.02",
    "consistentee risk my-model mcid --risk 0.01 0.05 --delta 0.05 --loss consistency --data DATA",
)
def risk(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="A folder written by train, for a task of labels.")],
    task: Annotated[str, typer.Argument(help="The task that it was trained for.")],
    *,
    risks: Annotated[list[float], several("--risk", "Mean losses that you accept.")],
    delta: Annotated[float, typer.Option(help="Probability that a bound may fail.")] = 0.1,
    losses: Annotated[
        list[str] | None,
        several("--loss", "gap, consistency, brier-gap, brier-consistency.", show_default="gap consistency"),
    ] = None,
    data: DataOption = None,
    allow_code: AllowCodeOption = False,
) -> None:
    """Choose the knob of a saved model by risk control (CRC, UCB, LTT); show its loss and layers on test rows."""
    from benchmarks.commands.saved_models import risk_table

    output_console().print(
        risk_table(model, task, risks, delta=delta, losses=losses, data_dir=data, allow_code=allow_code)
    )


@command(
    "One model",
    'consistentee predict my-model "a film to see twice" "dull from start to end"',
    'consistentee predict my-pair-model --pair "It rains." "The ground is wet."',
    'consistentee predict my-model --knob 0.9 "quite good, I suppose"',
)
def predict(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="A folder written by train.")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Texts to classify.")],
    knob: KnobOption = None,
    pair: Annotated[bool, typer.Option("--pair", help="Every two texts are one pair.")] = False,
    allow_code: AllowCodeOption = False,
) -> None:
    """Show label, probability, exit layer and time of each text."""
    from benchmarks.commands.saved_models import predict_texts, rows_of

    output_console().print(predict_texts(model, rows_of(texts, pair), knob, allow_code=allow_code))


@command(
    "One model",
    'consistentee generate my-decoder "The committee decided that"',
    'consistentee generate my-decoder --knob 0.8 --max-new-tokens 40 "Once upon a time" | tr " " "\\n"',
)
def generate(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="A folder written by train, for a task of texts.")],
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="Texts to continue.")],
    *,
    knob: KnobOption = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=0, help="Length of each text.", show_default="as in training")
    ] = None,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Cut longer prompts; their end stays.", show_default="no cut")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put prompts into the tokenizer's chat template.")] = False,
    allow_code: AllowCodeOption = False,
) -> None:
    """Continue prompts, a line each: every token with its exit layer, as token/12; a summary to standard error."""
    from benchmarks.commands.saved_models import write_texts

    write_texts(model, prompts, knob, max_new_tokens, max_prompt_tokens, chat=chat, allow_code=allow_code)


@command(
    "One model",
    "consistentee suitability smollm2-135m",
    "consistentee suitability my-decoder --texts prompts.txt --out suitability",
)
def suitability(
    model: Annotated[str, typer.Argument(help="A decoder: catalogue name, directory, hub id, or a trained one.")],
    *,
    texts: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="One text a line; the first third of each is the prompt."),
    ] = None,
    out: Annotated[Path | None, out_folder("Folder for suitability.json and suitability.png.")] = None,
) -> None:
    """Show from which layer on a decoder predicts its final tokens, without training."""
    from benchmarks.commands.suitability import described, suitability_of, write

    found = suitability_of(model, texts)
    output_console().print(described(model, found))
    for path in [] if out is None else write(model, found, out):
        typer.echo(f"wrote {path}")
