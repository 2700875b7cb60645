"""Classify and decode in batches that shrink as rows exit."""
