"""Use a saved model: classify texts one by one, choose its knob by risk control, or continue prompts."""

import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from rich.table import Table

from benchmarks.tasks.loader import load_classification_task
from benchmarks.terminal import filled_table
from consistentee import TokenMethod
from consistentee.data.instances import Text
from consistentee.deployment.pipeline import Classifier, load_saved
from consistentee.deployment.risk_control import BOUNDS, check_names, knob_risks
from consistentee.engine.transcript import NewToken
from consistentee.errors import UserError
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.traces.instance_trace import record_trace


def rows_of(texts: Sequence[str], pair: bool) -> list[Text]:
    """Turn words of the command line into rows; ``pair`` joins every two. Raises UserError for an empty text."""
    if not all(text.strip() for text in texts):
        raise UserError("an empty text cannot be classified")
    if not pair:
        return list(texts)
    if len(texts) % 2:
        raise UserError(f"--pair takes an even number of texts, got {len(texts)}")
    return list(zip(texts[::2], texts[1::2], strict=True))


def predict_texts(folder: Path, rows: Sequence[Text], knob: float | None = None, *, allow_code: bool = False) -> Table:
    """Classify texts or pairs one by one with a saved model: label, probability, exit layer, milliseconds."""
    model, method, knob = load_saved(folder, MultiExitModel, knob, allow_code=allow_code)
    classifier = Classifier(model, method.rule(model, knob))
    classifier(rows[:1])  # warm-up: the first call of a process is slower
    lines = []
    for row in rows:
        start = time.perf_counter()
        (answer,) = classifier(row)
        milliseconds = 1000 * (time.perf_counter() - start)
        text = " | ".join(row) if isinstance(row, tuple) else row
        label = [answer["label"]] if "label" in answer else []
        lines.append([text, *label, f"{answer['score']:.3f}", answer["exit_layer"], f"{milliseconds:.1f}"])
    words = ["text", *(["value"] if model.num_labels == 1 else ["label", "probability"])]
    title, caption = f"{method.name}, {method.knob.name}={knob:.4g}", "ms: one text alone, tokenising included"
    return filled_table(words, [f"exit layer of {model.num_layers}", "ms"], lines, title, caption)


def risk_table(
    folder: Path,
    task_name: str,
    risks: Sequence[float],
    *,
    delta: float = 0.1,
    losses: Sequence[str] | None = None,
    data_dir: Path | None = None,
    allow_code: bool = False,
) -> Table:
    """Choose a saved model's knob by every bound on a task's validation rows, and measure it on the test rows.

    Raises UserError if the folder holds no model of this task, or an argument is unknown or out of its range.
    """
    losses = losses or ("gap", "consistency")
    for loss in losses:
        check_names(loss=loss)
    model, method, _ = load_saved(folder, MultiExitModel, allow_code=allow_code)
    task = load_classification_task(task_name, data_dir)
    if model.description.task_name != task.name:
        raise UserError(f"{folder} was trained for task {model.description.task_name!r}, not for {task.name!r}")
    traces = record_trace(model, task.validation), record_trace(model, task.test)
    rows = []
    for loss in losses:
        validation, test = (knob_risks(method, model, trace, loss) for trace in traces)
        for risk, (name, bound) in product(risks, BOUNDS.items()):
            found = bound(validation.losses, risk, delta, validation.highest)
            index = max(found, 0)
            knob = f"{validation.knobs[index]:.4g}" if found >= 0 else "(none)"
            means = [f"{100 * of.losses[:, index].mean():.2f}" for of in (validation, test)]
            rows.append([loss, name, f"{100 * risk:g}", knob, *means, f"{test.layers[index]:.2f}"])
    return filled_table(
        ["loss", "bound"],
        ["accepted risk %", method.knob.name, "validation loss %", "test loss %", f"test layers of {model.num_layers}"],
        rows,
        f"{method.name} on {task.name}, {method.knob.name} by risk control, delta={delta:g}",
        "chosen on validation rows; (none): no early exit is proven, so all rows run all layers",
    )


def write_texts(
    folder: Path,
    prompts: Sequence[str],
    knob: float | None = None,
    max_new_tokens: int | None = None,
    max_prompt_tokens: int | None = None,
    *,
    chat: bool = False,
    allow_code: bool = False,
) -> None:
    """Continue prompts one after the other: every token as ``token/12`` as it is written, one line a text.

    The summary of a text goes to standard error. ``chat`` puts prompts into the tokenizer's chat template.
    """
    model, method, knob = load_saved(folder, MultiExitDecoder, knob, allow_code=allow_code)
    if chat and not model.tokenizer.chat_template:
        raise UserError(f"the tokenizer of {folder} has no chat template: leave out --chat")
    if chat:
        model.description.chat_template = "auto"
    assert isinstance(method, TokenMethod)
    length = max_new_tokens if max_new_tokens is not None else model.description.max_new_tokens or 64
    options = {"max_new_tokens": length, "max_prompt_tokens": max_prompt_tokens}
    unit = "layer calls a token" if method.drafts else "layers on average"
    for prompt in prompts:
        written = method.generate(model, [prompt], knob, **options, batch_size=1, stream=_show)
        print(flush=True)
        parts = [f"{method.name}, {method.knob.name}={knob:.4g}", f"{len(written.tokens[0])} new tokens"]
        if written.decoded_tokens:
            parts.append(f"{written.average_layers:.1f} of {model.num_layers} {unit}")
            parts.append(f"{written.decoded_tokens / written.decode_seconds:.1f} tokens/s")
        print(", ".join([*parts, f"ended by {written.ended_by[0]}"]), file=sys.stderr)


def _show(token: NewToken) -> None:
    text = token.text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    print(f"{text}/{token.exit_layer}", end="", flush=True)
