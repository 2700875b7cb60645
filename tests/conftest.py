"""Fixtures: small random models of every encoder family, and a small task that can be learned."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

from benchmarks.run.pool import Schedule
from benchmarks.testing.tiny import TinyDecoders, TinyModels
from consistentee import MultiExitDecoder, MultiExitModel

if TYPE_CHECKING:
    from small_suite import Bench

    from benchmarks.analysis.frames import Results

THREADS = os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start, too
torch.set_num_threads(int(THREADS))
os.environ.setdefault("CONSISTENTEE_DEVICE", "cpu")  # for the same numbers everywhere; tox -e gpu names another device

# A busy machine is slow now and then, and no test is about that; examples differ from run to run, so that few suffice.
settings.register_profile("any-machine", deadline=None, max_examples=20)
settings.load_profile("any-machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the contract tests run over a method that is not registered, and golden cells be written."""
    parser.addoption("--method", action="append", default=[], help="path/to/mine.py:MyMethod, for test_invariants.py")
    parser.addoption("--write-golden", action="store_true", help="write changed cells, for test_golden_cells.py")


@pytest.fixture(scope="session", autouse=True)
def without_fsync() -> Iterator[None]:
    """Leave files to the system's cache: no test cuts the power, and a busy disk takes longer than the computing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def pytest_collection_finish() -> None:
    """Exclude the million objects of imported libraries from garbage collection, which takes most of a tiny timing."""
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Tiny models of every family, their backbones in one folder for the session."""
    return TinyModels(tmp_path_factory.mktemp("backbones"))


@pytest.fixture(scope="session")
def tiny_backbone(tiny_models: TinyModels) -> Callable[[str], Path]:
    """Return a function: family -> directory with a small random model (4 layers, width 32) and its tokenizer."""
    return tiny_models.backbone


@pytest.fixture(scope="session")
def tiny_model(tiny_models: TinyModels) -> Callable[..., MultiExitModel]:
    """Return a function: (family, num_labels=3, ...) -> a fresh multi-exit model whose classifiers disagree."""
    return tiny_models.model


@pytest.fixture(scope="session")
def tiny_decoders(tmp_path_factory: pytest.TempPathFactory) -> TinyDecoders:
    """Tiny decoders of every family, their backbones in one folder for the session."""
    return TinyDecoders(tmp_path_factory.mktemp("decoders"))


@pytest.fixture(scope="session")
def tiny_decoder_backbone(tiny_decoders: TinyDecoders) -> Callable[..., Path]:
    """Return a function: (family="llama") -> directory of a small random decoder."""
    return tiny_decoders.backbone


@pytest.fixture(scope="session")
def tiny_decoder(tiny_decoders: TinyDecoders) -> Callable[..., MultiExitDecoder]:
    """Return a function: (family="llama", ...) -> a fresh multi-exit decoder whose exits disagree."""
    return tiny_decoders.model


@pytest.fixture(scope="session")
def model(tiny_decoders: TinyDecoders) -> MultiExitDecoder:
    """A tiny Llama whose exits disagree, for tests that do not change it; some files define a model of their own."""
    return tiny_decoders.model("llama")


@pytest.fixture(scope="session")
def agreeing_decoder(tiny_decoders: TinyDecoders) -> Callable[..., MultiExitDecoder]:
    """Return a function: (family="llama", deep=0.2) -> a decoder whose drafts from layers 1 and 2 are often accepted.

    Its exits are untrained. Layers 3 and 4 add ``deep`` of what they would; with 0, layer 2 says what layer 4 says.
    """

    def build(family: str = "llama", deep: float = 0.2) -> MultiExitDecoder:
        model = MultiExitDecoder.from_backbone(str(tiny_decoders.backbone(family)), adapter="norm")
        with torch.no_grad():
            for layer in (3, 4):
                for name, parameter in model.stepper.layer_module(layer).named_parameters():
                    if name.endswith(("o_proj.weight", "down_proj.weight", "c_proj.weight", "c_proj.bias")):
                        parameter.mul_(deep)
        return model

    return build


@pytest.fixture(scope="session")
def finished_suite(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Callable[[str], Path]) -> "Bench":
    """A tiny suite of classification that has run; nothing may change it, see ``Bench.elsewhere``."""
    from small_suite import Bench

    return Bench(tmp_path_factory.mktemp("finished"), tiny_backbone("bert")).run_once()


@pytest.fixture
def bench(tmp_path: Path, tiny_backbone: Callable[[str], Path], unreported: None) -> "Bench":
    """A tiny suite of classification that has not run."""
    from small_suite import Bench

    return Bench(tmp_path, tiny_backbone("bert"))


@pytest.fixture(scope="session")
def results() -> "Results":
    """The results of a made-up suite of two tasks and two seeds."""
    from records_by_hand import made_up_suite, results_of, timing

    groups = [made_up_suite(seed, task) for task in ("mcid", "rte") for seed in (0, 1)]
    return results_of([cell for group in groups for cell in group], [timing(group) for group in groups])


@pytest.fixture
def no_data_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Read no data of this machine, unless a test is about real ones."""
    if "real" not in request.keywords:
        monkeypatch.delenv("CONSISTENTEE_DATA", raising=False)
        monkeypatch.setenv("CONSISTENTEE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take no times: their process begins anew, which takes longer than all cells."""
    monkeypatch.setattr(Schedule, "run_timings", lambda schedule, jobs, watcher: None)


@pytest.fixture
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no tables and figures at the end of a run: they take most of its time, and are tested elsewhere."""
    monkeypatch.setattr("benchmarks.run.sweep.report", lambda run: None)
