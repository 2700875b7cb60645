"""Baselines: one file for each method, readable from top to bottom."""
