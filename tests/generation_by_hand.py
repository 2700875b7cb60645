"""Records of generation as a run would leave them, made up from a few numbers, for the tests of tables and plots."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from records_by_hand import ENVIRONMENT, parts_by_hand, targets_of, write_group

from benchmarks.specs.targets import FAITHFUL
from benchmarks.store.generation_records import (
    DecodingContender,
    DecodingPoint,
    DecodingSamples,
    DecodingTimingRecord,
    GenerationRecord,
    Mean,
    ReadReferences,
    ReplayPoint,
    Speculation,
)

LAYERS = 30
EXITS = [6, 12, 18, 24, 30]
PROMPTS = 40
TOKENS = 20
REFERENCE_TOKENS = 5 + np.arange(PROMPTS) % 3
FULL_NATS = 2.0
"""Of the full model, a token of a reference."""
STOCK_SECONDS = 0.040
"""Of the stock model, a token at batch size 1."""


def mean(value: float, width: float = 0.02) -> Mean:
    return Mean(value=value, interval=(value - width, value + width))


def match_at(layers: float, shift: float = 0.0) -> float:
    """Return the token match of a method that is ``shift`` above a straight line to full depth."""
    return min(1.0, 0.2 + 0.8 * (layers - 6) / 24 + shift)


def decoding_point(
    knob: float,
    targets: str,
    layers: float,
    match: float,
    *,
    speculation: Speculation | None = None,
    nats: float | None = None,
) -> DecodingPoint:
    """Return a point whose validation and test sides are alike; ``nats``: of a reference's token, if it is read."""
    deep = round(PROMPTS * (TOKENS - 1) * (layers - 6) / 24)
    histogram = [0] * LAYERS
    histogram[5], histogram[29] = PROMPTS * (TOKENS - 1) - deep, deep
    return DecodingPoint(
        knob=knob,
        targets=targets_of(targets),
        validation=ReplayPoint(knob=knob, average_layers=layers, agreement=match),
        scores={"rougeL": mean(0.3 * match), "rouge1": mean(0.4 * match), "rouge2": mean(0.1 * match)},
        full_text_score=mean(match),
        token_match=mean(match),
        new_tokens=PROMPTS * TOKENS,
        decoded_tokens=PROMPTS * (TOKENS - 1),
        average_layers=layers,
        exit_histogram=histogram,
        layers_by_position=[layers + 1 - 2 * place / (TOKENS - 2) for place in range(TOKENS - 1)],
        texts_by_position=[PROMPTS] * (TOKENS - 1),
        decode_flops=1e9 * layers,
        full_decode_flops=1e9 * LAYERS,
        prefill_flops=1e9,
        prefill_seconds=1.0,
        decode_seconds=2.0,
        speculation=speculation,
        references=None if nats is None else ReadReferences(nats=nats, average_layers=layers),
    )


def generation_cell(
    label: str,
    points: Sequence[DecodingPoint],
    *,
    method: str = "",
    seed: int = 0,
    task: str = "alpaca",
    parameters: dict[str, object] | None = None,
) -> GenerationRecord:
    return GenerationRecord(
        key=f"{task}/{label}/{parameters}/{seed}",
        key_parts=parts_by_hand(),
        task=task,
        task_version=1,
        metric="rougeL",
        task_notes="a subset of the original",
        backbone="smollm2-135m",
        method=method or label,
        label=label,
        parameters=parameters or {},
        knob_name="threshold",
        seed=seed,
        num_layers=LAYERS,
        train_task="alpaca",
        train_rows=1000,
        validation_rows=32,
        test_rows=PROMPTS,
        exit_layers=EXITS,
        max_prompt_tokens=256,
        max_new_tokens=TOKENS,
        kv="propagate",
        truncated_prompts=3,
        full_scores={"rougeL": mean(0.3), "rouge1": mean(0.4), "rouge2": mean(0.1)},
        full_new_tokens=PROMPTS * TOKENS,
        full_reference_nats=FULL_NATS if any(point.references for point in points) else None,
        curve_validation=[point.validation for point in points],
        operating_points=list(points),
        train_seconds=1.0,
        command="consistentee run made-up",
        environment=ENVIRONMENT,
        finished_at="2026-01-01T00:00:00+00:00",
    )


def made_up_generation(seed: int = 0, task: str = "alpaca") -> list[GenerationRecord]:
    """Return a cell of every kind of method: two are above static exits, one below."""
    shifts = {"consistentee-tokens": 0.15, "calm-tokens-softmax": 0.1, "calm-tokens-state": -0.15}
    shifts |= {"token-static": 0.0, "token-random": -0.05}
    budgets = {6.0: "budget 0.33", 12.0: "budget 0.50", 18.0: "budget 0.67", 24.0: "budget 0.85"}
    full = decoding_point(30, str(FAITHFUL), 30, 1.0)
    drafts = Speculation(drafted=1000, accepted=600, passes=300)
    cells = [
        generation_cell("token-full", [full], task=task, seed=seed),
        generation_cell(
            "layerskip", [decoding_point(6, str(FAITHFUL), 21, 1.0, speculation=drafts)], task=task, seed=seed
        ),
    ]
    for label, shift in shifts.items():
        # References use the layers of their exits; the others something in between.
        extra = 0.0 if label == "token-static" else 1.0
        points = [
            decoding_point(layers / 30, why, layers + extra, max(0.05, match_at(layers + extra, shift)))
            for layers, why in budgets.items()
        ]
        cells.append(generation_cell(label, points, task=task, seed=seed))
    return cells


def decoding_contender(cell_key: str, label: str, knob: float | None, share: float) -> DecodingContender:
    """Return a contender that decodes in ``share`` of the stock model's time; later rounds are slower for all."""
    samples = []
    for batch_size, seconds in ((1, STOCK_SECONDS), (8, STOCK_SECONDS / 4)):
        batches = 16 // batch_size
        tokens = [batch_size * (TOKENS - 1)] * batches
        rounds = [[share * seconds * count * (1 + 0.02 * i) for count in tokens] for i in range(3)]
        samples.append(
            DecodingSamples(
                batch_size=batch_size,
                prompts=16,
                decoded_tokens=tokens,
                prefill_seconds=[[0.05 * batch_size] * batches] * 3,
                decode_seconds=rounds,
            )
        )
    return DecodingContender(cell_key=cell_key, label=label, knob=knob, average_layers=share * LAYERS, samples=samples)


def decoding_timing(cells: Sequence[GenerationRecord], seed: int = 0, task: str = "alpaca") -> DecodingTimingRecord:
    """Time all operating points: their share of the time is their share of the layers."""
    contenders = [decoding_contender("", "stock generate", None, 1.0)]
    for record in cells:
        for point in record.operating_points:
            share = point.average_layers / LAYERS
            contenders.append(decoding_contender(record.key, record.label, point.knob, share))
    return DecodingTimingRecord(
        key="timing",
        task=task,
        backbone="smollm2-135m",
        seed=seed,
        rounds=3,
        max_new_tokens=TOKENS,
        contenders=contenders,
        environment_before=ENVIRONMENT,
        environment_after=ENVIRONMENT,
        command="consistentee run made-up",
        finished_at="2026-01-01T00:00:00+00:00",
    )


def write_generation(out_dir: Path, tasks: Sequence[str] = ("alpaca",), seeds: Sequence[int] = (0,)) -> None:
    """Write cells, predictions and timings of a made-up suite of generation, as a run does."""
    for task, seed in product(tasks, seeds):
        cells = made_up_generation(task=task, seed=seed)
        write_group(out_dir, cells, generation_predictions, decoding_timing(cells, seed=seed, task=task))


def generation_predictions(record: GenerationRecord) -> pd.DataFrame:
    """Return scores by prompt whose means are those of the record; prompts differ a little."""
    noise = np.linspace(-0.01, 0.01, PROMPTS)
    columns: dict[str, object] = {"row": np.arange(PROMPTS), "full_rougeL": 0.3 + noise}
    for i, point in enumerate(record.operating_points):
        columns[f"match_{i}"] = np.full(PROMPTS, point.token_match.value)
        columns[f"rougeL_to_full_{i}"] = np.full(PROMPTS, point.full_text_score.value)
        columns[f"rougeL_{i}"] = point.scores["rougeL"].value + noise
        if point.references is not None:
            columns |= {"reference_tokens": REFERENCE_TOKENS, "full_nats": FULL_NATS * REFERENCE_TOKENS}
            columns[f"nats_{i}"] = point.references.nats * REFERENCE_TOKENS
    return pd.DataFrame(columns)
