"""Apply a model's ``generation_config`` to its texts: which tokens may follow, and what ends a text.

Each setting is applied by the logits processor of transformers that ``generate`` uses, to one row's own tokens: a
text is that of stock ``generate`` at batch 1, whatever the batch. Exit rules read the exit's own distribution, as
traces do; processors change the scores of the exit that is taken. Temperature, ``top_k`` and ``top_p`` hold where
:class:`consistentee.Sampling` is asked for and leaves them open; without it texts are greedy, whatever ``do_sample``.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import transformers as hf

from consistentee.engine.sampling import Sampling
from consistentee.engine.transcript import Endings, Stream, Transcript
from consistentee.errors import UserError
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder

_SEVERAL = ("num_beams", "num_return_sequences", "guidance_scale")  # texts, or passes, a row
_REFUSED = (
    *_SEVERAL,
    *("penalty_alpha", "dola_layers", "constraints", "force_words_ids", "watermarking_config", "token_healing"),
    *("prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp"),  # drafts of another kind
    "max_time",
)
_REFUSED_IN_SAMPLING = ("min_p", "typical_p", "top_h", "epsilon_cutoff", "eta_cutoff")


class _Row(NamedTuple):
    """A row before its first new token: its prompt int64 [1, ``length``], and the length that ends it."""

    read: torch.Tensor
    length: int
    longest: int
    ends: list[int]
    device: torch.device


_PROCESSORS: dict[str, tuple[object, Callable[[Any, _Row], Any]]] = {
    "sequence_bias": (None, lambda value, _: hf.SequenceBiasLogitsProcessor(value)),
    "encoder_repetition_penalty": (1, lambda value, row: hf.EncoderRepetitionPenaltyLogitsProcessor(value, row.read)),
    "repetition_penalty": (1, lambda value, _: hf.RepetitionPenaltyLogitsProcessor(value)),
    "no_repeat_ngram_size": (0, lambda value, _: hf.NoRepeatNGramLogitsProcessor(value)),
    "encoder_no_repeat_ngram_size": (0, lambda value, row: hf.EncoderNoRepeatNGramLogitsProcessor(value, row.read)),
    "bad_words_ids": (None, lambda value, row: hf.NoBadWordsLogitsProcessor(value, row.ends or None)),
    "min_length": (0, lambda value, row: hf.MinLengthLogitsProcessor(value, row.ends, row.device)),
    "min_new_tokens": (
        0,
        lambda value, row: hf.MinNewTokensLengthLogitsProcessor(row.length, value, row.ends, row.device),
    ),
    "forced_bos_token_id": (None, lambda value, _: hf.ForcedBOSTokenLogitsProcessor(value)),
    "forced_eos_token_id": (None, lambda value, row: hf.ForcedEOSTokenLogitsProcessor(row.longest, value, row.device)),
    "remove_invalid_values": (False, lambda *_: hf.InfNanRemoveLogitsProcessor()),
    "exponential_decay_length_penalty": (
        None,
        lambda value, row: hf.ExponentialDecayLengthPenalty(value, row.ends, row.length),
    ),
    "suppress_tokens": (None, lambda value, row: hf.SuppressTokensLogitsProcessor(value, row.device)),
    "begin_suppress_tokens": (
        None,
        lambda value, row: hf.SuppressTokensAtBeginLogitsProcessor(value, row.length, row.device),
    ),
}
"""Setting -> the value that changes nothing, and its processor; in the order of stock ``generate``."""
_ABOUT_ENDS = ("min_length", "min_new_tokens", "exponential_decay_length_penalty")


def settings_of(model: MultiExitDecoder) -> dict[str, Any]:
    """Return the settings of a model that change the scores of next tokens; usually none."""
    settings = getattr(model.backbone, "generation_config", None)
    found = {name: getattr(settings, name, None) for name in _PROCESSORS}
    return {
        name: value
        for name, value in found.items()
        if value not in (None, _PROCESSORS[name][0]) and (model.end_tokens or name not in _ABOUT_ENDS)
    }


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
        if value and not (value == 1 and name in (*_SEVERAL, "typical_p")):  # which 1 leaves as it is
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
    endings = Endings(model.end_tokens if end_at_eos else frozenset(), stops, max_new_tokens)
    changing, ends, device = settings_of(model), sorted(model.end_tokens), model.device
    texts = [Transcript(row, model.decode, endings, stream, prompt=prompt) for row, prompt in enumerate(prompts)]
    for text in texts if changing else ():
        length = len(text.prompt)
        row = _Row(torch.tensor([text.prompt], device=device), length, length + max_new_tokens, ends, device)
        text.process = hf.LogitsProcessorList(_PROCESSORS[name][1](value, row) for name, value in changing.items())
    return texts
