"""A run of a suite: what is missing is planned, computed in processes of its own, and shown."""
