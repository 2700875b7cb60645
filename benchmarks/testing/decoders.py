"""Small random decoders of every family, and a task for them: where generation is checked in seconds."""

import random
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from benchmarks.testing.encoders import random_texts, save_random_model
from consistentee.data.prompts import PromptSplit, TextTask
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder

WORDS = [consonant + vowel for consonant in "bdfghjklmnpr" for vowel in "aeiou"]
_SPECIAL = ["<unk>", "<pad>", "<s>", "</s>"]
_SPACE = "\u0120"  # what byte-level tokenizers write for a space
VOCABULARY = [*_SPECIAL, *sorted(set("".join(WORDS))), _SPACE, *WORDS, *(_SPACE + word for word in WORDS)]
_IDS = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
_SIZE = {
    **_IDS,
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}

DECODER_CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_SIZE, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**_SIZE),
    "qwen2": lambda: Qwen2Config(**_SIZE),
    "qwen3": lambda: Qwen3Config(**_SIZE, head_dim=16),
    "gemma": lambda: GemmaConfig(**_SIZE, head_dim=16),
    "gpt2": lambda: GPT2Config(**_IDS, vocab_size=len(VOCABULARY), n_embd=32, n_layer=4, n_head=4, n_positions=128),
}
DECODER_FAMILIES = sorted(DECODER_CONFIGS)


def make_decoder_tokenizer() -> PreTrainedTokenizerFast:
    """Build a byte-level BPE tokenizer, a token a word, that puts <s> before a text."""
    ids = {token: i for i, token in enumerate(VOCABULARY)}
    merges = [(word[0], word[1]) for word in WORDS] + [(_SPACE, word) for word in WORDS]
    tokenizer = Tokenizer(models.BPE(ids, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


class TinyDecoders:
    """Tiny decoders by family; their backbones (4 layers, width 32, random) are written to a folder once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def backbone(self, family: str = "llama") -> Path:
        directory = self._folder / family
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
    return [str(text) for text in random_texts(count, seed, longest=longest, words=WORDS)]


def make_text_task(rows: int = 40) -> TextTask:
    """Return a small task: a text goes on with the words that follow in the list."""

    def split(name: str, count: int, seed: int) -> PromptSplit:
        generator = random.Random(seed)
        prompts, references = [], []
        for _ in range(count):
            start, read, written = generator.randrange(40), generator.randint(1, 4), generator.randint(1, 6)
            words = WORDS[start : start + read + written]
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
