"""The ``consistentee`` command. Heavy imports wait until a command needs them, so that ``--help`` is instant."""

import gc  # noqa: I001 - the order in --help

from benchmarks.cli import results, models, extensions
from benchmarks.cli.application import app

__all__ = ["app", "extensions", "main", "models", "results"]


def main() -> None:
    """Run the command line."""
    gc.set_threshold(2_000_000)  # reading results makes a million objects and no cycles: a tenth of its time
    app()
