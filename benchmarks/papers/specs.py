"""PaperTable: a table of a paper, its rows and columns by name. Its numbers are in ``results.csv``."""

from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import Field

from benchmarks.specs.schema import Strict
from benchmarks.yaml_files import load_named, yaml_files

PAPERS_DIR = Path(__file__).parent / "tables"


class PrintedSpeed(StrEnum):
    """The meaning of a paper's speed-ups."""

    LAYERS = "layers"  # L / average layers: 2.0
    TIME_SAVED = "time saved"  # a share of the wall time: -50%
    NOT_STATED = "not stated"  # a ratio of something


class PrintedValue(StrEnum):
    """The values that a paper prints."""

    SCORE = "score"
    POINTS = "points"  # the score minus the full model's


class PaperColumn(Strict):
    """A task of the table."""

    printed: str = Field(description="its name in results.csv")
    task: str = Field(description="ours")
    metric: str = Field(description="ours, by which our knobs are chosen and scored")
    printed_metrics: tuple[str, ...] = Field(min_length=1, description="what the paper calls it, method by method")


class PaperMethod(Strict):
    """A method of the table."""

    printed: str = Field(description="its name in results.csv")
    backbone: str = Field(description="as printed")
    full: str = Field(description="the printed name of the model that it is measured against")
    ours: tuple[str, ...] = Field(min_length=1, description="our curves, by label")


class PaperSetting(Strict):
    """A backbone of ours and the suite that trains it."""

    backbone: str
    suite: str


class PaperTable(Strict):
    """A table that ``consistentee reproduce`` knows by name."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[\w.-]+$")
    title: str
    table: str = Field(description="as the column of that name in results.csv says")
    speed: PrintedSpeed
    values: PrintedValue = PrintedValue.SCORE
    columns: tuple[PaperColumn, ...] = Field(min_length=1)
    methods: tuple[PaperMethod, ...] = Field(min_length=1)
    settings: tuple[PaperSetting, ...] = Field(min_length=1, description="whose results are shown unasked")
    paper_setting: PaperSetting = Field(description="the paper's backbone; its suite trains any backbone not listed")
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(label for method in self.methods for label in method.ours))

    def setting_for(self, backbone: str) -> PaperSetting:
        known = {setting.backbone: setting for setting in (*self.settings, self.paper_setting)}
        return known.get(backbone, PaperSetting(backbone=backbone, suite=self.paper_setting.suite))


def list_papers() -> dict[str, Path]:
    """Return the tables that come with the package: name -> file."""
    return yaml_files(PAPERS_DIR)


def load_paper(name_or_path: str | Path) -> PaperTable:
    """Read a table, by its name or as the path of a YAML file.

    Raises UserError for an unknown name, and for a file that is not a valid table (the field is named).
    """
    return load_named("paper table", name_or_path, list_papers(), lambda fields: PaperTable)
