"""What cells of generation are made of: prompts and texts, the choice of knobs, and what is kept of both."""
