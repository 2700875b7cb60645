"""The harness: what a suite is, how a cell runs, how it is measured, what is recorded."""
