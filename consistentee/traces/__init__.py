"""Outputs of every layer for every row, recorded once; any exit rule is replayed on them."""
