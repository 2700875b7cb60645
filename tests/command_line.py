"""The command line in this process, without real data."""

from typer.testing import CliRunner, Result

from benchmarks.cli import app


def call(*words: object) -> Result:
    """Run ``consistentee`` with some words; on a wide terminal, few lines are broken."""
    return CliRunner().invoke(app, [str(word) for word in words], env={"CONSISTENTEE_DATA": "", "COLUMNS": "200"})


def succeed(*words: object) -> Result:
    """Run ``consistentee`` as :func:`call` does, and check that it ends with 0."""
    done = call(*words)
    assert done.exit_code == 0, done.output
    return done
