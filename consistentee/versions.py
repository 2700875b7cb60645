"""Versions that results depend on besides settings and data, raised by hand: see docs/versions.md.

A number is raised when what it stands for may give other numbers, and never for a change that cannot. Golden cells fail
where numbers moved and nothing was raised. A method has a number of its own, :attr:`consistentee.Method.version`.
"""

from typing import Final, Literal

Kind = Literal["classification", "generation"]
"""What the rows are: instances, or tokens being decoded."""

ENGINE_VERSION: Final[dict[Kind, int]] = {"classification": 1, "generation": 1}
"""Of stepping, tracing, replaying, choosing knobs and scoring."""

TRAINING_VERSION: Final = 1
"""Of the training loop, of the stages that methods share, and of the defaults of recipes."""

TIMING_VERSION: Final[dict[Kind, int]] = {"classification": 1, "generation": 1}
"""Of how times are taken, and of the engine's speed."""
