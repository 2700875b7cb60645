"""``python -m benchmarks.cli`` is ``consistentee``."""

from benchmarks.cli import main

main()
