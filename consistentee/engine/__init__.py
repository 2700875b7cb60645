"""Rows that really leave: classification, and decoding in batches."""
