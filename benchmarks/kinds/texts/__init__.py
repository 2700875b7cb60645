"""Parts of a cell of generation: prompts and texts, the choice of knobs, and the record of both."""
