"""The schema of timings: raw wall-clock samples of either kind, in seconds."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from benchmarks.specs.schema import Strict
from consistentee.versions import Kind

Seconds = Annotated[float, AfterValidator(lambda seconds: round(seconds, 9))]
"""As measured, to the nanosecond: further digits are noise, of which results would mostly consist."""


class BaseSamples(Strict):
    """Samples of one contender at one batch size: the same rows in every round."""

    batch_size: int
    in_flight: int | None = Field(
        default=None, description="rows or prompts in flight, of which batch_size run at a time; None: a batch, in step"
    )


class TimingSamples(BaseSamples):
    """Samples of a contender of classification."""

    rows: int
    seconds_per_round: list[Seconds]
    seconds_per_batch: list[list[Seconds]] = Field(description="[rounds][batches], in the order of the data")

    @property
    def round_seconds(self) -> list[float]:
        """Seconds a row, in each round."""
        return [seconds / self.rows for seconds in self.seconds_per_round]


class DecodingSamples(BaseSamples):
    """Samples of a contender of generation: reading prompts and writing after them, apart."""

    prompts: int
    decoded_tokens: list[int] = Field(description="[batches], new tokens but the first of each text")
    prefill_seconds: list[list[Seconds]] = Field(description="[rounds][batches]: prompts and first tokens")
    decode_seconds: list[list[Seconds]] = Field(description="[rounds][batches]: all further tokens")
    layer_calls: list[float] | None = Field(default=None, description="[batches], of the decoded tokens")
    completed_seconds: list[list[Seconds]] = Field(
        default=[],
        description="[rounds][prompts]: since a text was asked for, together with all that were under way, until its "
        "last token was there; empty where that is not noted",
    )
    head_seconds: list[list[Seconds]] = Field(
        default=[],
        description="[rounds][batches], of stock generate: embedding and LM head of the decoding, which no exit saves",
    )

    @property
    def round_seconds(self) -> list[float]:
        """Seconds a decoded token, in each round; empty if there is none."""
        tokens = sum(self.decoded_tokens)
        return [sum(seconds) / tokens for seconds in self.decode_seconds] if tokens else []

    @property
    def layers_a_token(self) -> float | None:
        """Layers called for a decoded token; None where they were not counted."""
        return None if self.layer_calls is None else sum(self.layer_calls) / max(sum(self.decoded_tokens), 1)


class Contender(Strict):
    """One operating point, or the stock model, in a timing run."""

    cell_key: str = Field(description="empty for the stock model")
    label: str
    knob: float | None
    average_layers: float = Field(description="over the timed rows")
    samples: list[TimingSamples | DecodingSamples]


class TimingRecord(Strict):
    """All operating points of one (task, backbone, seed) and the stock model, timed in interleaved rounds."""

    schema_version: Literal[1] = 1
    kind: Kind = "classification"
    key: str = Field(description="hash of the protocol and its code; what was timed is in contenders")
    task: str
    backbone: str
    seed: int
    rounds: int
    max_new_tokens: int | None = Field(None, description="of a text, in generation")
    contenders: list[Contender]
    environment_before: dict[str, object]
    environment_after: dict[str, object]
    command: str
    finished_at: str

    @property
    def total_seconds(self) -> float:
        """Seconds from the first pass to the last, untimed ones included."""
        began = datetime.fromisoformat(str(self.environment_before["time"]))
        return (datetime.fromisoformat(self.finished_at) - began).total_seconds()
