"""The peers of ConsistentEE: one file a method, each readable from top to bottom."""
