"""Tables of generation: operating points, equal cost, and batches."""
