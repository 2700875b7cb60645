"""Commands of one model: train it, choose its knob by risk control, predict and generate with it."""

import sys
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

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
from benchmarks.cli.deployment import TextOption
from benchmarks.terminal import filled_table, output_console
from consistentee.errors import UserError

if TYPE_CHECKING:
    from consistentee.engine.transcript import NewToken


class HelpWithSettings(TyperCommand):
    """A command whose help ends with the fields of ``--set``."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from benchmarks.commands.settings import explained_settings

        super().format_help(ctx, formatter)
        output_console().print(explained_settings())


_BACKBONE_HELP = "Catalogue name, directory or hub id; by default minilm-l6, for tasks of texts smollm2-135m."


@command(
    "One model",
    "consistentee train movie-snippets --method consistentee --backbone minilm-l6 --out my-model",
    "consistentee train my-task.yaml --method mine.py:MyMethod --param alpha=0.1 --set epochs=6 --out my-model",
    "consistentee train movie-snippets --method deebert --risk 0.02 --out my-model",
    "consistentee train alpaca --method consistentee-tokens --set exit_steps=600 --data DATA --out my-decoder",
    cls=HelpWithSettings,
)
def train(
    task: Annotated[str, typer.Argument(help="A task's name, or its YAML file.")],
    *,
    method: Annotated[str, typer.Option(help="A method's name, or file.py:Class.")],
    out: Annotated[Path, out_folder("Folder of the trained model.")],
    backbone: Annotated[str | None, typer.Option(help=_BACKBONE_HELP)] = None,
    param: ParametersOption = None,
    settings: Annotated[list[str] | None, several("--set", "Fields of the recipe, see below.", "KEY=VALUE ...")] = None,
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


@command("One model", "consistentee risk my-model mcid --risk 0.01 0.05 --delta 0.05 --loss consistency --data DATA")
def risk(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="A folder written by train, for a task of labels.")],
    task: Annotated[str, typer.Argument(help="The task that it was trained for.")],
    *,
    risks: Annotated[list[float], several("--risk", "Mean losses that you accept, such as 0.02.", "0.01 0.05 ...")],
    delta: Annotated[float, typer.Option(help="Probability with which UCB and LTT may fail.")] = 0.1,
    losses: Annotated[list[str] | None, several("--loss", "gap, consistency (both by default), brier-gap, ...")] = None,
    data: DataOption = None,
    allow_code: AllowCodeOption = False,
) -> None:
    """Choose the knob of a saved model by risk control (CRC, UCB, LTT); show its loss and layers on test rows."""
    from benchmarks.tasks.loader import load_classification_task
    from consistentee.deployment.pipeline import load_saved
    from consistentee.deployment.risk_control import BOUNDS, check_names, knob_risks
    from consistentee.models.encoder.multi_exit_model import MultiExitModel
    from consistentee.traces.instance_trace import record_trace

    losses = losses or ["gap", "consistency"]
    for loss in losses:
        check_names(loss=loss)
    saved, method, _ = load_saved(model, MultiExitModel, allow_code=allow_code)
    rows = load_classification_task(task, data)
    if saved.description.task_name != rows.name:
        raise UserError(f"{model} was trained for task {saved.description.task_name!r}, not for {rows.name!r}")
    traces = record_trace(saved, rows.validation), record_trace(saved, rows.test)
    lines = []
    for loss in losses:
        validation, test = (knob_risks(method, saved, trace, loss) for trace in traces)
        for accepted, (name, bound) in product(risks, BOUNDS.items()):
            found = bound(validation.losses, accepted, delta, validation.highest)
            index = max(found, 0)
            knob = f"{validation.knobs[index]:.4g}" if found >= 0 else "(none)"
            means = [f"{100 * of.losses[:, index].mean():.2f}" for of in (validation, test)]
            lines.append([loss, name, f"{100 * accepted:g}", knob, *means, f"{test.layers[index]:.2f}"])
    layers = f"test layers of {saved.num_layers}"
    numbers = ["accepted risk %", method.knob.name, "validation loss %", "test loss %", layers]
    title = f"{method.name} on {rows.name}, {method.knob.name} by risk control, delta={delta:g}"
    caption = "chosen on validation rows; (none): no early exit is proven safe, so all rows run all layers"
    output_console().print(filled_table(["loss", "bound"], numbers, lines, title, caption))


@command(
    "One model",
    'consistentee predict my-pair-model --knob 0.9 --pair "It rains." "The ground is wet."',
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
    pair: Annotated[bool, typer.Option("--pair", help="Read every two texts as one pair.")] = False,
    allow_code: AllowCodeOption = False,
) -> None:
    """Show label, probability, exit layer and time of each text, or write them for a file of texts as CSV."""
    from consistentee.deployment.pipeline import Classifier, load_saved
    from consistentee.models.encoder.multi_exit_model import MultiExitModel

    if (file is None) == (not texts):
        raise UserError("give texts, or a table of texts with --file, and not both")
    if file is not None:
        from benchmarks.commands.deploy import label_file

        saved, method, knob = load_saved(model, MultiExitModel, knob, allow_code=allow_code)
        label_file(Classifier(saved, method.rule(saved, knob)), file, out, text or [])
        return
    texts = texts or []
    if not all(text.strip() for text in texts):
        raise UserError("an empty text cannot be classified")
    if pair and len(texts) % 2:
        raise UserError(f"--pair takes an even number of texts, got {len(texts)}")
    rows = list(zip(texts[::2], texts[1::2], strict=True)) if pair else texts
    saved, method, knob = load_saved(model, MultiExitModel, knob, allow_code=allow_code)
    classifier = Classifier(saved, method.rule(saved, knob))
    classifier(rows[:1])  # warm-up: the first call of a process is slower
    lines = []
    for row in rows:
        start = perf_counter()
        (answer,) = classifier(row)
        milliseconds = 1000 * (perf_counter() - start)
        label = [answer["label"]] if "label" in answer else []
        shown = row if isinstance(row, str) else " | ".join(row)
        lines.append([shown, *label, f"{answer['score']:.3f}", answer["exit_layer"], f"{milliseconds:.1f}"])
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


@command("One model", "consistentee suitability smollm2-135m --texts prompts.txt --out suitability")
def suitability(
    model: Annotated[str, typer.Argument(help="A decoder: catalogue name, directory, hub id, or a trained one.")],
    *,
    texts: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="File, one text a line.")] = None,
    out: Annotated[Path | None, out_folder("Folder for suitability.json and suitability.png.")] = None,
) -> None:
    """Show from which layer on a decoder predicts its final tokens, without training."""
    from benchmarks.commands.suitability import described, suitability_of, write

    found = suitability_of(model, texts)
    output_console().print(described(model, found))
    for path in [] if out is None else write(model, found, out):
        typer.echo(f"wrote {path}")
