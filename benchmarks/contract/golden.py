"""Golden cells: the numbers of every method on tiny models, committed, so that none changes unnoticed.

    python -m benchmarks.contract.golden            # write the cells of all methods
    python -m benchmarks.contract.golden pabee      # write one

A cell is a JSON file, ``tests/golden/cells/METHOD.json``. For two families of backbones it holds the mean absolute
logits of every exit, the mean absolute weights of learned parts, and, at up to three values of the knob, each row's
decisions as ``layer:answer``; a text has one for every new token. If numbers change, either something is broken, or the
method has changed and its ``version`` must be raised, so that old and new results are never mixed.

Cells are computed in float64, with one thread and without dropout. No decision is within 1e-6 of a tie. This makes them
equal to ten digits on every processor.
"""

import argparse
import copy
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding

from benchmarks.contract.base_case import fitted
from benchmarks.contract.case import RECIPE
from benchmarks.contract.faults import BrokenContractError
from benchmarks.contract.tiny.decoders import TinyDecoders, make_text_task
from benchmarks.contract.tiny.encoders import TinyModels, make_task
from benchmarks.contract.token_case import RECIPE as TOKEN_RECIPE
from benchmarks.specs.schema import Strict
from consistentee.data.prompts import PromptSplit
from consistentee.errors import UserError
from consistentee.methods.method import ENTRY_POINT_GROUP, TOKEN_ENTRY_POINT_GROUP, available_methods, get_method
from consistentee.methods.token_method import TokenMethod
from consistentee.traces.instance_trace import Trace, record_trace
from consistentee.traces.token_trace import TokenTrace, record_token_trace
from consistentee.traces.walk import sweep
from consistentee.versions import ENGINE_VERSION, TRAINING_VERSION

FOLDER = Path(__file__).parents[2] / "tests" / "golden" / "cells"
COMMAND = "python -m benchmarks.contract.golden"

_DIGITS = 1e-10
_CLOSE = 1e-6
_JITTERS = 3
_HALVINGS = 16
_ROWS = 24
_CERTAIN_ROWS = 4
_PROMPTS = 6
_NEW_TOKENS = 6
_SEED = 7
_ALL_OF_IT = replace(TOKEN_RECIPE, trains="all", backbone_steps=4, backbone_learning_rate=1e-3)


class GoldenFamily(Strict):
    """Results on one family: named numbers, and the rows' decisions by value of the knob."""

    numbers: dict[str, float]
    decisions: dict[float, str]


class GoldenCell(Strict):
    """Results of one method, and the versions that they depend on."""

    versions: dict[str, int]
    families: dict[str, GoldenFamily]


class Instances:
    """A toy task of classification: a trained model decides on the trace of unseen rows.

    The last rows are certain: their probabilities are exactly 0 and 1, on the thresholds at the ends of the knobs.
    """

    families = ("albert", "bert")

    def __init__(self, folder: Path) -> None:
        self._models = TinyModels(folder)

    def trained(self, method: Any, family: str) -> Any:
        model = _redrawn(self._models.model(family), ("backbone.", "poolers."), spread=0.1)
        return fitted(method, model, make_task(), RECIPE)

    def trace(self, model: Any) -> Trace:
        trace = record_trace(model, make_task(rows=2 * _ROWS).test)
        trace.logits[-_CERTAIN_ROWS:] *= 1e6
        return trace

    def numbers(self, model: Any) -> dict[str, float]:
        sizes = record_trace(model, make_task(rows=2 * _ROWS).test).logits.abs().mean(dim=(0, 2)).tolist()
        return {f"logits of exit {layer}": size for layer, size in enumerate(sizes, start=1)}

    def exits(self, method: Any, model: Any, knobs: Sequence[float]) -> Tensor:
        return sweep([method.rule(model, knob) for knob in knobs], self.trace(model))

    def decide(self, method: Any, model: Any, knob: float) -> str:
        trace = self.trace(model)
        (exits,) = sweep([method.rule(model, knob)], trace)
        pairs = zip(exits.tolist(), trace.predictions(exits).tolist(), strict=True)
        return " ".join(f"{layer}:{answer}" for layer, answer in pairs)


class Texts:
    """A toy task of generation: a trained model continues unseen prompts. One of the backbones is trained too."""

    families = ("gpt2", "llama")

    def __init__(self, folder: Path) -> None:
        self._models = TinyDecoders(folder)
        self._task = make_text_task()
        unseen = self._task.test
        self._rows = PromptSplit("unseen", unseen.prompts[:_PROMPTS], unseen.references[:_PROMPTS])

    def trained(self, method: Any, family: str) -> Any:
        model = _redrawn(self._models.model(family), ("backbone.",), spread=0.3)
        return fitted(method, model, self._task, _ALL_OF_IT if family == "gpt2" else TOKEN_RECIPE)

    def trace(self, model: Any) -> TokenTrace:
        task, dtype = self._task, torch.float64
        limits = {"max_prompt_tokens": task.max_prompt_tokens, "max_new_tokens": task.max_new_tokens}
        return record_token_trace(model, self._rows, **limits, dtype=dtype)

    @torch.no_grad()
    def numbers(self, model: Any) -> dict[str, float]:
        trace = self.trace(model)
        states = enumerate(trace.states(index, torch.arange(len(trace))) for index in range(len(trace.exit_layers)))
        logits = {trace.exit_layers[index]: model.logits(trace.exit_layers[index], state) for index, state in states}
        return {f"logits of exit {layer}": float(values.abs().mean()) for layer, values in logits.items()}

    def exits(self, method: Any, model: Any, knobs: Sequence[float]) -> Tensor:
        trace = self.trace(model)
        return sweep([method.rule(model, knob) for knob in knobs], trace)[:, trace.may_exit]

    def decide(self, method: Any, model: Any, knob: float) -> str:
        written = method.generate(model, self._rows.prompts, knob, max_new_tokens=_NEW_TOKENS, batch_size=_PROMPTS)
        texts = zip(written.exit_layers, written.tokens, strict=True)
        return " ".join(",".join(f"{layer}:{token}" for layer, token in zip(*text, strict=True)) for text in texts)


class Golden:
    """Compute golden cells; the tiny backbones are written to a folder once."""

    def __init__(self, folder: Path) -> None:
        self._instances, self._texts = Instances(folder / "encoders"), Texts(folder / "decoders")

    def compute(self, name: str, held: GoldenCell | None = None) -> GoldenCell:
        """Train a method on both families, and decide at the knobs of the cell ``held``, or at newly chosen ones."""
        method = get_method(name)
        rows = self._texts if isinstance(method, TokenMethod) else self._instances
        engine = ENGINE_VERSION["generation" if rows is self._texts else "classification"]
        versions = {"method": method.version, "engine": engine, "training": TRAINING_VERSION}
        with _double_precision():
            families = {family: _compute_family(rows, method, family, held) for family in rows.families}
        return GoldenCell(versions=versions, families=families)


def _compute_family(rows: Instances | Texts, method: Any, family: str, held: GoldenCell | None) -> GoldenFamily:
    model = rows.trained(method, family)
    values = list(method.knob_values(model))
    heads = {f"head {name}": model.head(name) for name in model.exit_heads}
    heads |= {f"branch {layer}": model.branch(layer) for layer in getattr(model, "branches", ())}
    numbers = {"first knob": values[0], "last knob": values[-1], **rows.numbers(model)}
    numbers |= {f"weights of {name}": _mean_size(head) for name, head in heads.items()}
    knobs = _chosen_knobs(rows, method, model) if held is None else list(held.families[family].decisions)
    decisions = {}
    for knob in knobs:
        nearest = min(values, key=lambda value: abs(value - knob))
        with suppress(UserError):  # a knob that is out of range now: the comparison reports it
            own = nearest if math.isclose(nearest, knob, rel_tol=_DIGITS) else knob
            decisions[knob] = rows.decide(method, model, own)
    return GoldenFamily(numbers={name: float(f"{size:.12g}") for name, size in numbers.items()}, decisions=decisions)


def _mean_size(module: nn.Module) -> float:
    return torch.cat([weight.detach().flatten() for weight in module.parameters()]).abs().mean().item()


def _chosen_knobs(rows: Instances | Texts, method: Any, model: Any) -> list[float]:
    """Return the first and the last value of the knob, and one between at which exits vary most and are no ties."""
    values = list(method.knob_values(model))
    exits = rows.exits(method, model, values).double()
    candidates = dict(zip(values, exits, strict=True))
    counts = all(value.is_integer() for value in values)
    middle = float(exits[0].mean() + exits[-1].mean()) / 2
    late = int((exits.mean(dim=1) >= middle).nonzero()[0])
    low, high = values[max(late - 1, 0)], values[late]
    for _ in range(0 if counts else _HALVINGS):  # on a tiny model, the method's own values may be too far apart
        knob = (low + high) / 2
        candidates[knob] = rows.exits(method, model, [knob]).double()[0]
        low, high = (knob, high) if candidates[knob].mean() < middle else (low, knob)
    by_variety = sorted(candidates, key=lambda knob: (-candidates[knob].std(), abs(candidates[knob].mean() - middle)))
    ends = [knob for knob in (values[0], values[-1]) if _is_firm(rows, method, model, [knob])]
    if len(ends) < 2:
        raise UserError(f"{method.name}: decisions at an end of the knob are ties that rounding may break")
    between = (
        knob for knob in by_variety if _is_firm(rows, method, model, [knob] if counts else _around(knob, values))
    )
    return list(dict.fromkeys((ends[0], next(between), ends[1])))


def _around(knob: float, values: Sequence[float]) -> list[float]:
    return [min(max(knob + by, values[0]), values[-1]) for by in (0, -_CLOSE, _CLOSE)]


def _is_firm(rows: Instances | Texts, method: Any, model: Any, knobs: Sequence[float]) -> bool:
    """Return whether all these knobs, and models whose weights differ a little, give the same decisions."""
    models = [model, *(_jittered(model, seed) for seed in range(_JITTERS))]
    return len({rows.decide(method, other, knob) for other in models for knob in knobs}) == 1


@torch.no_grad()
def _jittered(model: nn.Module, seed: int) -> Any:
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for weight in other.parameters():
        weight.mul_(1 + _CLOSE * torch.randn(weight.shape, generator=generator))
    return other


@torch.no_grad()
def _redrawn(model: Any, prefixes: tuple[str, ...], spread: float) -> Any:
    """Return a model in float64, without dropout, whose matrices do not depend on a library's initialisation."""
    generator = torch.Generator().manual_seed(_SEED)
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
            number, before = found.numbers.get(name, math.nan), golden.numbers.get(name, math.nan)
            if not math.isclose(number, before, rel_tol=_DIGITS, abs_tol=1e-12):
                yield f"{family}, {name}: {number:.12g}, golden: {before:.12g}"
        for knob, rows in golden.decisions.items():
            pairs = enumerate(zip_longest(rows.split(), found.decisions.get(knob, "").split()), start=1)
            moved = [(row, before, after) for row, (before, after) in pairs if before != after]
            if moved:
                row, before, after = moved[0]
                yield f"{family}, knob {knob:g}: row {row} is {after}, golden: {before} (layer:answer; rows: {len(moved)})"


def check_cell(name: str, golden: Golden, folder: Path = FOLDER) -> str | None:
    """Compute a method's cell again; return a message with the differences and what to do, or None."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return f"{name} has no golden cell yet. Write it: {COMMAND} {name}"
    held = read_cell(path)
    now = golden.compute(name, held)
    if held.versions != now.versions:
        return f"{name} is at versions {now.versions}, its golden cell at {held.versions}. Write it: {COMMAND} {name}"
    found = list(differences(held, now))
    if not found:
        return None
    return "\n  ".join([f"{name}: numbers changed, and no version was raised.", *found]) + (
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
