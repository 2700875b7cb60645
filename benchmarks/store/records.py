"""The schema of everything the harness writes: raw numbers first.

A field with a default is newer than the first records, which lack it.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from benchmarks.specs.schema import Strict, canonical_json
from benchmarks.specs.targets import Target
from consistentee.versions import Kind


class KeyParts(Strict):
    """All that a cell's results depend on, see :func:`benchmarks.store.keys.key_parts`."""

    kind: Kind
    settings: dict[str, object] = Field(description="of the cell; those at their defaults are left out")
    rows: str = Field(description="hash of the rows that were used")
    backbone: dict[str, object] = Field(description="hashes of its files, and how it is pooled")
    method_version: int | str = Field(description="of its class; or a hash, where the method is a user's file")
    engine_version: int
    training_version: int

    @cached_property
    def key(self) -> str:
        return hashlib.sha256(canonical_json(self.model_dump(mode="json")).encode()).hexdigest()


class CurvePoint(Strict):
    """One value of the knob, replayed on one split."""

    knob: float
    scores: dict[str, float]
    exit_histogram: list[int] = Field(description="rows that exit at layer 1, 2, ...; a cascade has more layers than L")
    token_layers: float | None = Field(
        None, description="where tokens exit by themselves: layers that a row's tokens ran, mean over tokens, then rows"
    )

    @property
    def average_layers(self) -> float:
        """Layers that a row ran, on average: its exit layer (1-based), or the mean over its tokens where they exit."""
        if self.token_layers is not None:
            return self.token_layers
        reached = list(accumulate(reversed(self.exit_histogram)))  # rows that run layer L, L-1, ..., 1
        return sum(reached) / reached[-1]


class BaseOperatingPoint(Strict):
    """One value of the knob, chosen on validation data, measured on the test split."""

    knob: float
    targets: list[Target] = Field(description="why this knob, on validation data")


class OperatingPoint(BaseOperatingPoint):
    """An operating point of classification."""

    validation: CurvePoint
    test: CurvePoint
    score_interval: tuple[float, float] = Field(description="95% bootstrap interval of the test score, over rows")
    flops: float = Field(description="floating point operations of all test rows, padding not counted")
    live_rows: int = Field(description="test rows that were classified live, 0 for a rule that needs labels")
    live_disagreements: int = Field(description="rows whose live exit layer or answer differs from the replay")
    signal_quantiles: list[list[float]] = Field(default=[], description="of the rule's signal; no longer measured")


class HullPoint(Strict):
    """A knob on the concave hull of the validation curve, whose answers are kept: mixtures are made of such knobs."""

    place: int = Field(description="of the knob in both curves, from 0")
    validation_flops: float = Field(description="floating point operations of all validation rows, padding not counted")
    flops: float = Field(description="of all test rows")


class BaseRecord(Strict, ABC):
    """The fields that records of all kinds share: what was run, on how many rows, when and where."""

    schema_version: Literal[1] = 1
    key: str
    key_parts: KeyParts
    code_hash: str | None = Field(None, description="of the project's code that ran, never compared")
    task: str
    task_version: int
    metric: str
    task_notes: str
    backbone: str
    method: str
    label: str = Field(description="name of the curve this cell belongs to in tables and plots")
    parameters: dict[str, object]
    knob_name: str
    seed: int
    num_layers: int = Field(description="layers of the stock model, L: budgets and saved layers are measured by it")
    train_rows: int
    validation_rows: int
    test_rows: int
    train_seconds: float
    validation_by_epoch: dict[str, list[float]] = Field(
        default={},
        description="score on validation rows after each epoch of joint, last-exit, attending exits; -loss of branches",
    )
    losses: dict[str, list[Annotated[float, AfterValidator(lambda loss: float(f"{loss:.4g}"))]]] = Field(
        default={}, description="mean training loss in up to 50 equal parts of every stage, by its name"
    )
    trained_rows: float | None = Field(
        None, description="rows that training passed through the backbone, see consistentee.training.loop.TrainingLog"
    )
    training_precision: Literal["float32", "bfloat16"] | None = Field(None, description="of layers, never compared")
    command: str
    operating_points: Sequence[BaseOperatingPoint]
    environment: dict[str, object]
    finished_at: str

    @abstractmethod
    def timed_points(self, at_most: int) -> Sequence[BaseOperatingPoint]:
        """Return the operating points that may be timed: the cheapest ones that can run live."""

    @abstractmethod
    def mixable_knobs(self) -> list[tuple[float, float, float]]:
        """List (knob, layers, quality where knobs are chosen) of all that mixtures at equal cost may use."""

    def warnings(self) -> list[str]:
        """Return what a run says about the result besides its score, a line each."""
        return []


class CellRecord(BaseRecord):
    """The result of one cell of classification (task, backbone, method with parameters, seed)."""

    full_flops: float = Field(description="floating point operations of the stock model on all test rows")
    curve_validation: list[CurvePoint]
    curve_test: list[CurvePoint]
    operating_points: list[OperatingPoint]
    exit_network: str | None = Field(None, description="kind of the classifiers of exits before layer L")
    full_validation_flops: float | None = Field(None, description="as full_flops, on all validation rows")
    hull: list[HullPoint] = Field(default=[], description="of the validation curve, fewest layers first")

    def timed_points(self, at_most: int) -> list[OperatingPoint]:
        live = [point for point in self.operating_points if point.live_rows]
        return sorted(live, key=lambda point: point.test.average_layers)[:at_most]

    def mixable_knobs(self) -> list[tuple[float, float, float]]:
        hull = [self.curve_validation[point.place] for point in self.hull]
        return [(point.knob, point.average_layers, point.scores[self.metric]) for point in hull]

    def warnings(self) -> list[str]:
        return [
            f"{point.live_disagreements} of {point.live_rows} rows differ live at knob {point.knob:g}"
            for point in self.operating_points
            if point.live_disagreements
        ]


class FailureRecord(Strict):
    """Why a cell has no record: it failed, or its method is not defined for its task."""

    schema_version: Literal[1] = 1
    key: str
    error: str = Field(description="one line")
    refused: bool = Field(description="the method is not defined for the task: nothing to retry")
    may_pass: bool = Field(
        default=False, description="a signal or an OSError ended it for the first time: the next run tries it once more"
    )
    traceback: str
    failed_at: str
