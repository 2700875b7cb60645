"""The two kinds of suites: classification and generation. Planning uses them without loading torch."""

from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.kinds.classification import Classification
from benchmarks.kinds.generation import Generation
from benchmarks.kinds.kind import CellRows, Kind
from benchmarks.specs.base import BaseCellSpec
from benchmarks.store.keys import key_parts
from benchmarks.store.records import KeyParts

KINDS: dict[str, Kind] = {"classification": Classification(), "generation": Generation()}
"""The kinds by the names that suites and cells give them."""


class Inputs:
    """The tasks and backbones of a run, each loaded or identified once."""

    def __init__(self, data_dir: Path | None) -> None:
        self._data_dir = data_dir
        self._rows: dict[Hashable, CellRows[Any]] = {}
        self._identity = cache(lambda kind, backbone: KINDS[kind].backbone_identity(backbone))

    def rows(self, spec: BaseCellSpec) -> CellRows[Any]:
        if spec.rows not in self._rows:
            self._rows[spec.rows] = KINDS[spec.kind].load_rows(spec, self._data_dir)
        return self._rows[spec.rows]

    def parts(self, spec: BaseCellSpec) -> KeyParts:
        """Collect everything that a cell's results depend on. Raises UserError if data or backbone cannot be found."""
        return key_parts(spec, self.rows(spec).fingerprint, self._identity(spec.kind, spec.backbone))
