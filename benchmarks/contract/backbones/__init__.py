"""What must hold of a backbone before methods are compared on it."""
