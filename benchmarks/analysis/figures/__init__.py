"""The figures of a results folder."""
