"""Specifications, records, keys and folders: what a run is asked for, and what it leaves behind."""
