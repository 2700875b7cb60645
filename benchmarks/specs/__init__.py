"""Specifications of a run: suites, cells, and the targets that knobs are chosen for."""
