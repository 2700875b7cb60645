"""Base of all schemas of the harness: unknown keys are refused, equal values have equal JSON."""

import json

from pydantic import BaseModel, ConfigDict


def canonical_json(value: object) -> str:
    """Return the canonical JSON of a value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


class Strict(BaseModel):
    """A model that forbids unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")
