"""Small random encoders and decoders of every family, and tasks for them: where a method is checked in seconds."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from consistentee.backbones.encoders import STEPPERS, EncoderStepper
from consistentee.data.tasks import PromptSplit, Split, TaskData, Text, TextTask
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.encoder import MultiExitModel

WORDS = [f"w{i}" for i in range(60)]
# Padding has id 1: what RoBERTa and MPNet count positions from, and a trap for code that takes it to be 0.
VOCABULARY = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", *WORDS]
PAD_ID = 1
_SIZE = {
    "vocab_size": len(VOCABULARY),
    "pad_token_id": PAD_ID,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
}

_OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"type_vocab_size": 1},
    "electra": {"embedding_size": 16},
    "mpnet": {},
    "distilbert": {"hidden_dim": 64},
    "albert": {"embedding_size": 16, "num_hidden_groups": 2},
    "deberta-v2": {  # relative positions alone, as in v3, and the convolution of v2
        "relative_attention": True,
        "position_biased_input": False,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "conv_kernel_size": 3,
        "conv_act": "gelu",
    },
    # Every other layer or two attends to 4 tokens on either side.
    "modernbert": {"local_attention": 8, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3},
}
CONFIGS = {family: partial(AutoConfig.for_model, family, **_SIZE, **own) for family, own in _OWN_SETTINGS.items()}
FAMILIES = sorted(CONFIGS)
TOKEN_EXIT_FAMILIES = [family for family in FAMILIES if STEPPERS[family].parts is not EncoderStepper.parts]


def make_tokenizer(uses_token_types: bool) -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer with [CLS] and [SEP]."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ["input_ids", "attention_mask"] + (["token_type_ids"] if uses_token_types else [])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=names,
    )


def save_random_model(
    auto: type[AutoModel] | type[AutoModelForCausalLM], config: PretrainedConfig, directory: Path, spread: float
) -> None:
    """Write a model whose layers differ from each other; the same at every call."""
    transformers.utils.logging.disable_progress_bar()
    config.initializer_range = spread
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        auto.from_config(config).save_pretrained(directory)


@dataclass(frozen=True)
class TinyModels:
    """Tiny models by family; their backbones (4 layers, width 32, random) are written to a folder once."""

    folder: Path

    def backbone(self, family: str) -> Path:
        directory = self.folder / family
        if not directory.is_dir():
            save_random_model(AutoModel, CONFIGS[family](), directory, spread=0.1)
            make_tokenizer(family in ("bert", "electra", "albert")).save_pretrained(directory)
        return directory

    def model(self, family: str = "bert", num_labels: int = 3, **options: object) -> MultiExitModel:
        """Return a fresh multi-exit model whose classifiers disagree."""
        model = MultiExitModel.from_backbone(str(self.backbone(family)), num_labels, **options)  # type: ignore[arg-type]
        return with_random_classifiers(model, spread=0.3)


def with_random_classifiers(model: MultiExitModel, spread: float) -> MultiExitModel:
    """Draw the classifiers of a model, which then disagree."""
    generator = torch.Generator().manual_seed(3)
    for classifier in model.classifiers:
        weight = torch.randn(model.num_labels, model.width, generator=generator) * spread
        classifier.load_state_dict({"weight": weight, "bias": torch.zeros(model.num_labels)})
    return model


def random_texts(
    count: int, seed: int = 0, pairs: bool = False, longest: int = 20, words: Sequence[str] = WORDS
) -> list[Text]:
    """Return texts of mixed length, single or pairs."""
    generator = random.Random(seed)

    def sentence() -> str:
        return " ".join(generator.choices(words, k=generator.randint(1, longest)))

    return [(sentence(), sentence()) if pairs else sentence() for _ in range(count)]


def make_task(rows: int = 60, regression: bool = False) -> TaskData:
    """Return a small task: the first word of a text determines the label, one of 3 classes or a number."""

    def split(name: str, count: int, seed: int) -> Split:
        texts = random_texts(count, seed=seed)
        scores = [3 * (int(str(text).split()[0].removeprefix("w")) / len(WORDS)) for text in texts]
        return Split(name, texts, scores if regression else list(map(int, scores)))

    return TaskData(
        name="toy",
        version=1,
        train=split("train", rows, 1),
        validation=split("validation", rows // 2, 2),
        test=split("test", rows // 2, 3),
        label_names=() if regression else ("class 0", "class 1", "class 2"),
        metrics=("pearson", "spearman") if regression else ("accuracy",),
    )


# ---------------------------------------------------------------------------------------------- decoders


SYLLABLES = [consonant + vowel for consonant in "bdfghjklmnpr" for vowel in "aeiou"]
_SPACE = "\u0120"  # what byte-level tokenizers write for a space
_WHOLE = [*SYLLABLES, *(_SPACE + word for word in SYLLABLES)]
TEXT_VOCABULARY = ["<unk>", "<pad>", "<s>", "</s>", *sorted(set("".join(SYLLABLES))), _SPACE, *_WHOLE]
_IDS = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
_DECODER_SIZE = {
    **_IDS,
    "vocab_size": len(TEXT_VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}

_DECODER_SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {**_DECODER_SIZE, "tie_word_embeddings": True},
    "mistral": _DECODER_SIZE,
    "qwen2": _DECODER_SIZE,
    "qwen3": {**_DECODER_SIZE, "head_dim": 16},
    "gemma": {**_DECODER_SIZE, "head_dim": 16},
    "gpt2": {**_IDS, "vocab_size": len(TEXT_VOCABULARY), "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128},
}
DECODER_CONFIGS = {family: partial(AutoConfig.for_model, family, **own) for family, own in _DECODER_SETTINGS.items()}
DECODER_FAMILIES = sorted(DECODER_CONFIGS)


def make_decoder_tokenizer() -> PreTrainedTokenizerFast:
    """Build a byte-level BPE tokenizer, a token a word, that puts <s> before a text."""
    ids = {token: i for i, token in enumerate(TEXT_VOCABULARY)}
    merges = [(word[0], word[1]) for word in SYLLABLES] + [(_SPACE, word) for word in SYLLABLES]
    tokenizer = Tokenizer(models.BPE(ids, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@dataclass(frozen=True)
class TinyDecoders:
    """Tiny decoders by family; their backbones (4 layers, width 32, random) are written to a folder once."""

    folder: Path

    def backbone(self, family: str = "llama") -> Path:
        directory = self.folder / family
        if not directory.is_dir():
            # Layers differ from each other, and the next token varies.
            save_random_model(AutoModelForCausalLM, DECODER_CONFIGS[family](), directory, spread=0.3)
            make_decoder_tokenizer().save_pretrained(directory)
        return directory

    def model(self, family: str = "llama", *, rank: int = 16, **options: object) -> MultiExitDecoder:
        """Return a fresh multi-exit decoder whose adapters are random, so that its exits disagree."""
        model = MultiExitDecoder.from_backbone(str(self.backbone(family)), rank=rank, **options)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in model.exit_adapters.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        return model


def random_prompts(count: int, seed: int = 0, longest: int = 20) -> list[str]:
    """Return texts of 1 to ``longest`` words."""
    return [str(text) for text in random_texts(count, seed, longest=longest, words=SYLLABLES)]


def make_text_task(rows: int = 40) -> TextTask:
    """Return a small task: a text goes on with the words that follow in the list."""

    def split(name: str, count: int, seed: int) -> PromptSplit:
        generator = random.Random(seed)
        prompts, references = [], []
        for _ in range(count):
            start, read, written = generator.randrange(40), generator.randint(1, 4), generator.randint(1, 6)
            words = SYLLABLES[start : start + read + written]
            prompts.append(" ".join(words[:read]))
            references.append("".join(f" {word}" for word in words[read:]))
        return PromptSplit(name, prompts, references)

    return TextTask(
        name="toy-text",
        version=1,
        train=split("train", rows, 1),
        validation=split("validation", rows // 2, 2),
        test=split("test", rows // 2, 3),
        metrics=("rougeL",),
        template="{prompt}",
        max_prompt_tokens=16,
        max_new_tokens=8,
    )
