"""Small random models of every encoder family, and a task that can be learned: where a method is checked in seconds."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from consistentee.backbones.encoders import STEPPERS, EncoderStepper
from consistentee.data.instances import Split, TaskData, Text
from consistentee.models.encoder.multi_exit_model import MultiExitModel

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

CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "bert": lambda: BertConfig(**_SIZE),
    "roberta": lambda: RobertaConfig(**_SIZE, type_vocab_size=1),
    "electra": lambda: ElectraConfig(**_SIZE, embedding_size=16),
    "mpnet": lambda: MPNetConfig(**_SIZE),
    "distilbert": lambda: DistilBertConfig(**_SIZE, hidden_dim=64),
    "albert": lambda: AlbertConfig(**_SIZE, embedding_size=16, num_hidden_groups=2),
    # Relative positions alone, as in v3, and the convolution of v2.
    "deberta-v2": lambda: DebertaV2Config(
        **_SIZE,
        relative_attention=True,
        position_biased_input=False,
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        conv_kernel_size=3,
        conv_act="gelu",
    ),
    # Every other layer or two attends to 4 tokens on either side.
    "modernbert": lambda: ModernBertConfig(
        **_SIZE, local_attention=8, bos_token_id=2, cls_token_id=2, eos_token_id=3, sep_token_id=3
    ),
}
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


class TinyModels:
    """Tiny models by family; their backbones (4 layers, width 32, random) are written to a folder once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def backbone(self, family: str) -> Path:
        directory = self._folder / family
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
