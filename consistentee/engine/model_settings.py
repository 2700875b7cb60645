"""What a model's ``generation_config`` says of its texts: which tokens may follow, and what ends a text.

Each setting is applied by the logits processor of transformers that ``generate`` uses, to one row's own tokens: a
text is that of stock ``generate`` at batch 1, whatever the batch. Exit rules read the exit's own distribution, as
traces do; processors change the scores of the exit that is taken. Temperature, ``top_k`` and ``top_p`` belong to
:class:`consistentee.Sampling`, and ``do_sample`` does not apply: texts are greedy unless a call asks for sampling.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from consistentee.engine.transcript import Endings, Stream, Transcript
from consistentee.errors import UserError
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder

_REFUSED = {
    "num_beams": "keeps several texts a row",
    "num_return_sequences": "keeps several texts a row",
    "guidance_scale": "runs a second prompt a row",
    "penalty_alpha": "searches among several next tokens",
    "dola_layers": "contrasts layers that an exit skips",
    "watermarking_config": "marks texts",
    "prompt_lookup_num_tokens": "drafts by itself",
    "assistant_early_exit": "drafts by itself",
    "use_mtp": "drafts by itself",
    "constraints": "searches among several texts",
    "force_words_ids": "searches among several texts",
    "token_healing": "changes the prompt",
    "max_time": "ends texts by the clock",
}


_NEUTRAL: dict[str, object] = {
    "sequence_bias": None,
    "encoder_repetition_penalty": 1,
    "repetition_penalty": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "remove_invalid_values": False,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
"""Settings with a logits processor, in the order of stock ``generate``, and the value of each that changes nothing."""
_ABOUT_ENDS = ("min_length", "min_new_tokens", "exponential_decay_length_penalty")


def settings_of(model: MultiExitDecoder) -> dict[str, Any]:
    """Return the settings of a model that change the scores of next tokens; usually none."""
    settings = getattr(model.backbone, "generation_config", None)
    found = {name: getattr(settings, name, None) for name in _NEUTRAL}
    return {
        name: value
        for name, value in found.items()
        if value not in (None, _NEUTRAL[name]) and (model.end_tokens or name not in _ABOUT_ENDS)
    }


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
    for name, reason in _REFUSED.items():
        if getattr(settings, name, None) not in (None, False, 0, 1, "", [], ()):
            raise UserError(
                f"the model's generation_config sets {name}, which {reason}: decoding with exits cannot follow it; "
                f"set model.backbone.generation_config.{name} = None to decode without"
            )
    strings = getattr(settings, "stop_strings", None) or ()
    stops = [*stop, *([strings] if isinstance(strings, str) else strings)]
    endings = Endings(model.end_tokens if end_at_eos else frozenset(), stops, max_new_tokens)
    changing = settings_of(model)
    texts = []
    for row, prompt in enumerate(prompts):
        process = _processors(model, changing, prompt, max_new_tokens) if changing else None
        texts.append(Transcript(row, model.decode, endings, stream, prompt=prompt, process=process))
    return texts


def _processors(
    model: MultiExitDecoder, settings: dict[str, Any], prompt: Sequence[int], max_new_tokens: int
) -> LogitsProcessorList:
    """Build what changes the scores of one row."""
    device, length, ends = model.device, len(prompt), sorted(model.end_tokens)
    read = torch.tensor([prompt], device=device)
    begin = length + (length == 1 and "forced_bos_token_id" in settings)
    makers = {
        "sequence_bias": SequenceBiasLogitsProcessor,
        "encoder_repetition_penalty": lambda value: EncoderRepetitionPenaltyLogitsProcessor(value, read),
        "repetition_penalty": RepetitionPenaltyLogitsProcessor,
        "no_repeat_ngram_size": NoRepeatNGramLogitsProcessor,
        "encoder_no_repeat_ngram_size": lambda value: EncoderNoRepeatNGramLogitsProcessor(value, read),
        "bad_words_ids": lambda value: NoBadWordsLogitsProcessor(value, ends or None),
        "min_length": lambda value: MinLengthLogitsProcessor(value, ends, device),
        "min_new_tokens": lambda value: MinNewTokensLengthLogitsProcessor(length, value, ends, device),
        "forced_bos_token_id": ForcedBOSTokenLogitsProcessor,
        "forced_eos_token_id": lambda value: ForcedEOSTokenLogitsProcessor(length + max_new_tokens, value, device),
        "remove_invalid_values": lambda _: InfNanRemoveLogitsProcessor(),
        "exponential_decay_length_penalty": lambda value: ExponentialDecayLengthPenalty(value, ends, length),
        "suppress_tokens": lambda value: SuppressTokensLogitsProcessor(value, device),
        "begin_suppress_tokens": lambda value: SuppressTokensAtBeginLogitsProcessor(value, begin, device),
    }
    return LogitsProcessorList([makers[name](value) for name, value in settings.items()])
