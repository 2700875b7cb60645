"""Training of decoders: their exits, their backbone, and the branches of self-drafting methods."""
