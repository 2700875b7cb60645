"""DecoderStack: the first layers of a decoder and the branch behind them, as a shallower decoder."""

from dataclasses import replace

from consistentee.files import hash_json, hash_tensors
from consistentee.models.decoder.branches import Branch
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder


class DecoderStack(MultiExitDecoder):
    """Layers 1 to e of a decoder, and the branch at exit layer e as its last layer, e + 1, with the branch's norm.

    All weights are the decoder's own. There is one exit, the last, so that every token goes through the branch, and
    what decodes, traces or counts a decoder does so here: prompts run e + 1 layers too.
    """

    def __init__(self, model: MultiExitDecoder, exit_layer: int) -> None:
        """Raises ValueError where ``exit_layer`` has no branch."""
        self._branches: list[Branch] = [model.branch(exit_layer)]  # in a list, so that it stays the decoder's own
        layers = [model.stepper.layer_module(layer) for layer in range(1, exit_layer + 1)]
        stepper = model.stepper.over([*layers, self._branches[0].layer], self._branches[0].norm)
        description = replace(model.description, exit_layers=(exit_layer + 1,), branches={}, heads={})
        super().__init__(stepper, model.tokenizer, description)

    def train(self, mode: bool = True) -> "DecoderStack":
        """Set training or evaluation, for the branch too, which is no submodule here."""
        super().train(mode)
        for branch in self._branches:
            branch.train(mode)
        return self

    def backbone_fingerprint(self) -> str:
        return hash_json([super().backbone_fingerprint(), hash_tensors(self._branches[0].state_dict())])
