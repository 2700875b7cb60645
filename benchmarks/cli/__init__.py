"""The ``consistentee`` command. Heavy imports wait until a command needs them, so that ``--help`` is instant."""

from benchmarks.cli import results, models, extensions  # noqa: I001 - the order in --help
from benchmarks.cli.application import app

__all__ = ["app", "extensions", "main", "models", "results"]


def main() -> None:
    """Run the command line."""
    app()
