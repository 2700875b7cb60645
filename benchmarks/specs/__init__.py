"""Specifications of a run: suites and cells."""
