"""Golden cells: the numbers of every method on tiny models, committed, so that none changes unnoticed.

    python -m benchmarks.testing.golden            # write the cells of all methods
    python -m benchmarks.testing.golden pabee      # write one

A cell is a JSON file, ``tests/golden/cells/METHOD.json``. For two families of backbones it holds sums of the absolute
logits of every exit and of the weights of learned parts, and, at up to three values of the knob, each row's decisions
as ``layer:answer``; a text has one for every new token. If numbers change, either something is broken, or the
method has changed and its ``version`` must be raised, so that old and new results are never mixed.

Cells are computed in float64, with one thread and without dropout. No decision is within 1e-6 of a tie. This makes them
equal on every processor, to about ten digits.
"""

import argparse
import copy
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding

from benchmarks.specs.schema import Strict
from benchmarks.testing.cases import (
    NEW_TOKENS,
    PROMPTS,
    TOKEN_RECIPE,
    InstanceCase,
    TokenCase,
    texts_of,
    train_case,
    train_token_case,
)
from benchmarks.testing.decoders import TinyDecoders
from benchmarks.testing.encoders import TinyModels
from benchmarks.testing.faults import BrokenContractError
from consistentee.errors import UserError
from consistentee.methods.method import (
    ENTRY_POINT_GROUP,
    TOKEN_ENTRY_POINT_GROUP,
    AnyMethod,
    available_methods,
    get_method,
)
from consistentee.methods.token_methods import TokenMethod
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.versions import ENGINE_VERSION, TRAINING_VERSION, Kind

FOLDER = Path(__file__).parents[2] / "tests" / "golden" / "cells"
COMMAND = "python -m benchmarks.testing.golden"

_TOLERANCE = 1e-7
"""Relative tolerance. Processors differ by 1e-12 as a rule, and by 3e-9 where a branch starts as a copy of the layers
that it is to imitate: its gradients are rounding errors, which Adam scales up."""
_CLOSE = 1e-6
_SHOWN = 10
_CERTAIN_ROWS = 4
"""Instances whose probabilities are made exactly 0 and 1, the thresholds at the ends of knobs."""
AnyCase = InstanceCase | TokenCase
ModelT = TypeVar("ModelT", MultiExitModel, MultiExitDecoder)
_ALL_OF_IT = replace(TOKEN_RECIPE, trains="all", backbone_steps=4, backbone_learning_rate=1e-3)


class GoldenFamily(Strict):
    """Results on one family: named numbers, and the rows' decisions by value of the knob."""

    numbers: dict[str, float]
    decisions: dict[float, str]


class GoldenCell(Strict):
    """Results of one method, and the versions that they depend on."""

    versions: dict[str, int]
    families: dict[str, GoldenFamily]


class _Encoders(TinyModels):
    def model(self, *arguments: Any, **options: Any) -> MultiExitModel:
        return _redrawn(super().model(*arguments, **options), ("backbone.", "poolers."), spread=0.1)


class _Decoders(TinyDecoders):
    def model(self, *arguments: Any, **options: Any) -> MultiExitDecoder:
        return _redrawn(super().model(*arguments, **options), ("backbone.",), spread=0.3)


class Golden:
    """Compute golden cells; the tiny backbones are written to a folder once."""

    def __init__(self, folder: Path) -> None:
        self._encoders, self._decoders = _Encoders(folder / "encoders"), _Decoders(folder / "decoders")

    def compute(self, name: str, held: GoldenCell | None = None) -> GoldenCell:
        """Train a method on both families, and decide at the knobs of the cell ``held``, or at newly chosen ones."""
        method = get_method(name)
        kind: Kind = "generation" if isinstance(method, TokenMethod) else "classification"
        versions = {"method": method.version, "engine": ENGINE_VERSION[kind], "training": TRAINING_VERSION}
        families = {}
        with _double_precision():
            for family in ("gpt2", "llama") if kind == "generation" else ("albert", "bert"):
                case = self._trained(method, family)
                numbers = _numbers(case)
                if isinstance(case, InstanceCase):
                    case.trace.logits[-_CERTAIN_ROWS:] *= 1e6
                known = held.families.get(family) if held else None
                knobs = list(known.decisions) if known else _chosen_knobs(case)
                families[family] = GoldenFamily(numbers=numbers, decisions=_decisions(case, knobs))
        return GoldenCell(versions=versions, families=families)

    def _trained(self, method: AnyMethod, family: str) -> AnyCase:
        if isinstance(method, TokenMethod):
            recipe = _ALL_OF_IT if family == "gpt2" else TOKEN_RECIPE
            return train_token_case(method, family, self._decoders, recipe)
        return train_case(method, family, self._encoders, rows=24)


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
    """Return the first and the last value of the knob, and one between at which exits vary most; none has ties."""
    knobs = list(case.values)
    low, high = min(knobs), max(knobs)
    counts = all(float(knob).is_integer() for knob in knobs)
    for _ in range(0 if counts else 3):  # on a tiny model, a method's own values may be too far apart
        jump = int(case.swept(knobs).double().mean(dim=1).diff().argmax())
        knobs[jump + 1 : jump + 1] = np.linspace(knobs[jump], knobs[jump + 1], 102)[1:-1].tolist()
    if not (_is_firm(case, [knobs[0]]) and _is_firm(case, [knobs[-1]])):
        raise UserError(f"{case.method.name}: rounding may change the decisions at an end of the knob")
    near = (0.0,) if counts else (0.0, -_CLOSE, _CLOSE)
    variety = case.swept(knobs)[:, :-_CERTAIN_ROWS].double().std(dim=1)
    by_variety = (knobs[number] for number in variety.argsort(descending=True).tolist() if 0 < number < len(knobs) - 1)
    firm = (knob for knob in by_variety if _is_firm(case, [min(max(knob + by, low), high) for by in near]))
    return list(dict.fromkeys([knobs[0], *islice(firm, 1), knobs[-1]]))


def _is_firm(case: AnyCase, knobs: Sequence[float]) -> bool:
    """Return whether all these knobs, and models whose weights differ a little, give the same decisions."""
    cases = [case, *(_jittered(case, seed) for seed in range(3))]
    return len({_decided(other, knob) for other in cases for knob in knobs}) == 1


@torch.no_grad()
def _jittered(case: AnyCase, seed: int) -> AnyCase:
    generator = torch.Generator().manual_seed(seed)

    def near(tensor: Tensor) -> Tensor:
        return tensor * (1 + _CLOSE * torch.randn(tensor.shape, generator=generator))

    if isinstance(case, InstanceCase):
        signals = {name: near(signal) for name, signal in case.trace.signals.items()}
        return replace(case, trace=replace(case.trace, logits=near(case.trace.logits), signals=signals, _views={}))
    model = copy.deepcopy(case.model)
    for weight in model.parameters():
        weight.copy_(near(weight))
    return case.with_model(model)


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

    def rotation(self: LlamaRotaryEmbedding, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        half = len(self.inv_freq)
        frequencies = self.config.rope_parameters["rope_theta"] ** -(torch.arange(half) / half)
        angles = (positions.unsqueeze(-1) * frequencies).repeat(1, 1, 2)
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


def read_cell(path: Path) -> GoldenCell:
    """Read a golden cell. Raises UserError for a file that is not one."""
    try:
        return GoldenCell.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise UserError(f"{path} is not a golden cell: {error.errors()[0]['msg']}") from error


def differences(held: GoldenCell, now: GoldenCell) -> Iterator[str]:
    """Describe every difference between a cell and the one computed now at its knobs."""
    for family in sorted(held.families.keys() | now.families.keys()):
        if not (family in held.families and family in now.families):
            yield f"{family}: this family is in one of the two only"
            continue
        golden, found = held.families[family], now.families[family]
        for name in sorted(golden.numbers.keys() | found.numbers.keys()):
            number, held_number = found.numbers.get(name, math.nan), golden.numbers.get(name, math.nan)
            if not math.isclose(number, held_number, rel_tol=_TOLERANCE, abs_tol=1e-12):
                yield f"{family}, {name}: {number:.12g}, golden: {held_number:.12g}"
        for knob, decisions in golden.decisions.items():
            pairs = zip_longest(decisions.split(), found.decisions.get(knob, "").split())
            for row, (before, after) in enumerate(pairs, start=1):
                if before != after:
                    yield f"{family}, knob {knob:g}: row {row} is {after}, golden: {before} (layer:answer)"


def check_cell(name: str, golden: Golden, folder: Path = FOLDER) -> str | None:
    """Compute a method's cell again; return a message with the differences and what to do, or None."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return f"{name} has no golden cell yet. Write it: {COMMAND} {name}"
    held = read_cell(path)
    now = golden.compute(name, held)
    if held.versions != now.versions:
        return f"{name} is at versions {now.versions}, its golden cell at {held.versions}. Write it: {COMMAND} {name}"
    if not (found := list(differences(held, now))):
        return None
    more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    lines = [f"{name}: numbers changed, and no version was raised.", *found[:_SHOWN], *more]
    return "\n  ".join(lines) + (
        f"\nIf something is broken, fix it. If {name} is to give other numbers, raise {type(get_method(name)).__name__}"
        f".version, say why in docs/versions.md, and write the cell: {COMMAND} {name}\n"
        "If every method changes, raise ENGINE_VERSION or TRAINING_VERSION (consistentee/versions.py) instead."
    )


def write_cell(name: str, golden: Golden, folder: Path = FOLDER) -> str:
    """Write a method's cell if it has none or if a version was raised; return what was done.

    Raises UserError, and writes nothing, if numbers changed and no version was raised above the one in the file.
    """
    path = folder / f"{name}.json"
    message = check_cell(name, golden, folder)
    if message is None:
        return "unchanged"
    now = golden.compute(name)
    if path.is_file() and not _raised(read_cell(path).versions, now.versions):
        raise UserError(message)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(now.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return "written"


def _raised(held: dict[str, int], now: dict[str, int]) -> bool:
    """Return whether some version is above the one held, and none below."""
    return held != now and all(now.get(part, 0) >= version for part, version in held.items())


def main() -> int:
    """Write golden cells; return 2 if numbers changed without a version."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Write the golden cells of methods.")
    parser.add_argument("method", nargs="*", help="a registered name; all of them by default")
    refused = 0
    with tempfile.TemporaryDirectory() as folder:
        golden = Golden(Path(folder))
        for name in parser.parse_args().method or all_methods():
            try:
                print(f"{name}: {write_cell(name, golden)}", flush=True)
            except (UserError, BrokenContractError) as error:
                print(error, file=sys.stderr)
                refused = 2
    return refused


if __name__ == "__main__":
    sys.exit(main())
