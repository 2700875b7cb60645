"""What differs between classification and generation: how a cell runs, and how it is timed."""
