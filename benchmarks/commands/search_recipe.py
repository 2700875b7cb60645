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
    add_columns(table, "task", "backbone", "stage", "learning rate", "epochs", "score %", "best of all %")
    percent = found[["score", "best"]].mul(100).map("{:.1f}".format)
    for line in found.assign(score=percent["score"], best=percent["best"]).itertuples(index=False):
        add_row(table, *line)
    return table
