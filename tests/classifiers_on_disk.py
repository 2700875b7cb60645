"""Small fine-tuned classifiers in folders, as transformers writes them, and tables of rows for them."""

import csv

import torch
from transformers import AutoModelForSequenceClassification

from benchmarks.testing.tiny import CONFIGS, make_tokenizer, random_texts

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


def write_rows(path, count=300, labels=("red", "green", "blue"), headings=("text", "label")):
    """Write a CSV of texts whose label is that of the first word."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(headings)
        writer.writerows((text, labels[int(text.split()[0][1:]) % len(labels)]) for text in random_texts(count, seed=5))
    return path
