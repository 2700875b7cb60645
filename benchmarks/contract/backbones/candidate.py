"""EncoderCandidate: a pretrained encoder on its way to a multi-exit model, loaded in steps that can each go wrong."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from benchmarks.contract.faults import BrokenContractError, described
from benchmarks.contract.tiny.encoders import random_texts, with_random_classifiers
from consistentee.backbones.catalog import ResolvedBackbone
from consistentee.data.encoding import Encoding
from consistentee.data.instances import Text
from consistentee.models.encoder.multi_exit_model import MultiExitModel

ROWS = 33
"""One more than a batch of 32, so that the last batch has one row."""
_CLASSES = 3
_WORDS = 400


@dataclass
class EncoderCandidate:
    """A folder that should hold an encoder and its tokenizer; ``config`` is its stock configuration."""

    name: str
    found: ResolvedBackbone
    config: Any

    @cached_property
    def tokenizer(self) -> Any:
        """The stock tokenizer. Raises BrokenContractError if there is none that transformers can load."""
        try:
            return AutoTokenizer.from_pretrained(self.found.path, trust_remote_code=False)
        except Exception as error:  # transformers raises nearly anything here
            raise BrokenContractError(
                "no tokenizer can be loaded",
                f"{self.found.path}: {described(error)}",
                "Put the tokenizer's files (tokenizer.json, tokenizer_config.json) beside config.json",
            ) from error

    @cached_property
    def weights(self) -> "LoadedWeights":
        """What loading the weights into the stock model says. Raises BrokenContractError if that fails."""
        transformers.utils.logging.disable_progress_bar()
        try:
            backbone, told = AutoModel.from_pretrained(
                self.found.path,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
            )
        except Exception as error:  # transformers raises nearly anything here
            raise BrokenContractError(
                "the weights cannot be loaded", f"{self.found.path}: {described(error)}", "Fetch or save them again"
            ) from error
        state = backbone.state_dict()
        return LoadedWeights(
            parameters=sum(parameter.numel() for parameter in backbone.parameters()),
            missing=sorted(told["missing_keys"]),
            infinite=[name for name, tensor in state.items() if not tensor.isfinite().all()],
        )

    @cached_property
    def model(self) -> MultiExitModel:
        """A multi-exit model of it, with random classifiers that disagree."""
        model = MultiExitModel.from_backbone(self.name, _CLASSES)
        return with_random_classifiers(model, spread=model.width**-0.5)

    def encodings(self, *, pairs: bool = False, count: int = ROWS) -> list[Encoding]:
        """Return rows of mixed lengths, the longest neither first nor last; the same at every call."""
        return self.model.tokenize(self.texts(count, pairs=pairs))

    def texts(self, count: int, *, pairs: bool = False) -> list[Text]:
        """Return texts of 1 to 24 words that the tokenizer knows, single or pairs."""
        return random_texts(count, seed=11, pairs=pairs, longest=24, words=self.words)

    @cached_property
    def words(self) -> list[str]:
        """Words that the tokenizer knows whole: letters and digits only, at most some hundreds of them."""
        tokens = sorted(set(self.tokenizer.get_vocab()) - set(self.tokenizer.all_special_tokens))
        words = (self.tokenizer.convert_tokens_to_string([token]).strip() for token in tokens)
        known = sorted({word for word in words if word.isascii() and word.isalnum()})
        return random.Random(11).sample(known, min(_WORDS, len(known)))


@dataclass(frozen=True)
class LoadedWeights:
    """What loading weights says.

    Attributes:
        parameters: number of parameters of the stock model.
        missing: parameters that the files do not hold, which start at random.
        infinite: parameters with values that are not finite.
    """

    parameters: int
    missing: list[str]
    infinite: list[str]


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference of two tensors, relative to the largest value where that is above 1."""
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1))


def batches(encodings: Sequence[Encoding], size: int) -> list[Sequence[Encoding]]:
    """Cut rows into batches, in their order."""
    return [encodings[start : start + size] for start in range(0, len(encodings), size)]
