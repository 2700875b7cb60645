"""Rows and their splits, their encoding, and the metrics of answers."""
