"""Small fine-tuned classifiers in folders, as transformers writes them."""

import torch
from transformers import AutoModelForSequenceClassification

from benchmarks.testing.tiny import CONFIGS, make_tokenizer

NAMES = {0: "red", 1: "green", 2: "blue"}


def save_classifier(folder, family="bert", auto=AutoModelForSequenceClassification, **settings):
    """Write a small random classifier of three colours and its tokenizer, as Trainer does."""
    config = CONFIGS[family]()
    config.id2label, config.label2id = NAMES, {name: number for number, name in NAMES.items()}
    config.initializer_range = 0.1
    for name, value in settings.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        auto.from_config(config).save_pretrained(folder)
    make_tokenizer(family in ("bert", "electra", "albert")).save_pretrained(folder)
    return folder
