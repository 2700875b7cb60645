"""Settings: runs of one task and backbone that differ in their seeds alone, and what tells several of them apart.

A setting is a protocol of seed 0, which stands for all seeds: rows, recipe, files of the backbone, versions.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from benchmarks.analysis.panels.protocols import Protocol
from benchmarks.specs.base import short_hash
from consistentee.training.recipe import RecipeSettings

_FIRST = ("epochs", "max_rows", "learning_rate")
"""Fields of a recipe that a reader knows settings by."""


def setting_of(run: Protocol) -> Protocol:
    """Return the setting that a run belongs to."""
    return run._replace(seed=0)


def task_names(settings: Iterable[Protocol]) -> dict[Protocol, str]:
    """Name the task of every setting: ``mcid``; of several on one backbone ``mcid (6 epochs)``, ``mcid (12 epochs)``.

    As many differences are named as it takes to tell them apart.
    """
    return {
        setting: f"{setting.task} ({', '.join(words)})" if words else setting.task
        for siblings in _by_task(settings)
        for setting, words in zip(siblings, _fewest_words(siblings), strict=True)
    }


def setting_notes(settings: Iterable[Protocol]) -> list[str]:
    """Return a line for every task of several settings on one backbone: all that differs between them."""
    return [
        f"{siblings[0].task}, {siblings[0].backbone}: {len(siblings)} settings, each compared within itself: "
        + "; ".join(", ".join(words) for words in _all_words(siblings))
        for siblings in _by_task(settings)
        if len(siblings) > 1
    ]


def _by_task(settings: Iterable[Protocol]) -> list[list[Protocol]]:
    found: dict[tuple[str, str], list[Protocol]] = {}
    for setting in dict.fromkeys(settings):
        found.setdefault((setting.task, setting.backbone), []).append(setting)
    return list(found.values())


def _all_words(siblings: Sequence[Protocol]) -> list[list[str]]:
    """Return the parts in which settings differ, in words, part by part in the same order; no two are alike."""
    parts = [_parts(setting) for setting in siblings]
    names = [name for name in _ordered(parts) if len({repr(own.get(name)) for own in parts}) > 1]
    words = [[_in_words(name, own.get(name)) for name in names] for own in parts]
    if len(set(map(tuple, words))) < len(siblings):  # one recipe writes down what another leaves at its default
        words = [[*own, f"recipe {short_hash(one.recipe)}"] for own, one in zip(words, siblings, strict=True)]
    return words


def _fewest_words(siblings: Sequence[Protocol]) -> list[tuple[str, ...]]:
    """Return of all words the first ones that tell settings apart; none of a single setting."""
    words: list[tuple[str, ...]] = [() for _ in siblings]
    for of_part in zip(*_all_words(siblings), strict=True):
        longer = [(*own, word) for own, word in zip(words, of_part, strict=True)]
        if len(set(longer)) > len(set(words)):
            words = longer
    return words


def _parts(setting: Protocol) -> dict[str, object]:
    """Return what settings may differ in by name; fields that a recipe leaves out are at their defaults."""
    recorded: Mapping[str, object] = json.loads(setting.recipe) or {}
    return {
        **asdict(RecipeSettings()),
        **recorded,
        "rows": short_hash(setting.rows),
        "backbone files": short_hash(setting.files),
        "engine version": setting.engine_version,
        "training version": setting.training_version,
    }


def _ordered(parts: Sequence[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys([*_FIRST, *(name for own in parts for name in own)]))


def _in_words(name: str, value: object) -> str:
    if name == "epochs":
        return f"{value} epoch{'s' if value != 1 else ''}"
    if name == "max_rows":
        return "all training rows" if value is None else f"{value} training rows"
    return f"{name.replace('_', ' ')} {value}"
