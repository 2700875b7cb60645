"""The clock, floating point operations, and scores with their intervals."""
