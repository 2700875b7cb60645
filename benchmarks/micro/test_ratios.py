"""The engine's overhead as ratios within rounds on real models with untrained exits: each is printed, and has a bound.

pytest-benchmark keeps the time of the last call in a round, and the ratios beside it.
"""

from collections.abc import Callable, Sequence

import pytest
import torch

from baselines.references import RandomRule
from benchmarks.measure.clock import stock_times
from benchmarks.tasks.loader import load_classification_task
from consistentee.data.encoding import Encoding
from consistentee.data.tasks import TaskData
from consistentee.engine.classify import classify_encoded, stock_encoded
from consistentee.engine.generate import generate_encoded
from consistentee.rules.exit_rule import ExitRule, NeverExit, StaticRule

ROWS = 192
NEW_TOKENS = 32
AT_LEAST = {"of the data": 0.95, "of their length": 0.85}  # real / allowed in flight, by the order of the rows
ROUNDS = {1: 21, 8: 7, 32: 5}  # by batch size: a single row takes a second, so that its ratio needs more rounds

pytestmark = pytest.mark.real
on_minilm = pytest.mark.parametrize("encoder", ["minilm-l6"], indirect=True)
on_smollm2 = pytest.mark.parametrize("decoder", ["smollm2-135m"], indirect=True)


@pytest.fixture(scope="session")
def task() -> TaskData:
    """Load the rows of the task that a package brings."""
    return load_classification_task("movie-snippets").capped(train=2000, test=500)


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Divide the seconds of two calls round by round."""
    return [one / other for one, other in zip(above, below, strict=True)]


def batches_of(run: Callable[..., object], model, rows: Sequence[Encoding], batch_size: int, *rule: ExitRule):
    """Return a call that runs over rows in batches, in their order."""
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]

    def call() -> None:
        for batch in batches:
            run(model, batch, *rule, batch_size=len(batch))

    return call


@on_minilm
@pytest.mark.parametrize("batch_size", [1, 32])
def test_never_exit_costs_what_the_stock_model_costs(in_rounds, report_ratio, encoder, task, batch_size):
    """Classify at full depth by the engine and by the stock model."""
    rows = encoder.tokenize(task.test.texts[:ROWS])
    stock, never = in_rounds(
        batches_of(classify_encoded, encoder, rows, batch_size, NeverExit()),
        batches_of(stock_encoded, encoder, rows, batch_size),
    )
    report_ratio(f"never-exit / stock, batch {batch_size}", ratios(never, stock), at_most=1.03)


@on_minilm
@pytest.mark.parametrize("batch_size", [8, 32])
@pytest.mark.parametrize("order", AT_LEAST)
def test_regrouped_rows_are_as_fast_as_layers_allow(*, in_rounds, report_ratio, encoder, rows_of, batch_size, order):
    """Rows in the order of the data also gain from batches of similar length, which those in step do not have.

    Allowed time: embedding, one layer and a classifier, plus what each further layer costs times the layers run.
    """
    rows = rows_of(encoder, ROWS)
    rows = rows if order == "of the data" else sorted(rows, key=len)
    mixed = RandomRule((encoder.num_layers + 1) / 2, seed=0)
    exits = classify_encoded(encoder, rows, mixed, batch_size=ROWS).exit_layers
    share = (exits.double().mean().item() - 1) / (encoder.num_layers - 1)
    flight = {"batch_size": batch_size, "in_flight": 8 * batch_size}

    def regrouped() -> None:
        assert torch.equal(classify_encoded(encoder, rows, mixed, **flight).exit_layers, exits)

    of_first, of_last = (StaticRule(layer) for layer in (1, encoder.num_layers))
    steps = (batches_of(classify_encoded, encoder, rows, batch_size, rule) for rule in (of_first, of_last, mixed))
    first, last, in_step, in_flight = in_rounds(regrouped, *steps)
    allowed = [one + share * (deepest - one) for one, deepest in zip(first, last, strict=True)]
    where = f"real / allowed, {ROWS} rows in the order {order}, batch {batch_size}"
    report_ratio(f"{where}, in step", ratios(allowed, in_step))
    report_ratio(f"{where}, in flight", ratios(allowed, in_flight), at_least=AT_LEAST[order])


@on_smollm2
@pytest.mark.parametrize("batch_size", ROUNDS)
def test_never_exit_decodes_as_fast_as_stock_generate(in_rounds, report_ratio, decoder, task, batch_size):
    """Decode at full depth by the engine and by transformers' generate."""
    joined = [" ".join(task.test.texts[6 * i : 6 * i + 1 + i % 6]) for i in range(3, 3 + batch_size)]
    rows = decoder.encode(joined, max_tokens=128)
    options = {"max_new_tokens": NEW_TOKENS, "batch_size": batch_size, "end_at_eos": False}
    stock, never = in_rounds(
        lambda: generate_encoded(decoder, rows, NeverExit(), **options).decode_seconds,
        lambda: stock_times(decoder, rows, NEW_TOKENS).seconds,
        rounds=ROUNDS[batch_size],
    )
    name = f"never-exit / stock generate, tokens a second, batch {batch_size}"
    report_ratio(name, ratios(stock, never), at_least=1.0)
