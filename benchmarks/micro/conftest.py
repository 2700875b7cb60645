"""The storage of times, by kind of processor, and the models of the micro benchmarks."""

import gc
import re

import cpuinfo  # type: ignore[import-untyped]
import pytest
import torch
from pytest_benchmark.utils import get_machine_id

from benchmarks.measure.environment import describe_environment
from benchmarks.testing.tiny import DECODER_FAMILIES, FAMILIES, TinyDecoders, TinyModels
from consistentee.errors import UserError
from consistentee.models.base import chosen_device
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.models.encoder import MultiExitModel


def kind_of_processor() -> str:
    """Name the device that computes, as a folder: its model and, for a CPU, the number of threads."""
    device = chosen_device()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        cpu = cpuinfo.get_cpu_info()  # family and model, because clouds sell several processors under one name
        parts = (cpu.get("brand_raw", ""), cpu.get("family", ""), cpu.get("model", ""), torch.get_num_threads())
        name = "{} {} {} {} threads".format(*parts)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def pytest_configure(config: pytest.Config) -> None:
    """Keep times in a folder for each kind of processor. The first whole run is kept, because there is no other."""
    option = config.option
    folder = config.rootpath / ".benchmarks" / kind_of_processor()
    option.benchmark_storage = str(folder)
    if option.benchmark_compare and not any((folder / get_machine_id()).glob("*.json")):
        option.benchmark_compare = option.benchmark_compare_fail = None  # pytest-benchmark fails without a file
        if not option.keyword:
            option.benchmark_save = option.benchmark_save or "first"


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, object]:
    """Record what a result's record has, without the name of the host. The commit is recorded elsewhere."""
    environment = describe_environment()
    return {name: environment[name] for name in environment if name not in ("commit", "uncommitted_changes")}


def pytest_collection_finish() -> None:
    """Exclude the million objects of imported libraries from garbage collection."""
    gc.freeze()


@pytest.fixture(scope="session")
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MultiExitModel:
    """Load the encoder that a test names, a tiny one of a family or a real one, with untrained exits."""
    if request.param in FAMILIES:
        model = TinyModels(tmp_path_factory.mktemp("backbones")).model(request.param)
    else:
        model = MultiExitModel.from_backbone(request.param, num_labels=3)
    return model.to(chosen_device()).eval()


@pytest.fixture(scope="session")
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MultiExitDecoder:
    """Load the decoder that a test names, with untrained exits and no token that ends a text."""
    if request.param in DECODER_FAMILIES:
        return TinyDecoders(tmp_path_factory.mktemp("decoders")).model(request.param).to(chosen_device()).eval()
    try:
        model = MultiExitDecoder.from_backbone(request.param).to(chosen_device()).eval()
    except UserError as error:
        pytest.skip(str(error))
    model.backbone.generation_config.eos_token_id = model.stepper.vocabulary
    return model
