"""DraftedTexts: texts of the full model, on which drafts of the model without some sublayers are scored."""

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from consistentee.engine.generate import generate_encoded
from consistentee.engine.token_batch import TokenBatch
from consistentee.errors import UserError
from consistentee.models.decoder.branches import SkippedSublayers
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import NeverExit


class DraftedTexts:
    """Texts of the full model after some prompts, and the share of their tokens that a draft predicts.

    ``tokens`` is the maximum length of a text. Raises UserError if no text has two tokens.
    """

    @torch.inference_mode()
    def __init__(self, model: MultiExitDecoder, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        count = min(tokens, model.stepper.position_limit - max(map(len, prompts)))
        texts = generate_encoded(model, prompts, NeverExit(), max_new_tokens=count).tokens
        self._model = model
        self.texts = pad_sequence(texts, batch_first=True, padding_value=model.pad_id).to(model.device)
        lengths = torch.tensor([len(text) for text in texts], device=model.device)
        columns = self.texts.shape[1] - 1
        self._follows = torch.arange(columns, device=model.device) < (lengths - 1).unsqueeze(1)  # bool [texts, columns]
        if not self._follows.any():
            raise UserError("no text has a second token to draft after the prompts that sublayers are searched on")
        self._batch = TokenBatch(model, len(prompts), max(map(len, prompts)) + columns)
        self._batch.read(self._batch.rows(), prompts)
        self._batch.begin(self._batch.rows(), columns)

    @torch.inference_mode()
    def score(self, skipped: SkippedSublayers) -> float:
        """Compute the share of tokens that the model without some sublayers predicts, in one pass."""
        model, columns = self._model, self.texts.shape[1] - 1
        rows = self._batch.rows()
        context = self._batch.context(rows, self._batch.newest_columns(rows, columns))
        hidden = model.stepper.embed(self.texts[:, :-1], context.positions)
        hidden = skipped.run(model.stepper, hidden, context)
        self._batch.cache.ledger.take_back(columns)
        predicted = model.logits(model.num_layers, hidden[self._follows]).argmax(dim=-1)
        return float((predicted == self.texts[:, 1:][self._follows]).double().mean())
