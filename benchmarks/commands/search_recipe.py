"""The search of recipes on the command line: train, keep every epoch in a file, show what follows from it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.run.recipe_search import choose, search
from benchmarks.specs.base import SuiteSpec
from benchmarks.specs.suites import Filters, load_suite
from benchmarks.terminal import add_columns, add_row, plain_table
from consistentee.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

RATES = (5e-5, 1e-4, 2e-4)


def recipes_of(
    suite_name: str,
    filters: Filters,
    rates: Sequence[float] | None,
    epochs: int,
    *,
    data_dir: Path | None,
    out: Path | None,
) -> "Table":
    """Search what is missing in ``out``, and return the recipe of every task in it. Raises UserError for generation."""
    suite = load_suite(suite_name)
    if not isinstance(suite, SuiteSpec):
        raise UserError(f"suite {suite.name!r} is of {suite.kind}; epochs and rates are searched for classification")
    out = Path("runs") / f"{suite.name}-recipes.csv" if out is None else out
    for seen in search(suite, filters, rates or RATES, epochs, data_dir=data_dir, out=out):
        found = choose(seen)
    table = plain_table("Recipes chosen on validation rows", f"every epoch: {out}")
    add_columns(table, "task", "backbone", "learning rate", "epochs", "stage", "score %", "best of all %")
    for line in found.itertuples():
        shown = f"{100 * line.score:.1f}", f"{100 * line.best:.1f}"
        add_row(table, line.task, line.backbone, f"{line.learning_rate:g}", line.epochs, line.stage, *shown)
    return table
