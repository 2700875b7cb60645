"""How the next token is chosen: sampling, and the settings of a model's ``generation_config``.

Settings are applied by transformers' own logits processors, row by row: a text is that of stock ``generate`` at batch
1. Exit rules read the exit's own distribution, as traces do; processors change the scores of the exit that is taken.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

import torch
import transformers as hf
from pydantic import Field
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from consistentee.arguments import NotNegative, checked
from consistentee.engine.transcript import Endings, Stream, Transcript
from consistentee.errors import UserError
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.traces.token_view import keyed_bits


@checked
@dataclass(frozen=True)
class Sampling:
    """Draw every token from the distribution of its exit, by a hash of the seed, the prompt and the token's place.

    So the same seed gives the same text, and a row's text does not depend on its batch. Two equal prompts get equal
    texts: ask for several texts with several seeds.

    What is None is as the model's ``generation_config`` says, else 1, 0 and 1, which change nothing.

    Attributes:
        temperature: divides the logits; above 0.
        top_k: keep the ``top_k`` likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together have at least this probability (nucleus sampling).
        seed: any integer.
    """

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    top_k: NotNegative | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int = 0

    def choose(self, logits: Tensor, prompt_keys: Sequence[int], steps: Sequence[int]) -> Tensor:
        """Draw each row's token at place ``steps`` [rows] of its text: logits [rows, vocabulary] -> int64 [rows]."""
        scores = logits.float()
        if self.temperature is not None:
            scores = TemperatureLogitsWarper(float(self.temperature))(None, scores)
        if self.top_k:
            scores = TopKLogitsWarper(self.top_k)(None, scores)
        if self.top_p is not None:
            scores = TopPLogitsWarper(float(self.top_p))(None, scores)
        distribution = scores.softmax(dim=-1).double().cumsum(dim=-1)
        uniform = [keyed_bits(self.seed, key, step) / 2**64 for key, step in zip(prompt_keys, steps, strict=True)]
        wanted = torch.tensor(uniform, dtype=torch.double, device=logits.device).unsqueeze(1)
        # Strictly above, and of the sum that rounding left: a token of probability 0 is never drawn.
        drawn = torch.searchsorted(distribution, wanted * distribution[:, -1:], right=True)
        return drawn.squeeze(1).clamp_max_(logits.shape[-1] - 1)


def choose_tokens(sampling: Sampling | None, logits: Tensor, rows: Sequence[Transcript]) -> Tensor:
    """Return the next token of each row, int64 [rows]: the likeliest where ``sampling`` is None.

    Logits are [rows, vocabulary]; settings of the model's own change them first.
    """
    if any(row.process for row in rows):
        logits = torch.cat([row.scores(own) for row, own in zip(rows, logits.split(1), strict=True)])
    if sampling is None:
        return logits.argmax(dim=-1)
    return sampling.choose(logits, [row.key for row in rows], [len(row.tokens) for row in rows])


_NEUTRAL_AT_1 = ("num_beams", "num_return_sequences", "guidance_scale", "encoder_repetition_penalty", "typical_p")
_REFUSED = (
    *("num_beams", "num_return_sequences", "guidance_scale"),  # several texts, or passes, a row
    *("encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "forced_bos_token_id", "forced_eos_token_id"),
    *("sequence_bias", "exponential_decay_length_penalty"),  # like those, seldom set for a decoder
    *("penalty_alpha", "dola_layers", "constraints", "force_words_ids", "watermarking_config", "token_healing"),
    *("prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp"),  # drafts of another kind
    "max_time",
)
_REFUSED_IN_SAMPLING = ("min_p", "typical_p", "top_h", "epsilon_cutoff", "eta_cutoff")


class _Row(NamedTuple):
    length: int
    ends: list[int]
    device: torch.device


_PROCESSORS: dict[str, tuple[object, Callable[[Any, _Row], Any]]] = {
    "repetition_penalty": (1, lambda value, _: hf.RepetitionPenaltyLogitsProcessor(value)),
    "no_repeat_ngram_size": (0, lambda value, _: hf.NoRepeatNGramLogitsProcessor(value)),
    "bad_words_ids": (None, lambda value, row: hf.NoBadWordsLogitsProcessor(value, row.ends or None)),
    "min_length": (0, lambda value, row: hf.MinLengthLogitsProcessor(value, row.ends, row.device)),
    "min_new_tokens": (
        0,
        lambda value, row: hf.MinNewTokensLengthLogitsProcessor(row.length, value, row.ends, row.device),
    ),
    "remove_invalid_values": (False, lambda *_: hf.InfNanRemoveLogitsProcessor()),
    "suppress_tokens": (None, lambda value, row: hf.SuppressTokensLogitsProcessor(value, row.device)),
    "begin_suppress_tokens": (
        None,
        lambda value, row: hf.SuppressTokensAtBeginLogitsProcessor(value, row.length, row.device),
    ),
}
"""Setting -> the value that changes nothing, and its processor; in the order of stock ``generate``."""


def settings_of(model: MultiExitDecoder) -> dict[str, Any]:
    """Return the settings of a model that change the scores of next tokens; usually none."""
    settings = getattr(model.backbone, "generation_config", None)
    names = [name for name in _PROCESSORS if model.end_tokens or name not in ("min_length", "min_new_tokens")]
    found = {name: getattr(settings, name, None) for name in names}
    return {name: value for name, value in found.items() if value not in (None, _PROCESSORS[name][0])}


def sampling_of(model: MultiExitDecoder, sampling: Sampling) -> Sampling:
    """Return a call's sampling with the model's settings where it leaves them open; raise UserError for others."""
    settings = getattr(model.backbone, "generation_config", None)
    _refuse(settings, _REFUSED_IN_SAMPLING)
    left_open = [name for name in ("temperature", "top_k", "top_p") if getattr(sampling, name) is None]
    models: dict[str, Any] = {name: getattr(settings, name, None) for name in left_open}
    return replace(sampling, **models)


def _refuse(settings: hf.GenerationConfig | None, names: Sequence[str]) -> None:
    for name in names:
        value = getattr(settings, name, None)
        if value and not (value == 1 and name in _NEUTRAL_AT_1):
            raise UserError(
                f"the model's generation_config sets {name}, which decoding with exits cannot follow; to decode "
                f"without, set model.backbone.generation_config.{name} = None"
            )


def begin_texts(
    model: MultiExitDecoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    stream: Stream | None = None,
    end_at_eos: bool = True,
) -> list[Transcript]:
    """Begin a transcript for each prompt, with the settings of the model's ``generation_config``.

    Raises UserError for a setting that decoding with exits cannot follow, and for an empty stop string.
    """
    settings = getattr(model.backbone, "generation_config", None)
    _refuse(settings, _REFUSED)
    strings = getattr(settings, "stop_strings", None) or ()
    stops = [*stop, *([strings] if isinstance(strings, str) else strings)]
    special = {number for number, token in model.tokenizer.added_tokens_decoder.items() if token.content in stops}
    endings = Endings(model.end_tokens if end_at_eos else frozenset(), stops, max_new_tokens, frozenset(special))
    changing = settings_of(model)
    texts = [Transcript(row, model.decode, endings, stream, prompt=prompt) for row, prompt in enumerate(prompts)]
    for text in texts if changing else ():
        row = _Row(len(text.prompt), sorted(model.end_tokens), model.device)
        text.process = hf.LogitsProcessorList(_PROCESSORS[name][1](value, row) for name, value in changing.items())
    return texts
