"""What a run computes: cells and timings, each in a process of its own, here or on a cluster."""
