"""A rule of decoding whose exits differ from token to token and are known before layers run."""

from consistentee import ExitRule, token_key


class KnownRandomRule(ExitRule):
    """Draw a layer for each token, each with the same chance, and exit at the first exit that is not before it."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def drawn(self, keys, num_layers):
        return 1 + (keys + 7919 * self.seed) % num_layers

    def should_exit(self, view, state):
        return self.drawn(view.row_keys, view.num_layers) <= view.layer

    def exit_in_advance(self, exit_layers, step, prompt_key):
        drawn = self.drawn(token_key(prompt_key, step), exit_layers[-1])
        return next(layer for layer in exit_layers if layer >= drawn)
