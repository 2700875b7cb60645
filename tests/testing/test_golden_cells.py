"""No number changes unnoticed (DESIGN, "What must always hold", 8): the golden cells of all methods.

A cell is a JSON file, ``tests/golden/cells/METHOD.json``. For two families of backbones it holds sums of the absolute
logits of every exit and of the weights of learned parts, and, at up to three values of the knob, each row's decisions
as ``layer:answer``; a text has one for every new token. If numbers change, either something is broken, or the
method has changed and its ``version`` must be raised, so that old and new results are never mixed.

Cells are computed in float64, with one thread and without dropout. This makes them equal on every processor, to about
ten digits. To write a cell again: ``pytest tests/testing/test_golden_cells.py --write-golden -k METHOD``.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

import numpy as np
import pytest
import torch
from documents import ROOT
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding

from baselines.pabee import PABEE
from benchmarks.testing.cases import NEW_TOKENS, PROMPTS, TOKEN_RECIPE, AnyCase, InstanceCase, TokenCase, texts_of
from benchmarks.testing.tiny import TinyDecoders, TinyModels
from consistentee import MultiExitDecoder, MultiExitModel, TokenMethod, UserError
from consistentee.methods.method import (
    ENTRY_POINT_GROUP,
    TOKEN_ENTRY_POINT_GROUP,
    AnyMethod,
    available_methods,
    get_method,
)
from consistentee.versions import ENGINE_VERSION, TRAINING_VERSION, TaskKind

FOLDER = ROOT / "tests" / "golden" / "cells"
COMMAND = "pytest tests/testing/test_golden_cells.py --write-golden -k"

_TOLERANCE = 1e-7
"""Relative tolerance. Processors differ by 1e-12 as a rule, and by 3e-9 where a branch starts as a copy of the layers
that it is to imitate: its gradients are rounding errors, which Adam scales up."""
_CERTAIN_ROWS = 4
"""Instances whose probabilities are made exactly 0 and 1, the thresholds at the ends of knobs."""
ModelT = TypeVar("ModelT", MultiExitModel, MultiExitDecoder)
_ALL_OF_IT = replace(TOKEN_RECIPE, trains="all", backbone_steps=4, backbone_learning_rate=1e-3)


class GoldenFamily(BaseModel):
    """Results on one family: named numbers, and the rows' decisions by value of the knob."""

    numbers: dict[str, float]
    decisions: dict[float, str]


class GoldenCell(BaseModel):
    """Results of one method, and the versions that they depend on."""

    versions: dict[str, int]
    families: dict[str, GoldenFamily]


class _Encoders(TinyModels):
    def model(self, *arguments: str, **options: object) -> MultiExitModel:
        return _redrawn(super().model(*arguments, **options), ("backbone.", "poolers."), spread=0.1)


class _Decoders(TinyDecoders):
    def model(self, *arguments: str, **options: object) -> MultiExitDecoder:
        return _redrawn(super().model(*arguments, **options), ("backbone.",), spread=0.3)


class Golden:
    """Compute golden cells; the tiny backbones are written to a folder once."""

    def __init__(self, folder: Path) -> None:
        self._encoders, self._decoders = _Encoders(folder / "encoders"), _Decoders(folder / "decoders")

    def compute(self, name: str, held: GoldenCell | None = None) -> GoldenCell:
        """Train a method on both families, and decide at the knobs of the cell ``held``, or at newly chosen ones."""
        method = get_method(name)
        families = {}
        with _double_precision():
            for family in ("gpt2", "llama") if isinstance(method, TokenMethod) else ("albert", "bert"):
                case = self._trained(method, family)
                numbers = _numbers(case)
                if isinstance(case, InstanceCase):
                    case.trace.logits[-_CERTAIN_ROWS:] *= 1e6
                knobs = list(held.families[family].decisions) if held else _chosen_knobs(case)
                families[family] = GoldenFamily(numbers=numbers, decisions=_decisions(case, knobs))
        return GoldenCell(versions=versions_of(name), families=families)

    def _trained(self, method: AnyMethod, family: str) -> AnyCase:
        if isinstance(method, TokenMethod):
            return TokenCase.train(method, family, self._decoders, _ALL_OF_IT if family == "gpt2" else TOKEN_RECIPE)
        return InstanceCase.train(method, family, self._encoders, rows=24)


@torch.no_grad()
def _numbers(case: AnyCase) -> dict[str, float]:
    numbers = {"first knob": case.values[0], "last knob": case.values[-1]}
    for _, views in case.trace.parts():
        for view in views:
            name = f"logits of exit {view.layer}"
            numbers[name] = numbers.get(name, 0.0) + float(view.logits.abs().sum())
    for name, parts in case.model.named_children():
        if name in ("exit_heads", "branches") and (weights := list(parts.parameters())):
            numbers[name] = float(parameters_to_vector(weights).abs().sum())
    return {name: float(f"{number:.12g}") for name, number in numbers.items()}


def _decisions(case: AnyCase, knobs: Sequence[float]) -> dict[float, str]:
    """Decide at some knobs, or at the method's own value that equals a knob but for rounding; omit refused ones."""
    decisions = {}
    for knob in knobs:
        own = next((value for value in case.values if math.isclose(value, knob, rel_tol=_TOLERANCE)), knob)
        with suppress(UserError):
            decisions[knob] = _decided(case, own)
    return decisions


def _decided(case: AnyCase, knob: float) -> str:
    if isinstance(case, InstanceCase):
        exits = case.replayed(knob)
        pairs = zip(exits.tolist(), case.trace.predictions(exits).tolist(), strict=True)
        return " ".join(f"{layer}:{answer}" for layer, answer in pairs)
    written = case.method.generate(case.model, case.texts, knob, max_new_tokens=NEW_TOKENS, batch_size=PROMPTS)
    texts = [zip(row.layers, row.answers.tolist(), strict=True) for row in texts_of(written)]
    return " ".join(",".join(f"{layer}:{token}" for layer, token in text) for text in texts)


def _chosen_knobs(case: AnyCase) -> list[float]:
    """Return the first and the last value of the knob, and one between at which exits vary most."""
    knobs, counts = case.values, all(float(value).is_integer() for value in case.values)
    if not counts:  # on a tiny model, a method's own values may be too far apart
        knobs = np.linspace(knobs[0], knobs[-1], 1001).tolist()
    exits = case.swept(knobs)
    variety = exits[1:-1, :-_CERTAIN_ROWS].double().std(dim=1)
    if not counts:  # no row may be near a tie: the knobs on both sides give the same exits
        same = (exits[1:] == exits[:-1]).all(dim=1)
        variety *= same[1:] & same[:-1]
    middle = [knobs[1 + int(variety.argmax())]] if len(knobs) > 2 else []
    return list(dict.fromkeys([case.values[0], *middle, case.values[-1]]))


@torch.no_grad()
def _redrawn(model: ModelT, prefixes: tuple[str, ...], spread: float) -> ModelT:
    """Turn a model into one in float64, without dropout, whose matrices do not depend on a library's initialisation."""
    generator = torch.Generator().manual_seed(7)
    for name, weight in sorted(model.double().named_parameters()):
        if name.startswith(prefixes) and weight.ndim > 1:
            weight.normal_(0, spread, generator=generator)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.backbone.config.update({name: 0.0 for name in vars(model.backbone.config) if "drop" in name})
    return model


@contextmanager
def _double_precision() -> Iterator[None]:
    """Make float64 the default, in one thread; transformers has the norm and rotation of Llama in float32."""

    def norm(self: LlamaRMSNorm, hidden: Tensor) -> Tensor:
        return functional.rms_norm(hidden, self.weight.shape, self.weight, self.variance_epsilon)

    def rotation(self: LlamaRotaryEmbedding, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        half, device = len(self.inv_freq), hidden.device
        frequencies = self.config.rope_parameters["rope_theta"] ** -(torch.arange(half, device=device) / half)
        angles = (position_ids.unsqueeze(-1) * frequencies).repeat(1, 1, 2)
        return angles.cos(), angles.sin()

    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    try:
        with patch.object(LlamaRMSNorm, "forward", norm), patch.object(LlamaRotaryEmbedding, "forward", rotation):
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


def all_methods() -> list[str]:
    """Return the names of all methods of this project, of both kinds; not those of other packages."""
    points = {**available_methods(ENTRY_POINT_GROUP), **available_methods(TOKEN_ENTRY_POINT_GROUP)}
    return sorted(name for name, point in points.items() if point.module.startswith(("baselines.", "consistentee.")))


def versions_of(name: str) -> dict[str, int]:
    method = get_method(name)
    kind: TaskKind = "generation" if isinstance(method, TokenMethod) else "classification"
    return {"method": method.version, "engine": ENGINE_VERSION[kind], "training": TRAINING_VERSION}


def read_cell(name: str, folder: Path = FOLDER) -> GoldenCell:
    return GoldenCell.model_validate_json((folder / f"{name}.json").read_text(encoding="utf-8"))


def differences(held: GoldenCell, now: GoldenCell) -> Iterator[str]:
    """Describe every difference between a cell and the one computed now at its knobs."""
    for family, golden in held.families.items():
        found = now.families[family]
        for name in sorted(golden.numbers.keys() | found.numbers.keys()):
            number, held_number = found.numbers.get(name, math.nan), golden.numbers.get(name, math.nan)
            if not math.isclose(number, held_number, rel_tol=_TOLERANCE, abs_tol=1e-12):
                yield f"{family}, {name}: {number:.12g}, golden: {held_number:.12g}"
        for knob, decisions in golden.decisions.items():
            pairs = zip_longest(decisions.split(), found.decisions.get(knob, "").split())
            for row, (before, after) in enumerate(pairs, start=1):
                if before != after:
                    yield f"{family}, knob {knob:g}: row {row} is {after}, golden: {before} (layer:answer)"


def check_cell(name: str, golden: Golden, folder: Path = FOLDER, *, write: bool = False) -> str:
    """Compute a method's cell again; return what differs and what to do, or an empty text.

    With ``write``, the cell is written if there is none or if a version was raised, and never otherwise.
    """
    path, versions = folder / f"{name}.json", versions_of(name)
    held = read_cell(name, folder) if path.is_file() else None
    if held is None or held.versions != versions:
        lowered = held is not None and any(versions[part] < version for part, version in held.versions.items())
        if not write or lowered:
            before = held.versions if held else "none yet"
            return f"{name} is at versions {versions}, its golden cell at {before}. Write it: {COMMAND} {name}"
        path.write_text(golden.compute(name).model_dump_json(indent=1) + "\n", encoding="utf-8")
        return ""
    if not (found := list(differences(held, golden.compute(name, held)))):
        return ""
    return "\n  ".join([f"{name}: numbers changed, and no version was raised.", *found[:10]]) + (
        f"\nIf something is broken, fix it. If {name} is to give other numbers, raise {type(get_method(name)).__name__}"
        f".version, say why in docs/versions.md, and write the cell: {COMMAND} {name}\n"
        "If every method changes, raise ENGINE_VERSION or TRAINING_VERSION (consistentee/versions.py) instead."
    )


@pytest.fixture(scope="session")
def golden(tmp_path_factory):
    return Golden(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", all_methods())
def test_no_number_changed_without_a_version(golden, name, pytestconfig):
    message = check_cell(name, golden, write=pytestconfig.getoption("write_golden"))
    assert not message, message


def test_every_golden_cell_has_a_method():
    assert sorted(path.stem for path in FOLDER.iterdir()) == all_methods()


def test_changed_numbers_are_written_once_the_version_is_raised(golden, tmp_path, monkeypatch):
    assert "none yet. Write it: pytest " in check_cell("pabee", golden, tmp_path)
    assert not check_cell("pabee", golden, tmp_path, write=True)
    assert not list(differences(read_cell("pabee"), read_cell("pabee", tmp_path)))
    path = tmp_path / "pabee.json"
    changed = (FOLDER / "pabee.json").read_text().replace('"1.0": "', '"1.0": "9:').replace("23.5290858076", "33")
    path.write_text(changed)
    refusal = check_cell("pabee", golden, tmp_path, write=True)
    assert "bert, knob 1: row 1 is 4:0, golden: 9:4:0" in refusal
    assert "bert, logits of exit 1: 23.5290858076, golden: 33" in refusal
    assert "no version was raised" in refusal
    assert "PABEE.version" in refusal
    monkeypatch.setattr(PABEE, "version", 0)
    assert "Write it" in check_cell("pabee", golden, tmp_path, write=True)
    assert path.read_text() == changed
    monkeypatch.setattr(PABEE, "version", 2)
    assert not check_cell("pabee", golden, tmp_path, write=True)
    assert not check_cell("pabee", golden, tmp_path)
