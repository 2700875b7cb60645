"""What a suite takes, as numbers: what was measured stands in its YAML, what follows from its cells is counted."""

from typing import Self

from pydantic import Field, model_validator

from benchmarks.specs.schema import Strict


class Cost(Strict):
    """What a run of a suite took; what is not known is left out, and ``--dry-run`` estimates it on a machine.

    Times are on 2 CPU cores that did nothing else, timing included, downloads apart.
    """

    hours: float | None = Field(default=None, gt=0, description="as measured")
    of_cells: int | None = Field(default=None, ge=1, description="cells that were measured, where not all of them were")
    processor: str = Field(default="", description="that it was measured on")
    disk_gb: float | None = Field(default=None, gt=0, description="of a whole run, until artifacts/ is deleted")
    disk_gb_a_cell: float | None = Field(default=None, gt=0, description="where disk grows with the cells")
    gpu_gb: int | None = Field(default=None, ge=1, description="memory of the GPU that it is made for")
    remarks: str = Field(default="", description="one more sentence")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.disk_gb is not None and self.disk_gb_a_cell is not None:
            raise ValueError("disk is given in all or a cell, not both")
        if self.of_cells is not None and self.hours is None:
            raise ValueError("of_cells says what hours are of, which are missing")
        return self

    def hours_of(self, cells: int) -> float | None:
        """Return the hours of a run of so many cells, reckoned from those that were measured."""
        return None if self.hours is None else self.hours * cells / (self.of_cells or cells)

    def disk_of(self, cells: int) -> float | None:
        """Return the gigabytes of a run of so many cells."""
        return self.disk_gb if self.disk_gb_a_cell is None else self.disk_gb_a_cell * cells
