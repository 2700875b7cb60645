"""ConsistentEE: the published algorithm, a policy that learns on held-out rows, and tokens."""
