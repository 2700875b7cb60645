"""Commands on one model outside a suite: train it, load it, ask it, bound its risk."""
