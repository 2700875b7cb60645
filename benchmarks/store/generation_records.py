"""The records of generation: raw numbers first. What is decoded is every new token but the first of a text."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from benchmarks.specs.schema import Strict
from benchmarks.store.records import BaseOperatingPoint, BaseRecord


class Mean(Strict):
    """A mean over prompts, with its 95% bootstrap interval."""

    value: float
    interval: tuple[float, float]


class ReplayPoint(Strict):
    """One value of the knob, replayed on the full model's own texts of the validation prompts, token by token.

    Where a method drafts and verifies, the prompts are decoded instead, and the layers are those called a token.
    """

    knob: float
    average_layers: float
    agreement: float = Field(description="share of the tokens for which the exit predicts what the full model predicts")
    draft: tuple[int, float] | None = Field(
        default=None, description="length of drafts, and probability below which one ends"
    )


class Speculation(Strict):
    """Counts of drafts over all test prompts."""

    drafted: int
    accepted: int
    passes: int = Field(description="runs of the layers after the draft's")


class ReadReferences(Strict):
    """The references of the test prompts at the exits of a rule, see :mod:`benchmarks.measure.text_scores`."""

    nats: float = Field(description="negative log-likelihood of a token, mean over all but the first of each reference")
    average_layers: float


class DecodingPoint(BaseOperatingPoint):
    """One value of the knob, chosen on validation prompts, with which the test prompts were decoded.

    Without targets it stands for none: it is there to be mixed with another one at equal cost.
    """

    validation: ReplayPoint
    scores: dict[str, Mean] = Field(description="ROUGE of the texts against the references, by metric")
    full_text_score: Mean = Field(description="ROUGE-L of the texts against the full model's")
    token_match: Mean = Field(description="share of the places in which a text has the full model's token")
    new_tokens: int
    decoded_tokens: int = Field(description="new tokens but the first of each text, which the prompt gives")
    average_layers: float = Field(
        description="that a decoded token ran; where drafts are verified, layer calls a token"
    )
    exit_histogram: list[int] = Field(description="decoded tokens that exit at layer 1, 2, ..., L")
    layers_by_position: list[float] = Field(description="mean exit layer of the second, third, ... token of a text")
    texts_by_position: list[int] = Field(description="texts that have such a token")
    decode_flops: float = Field(description="of the decoded tokens: layers, exits asked, keys and values filled later")
    full_decode_flops: float = Field(description="of the same tokens at full depth")
    prefill_flops: float = Field(description="of the prompts and the first tokens")
    prefill_seconds: float = Field(description="of this one run; what is compared is timed apart")
    decode_seconds: float
    speculation: Speculation | None = None
    references: ReadReferences | None = Field(None, description="None where they have no second token")


class GenerationRecord(BaseRecord):
    """The result of one cell of generation (task, backbone, method with parameters, seed).

    ``validation_rows`` and ``test_rows`` are prompts.
    """

    kind: Literal["generation"] = "generation"
    train_task: str
    exit_layers: list[int]
    closing_layers: int = Field(0, description="the last of each exit's layers, which every token runs")
    max_prompt_tokens: int
    max_new_tokens: int
    kv: str = Field(description="how skipped layers get keys and values")
    truncated_prompts: int = Field(description="test prompts that were cut to max_prompt_tokens")
    full_scores: dict[str, Mean] = Field(description="ROUGE of the full model's texts against the references")
    full_new_tokens: int
    full_reference_nats: float | None = Field(None, description="as ReadReferences.nats, of the full model")
    curve_validation: list[ReplayPoint]
    operating_points: list[DecodingPoint]
    peak_memory_bytes: int | None = Field(None, description="of the process; no longer measured")
    calibration: None = Field(None, description="of a study that is no longer run; older records have the field")

    def timed_points(self, at_most: int) -> Sequence[DecodingPoint]:
        return sorted(self.operating_points, key=lambda point: point.average_layers)[:at_most]

    def mixable_knobs(self) -> list[tuple[float, float, float]]:
        if all(point.references is None for point in self.operating_points):
            return []
        return [
            (point.knob, point.validation.average_layers, point.scores[self.metric].value)
            for point in self.operating_points
        ]
