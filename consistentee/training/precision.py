"""Precision of matrix products in training: the fastest on this machine, as measured.

bfloat16 is twice as fast as float32 on one processor with avx512_bf16, half as fast on another, and a hundred times
slower on a third without. float32 is twice as fast by oneDNN as by MKL on a processor that is not Intel's.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache

import torch
from torch import Tensor, nn

from consistentee.files import cache_dir, only_one, replacing
from consistentee.models.base import Precision
from consistentee.training.recipe import PrecisionSetting

_WIDTH, _HEADS = 384, 12  # a small encoder's
_HOPELESS = 3.0  # emulated bfloat16 is this much slower for the first few tokens already
_ROUNDS = 20
_SECONDS = 0.5


@dataclass(frozen=True)
class Speed:
    """How fast this machine trains a layer: 10^9 operations a second in each precision."""

    float32: float
    bfloat16: float

    @property
    def faster(self) -> Precision:
        """The precision to train in."""
        return "bfloat16" if self.bfloat16 > self.float32 else "float32"


def precision_used(setting: PrecisionSetting, device: torch.device) -> Precision:
    """Return the precision that a setting stands for on this machine."""
    return remembered_speed(device).faster if setting == "auto" else setting


@cache
def remembered_speed(device: torch.device) -> Speed:
    """Measure this machine once and remember the result: a busy minute must not change the precision of training."""
    path = cache_dir() / "precision" / f"{machine_name(device)}.json"
    with only_one(path):
        try:
            return Speed(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # not measured yet, or a damaged file
            speed = measure_speed(device)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(asdict(speed)), encoding="utf-8")
    return speed


def machine_name(device: torch.device) -> str:
    """Return a hash of this machine, its threads and torch; several machines may share a cache."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    parts = [name, dict(torch.cpu.get_capabilities()), torch.get_num_threads(), torch.__version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def measure_speed(device: torch.device) -> Speed:
    """Time one layer of a small encoder, forward and backward, in turns: the best of a few rounds, within a second."""
    best: dict[Precision, float] = {}
    with torch.random.fork_rng():
        layer = nn.TransformerEncoderLayer(_WIDTH, _HEADS, 4 * _WIDTH, 0.0, "gelu", batch_first=True).to(device)
        weights = sum(parameter.numel() for parameter in layer.parameters())
        for rows in (2, 16):
            hidden = torch.randn(rows, 16, _WIDTH, device=device)
            operations = 6 * weights * rows * 16  # two a weight and token forward, four backward
            seconds = _seconds(layer, hidden)
            best = {precision: operations / taken / 1e9 for precision, taken in seconds.items()}
            if best["float32"] > _HOPELESS * best["bfloat16"]:
                break
    return Speed(**best)


def _seconds(layer: nn.Module, hidden: Tensor) -> dict[Precision, float]:
    best: dict[Precision, float] = {"float32": float("inf"), "bfloat16": float("inf")}
    started = time.perf_counter()
    with onednn_products(hidden.device):
        for done in range(_ROUNDS):
            if done and time.perf_counter() - started > _SECONDS:
                break
            for precision, before in best.items():
                best[precision] = min(before, _one_pass(layer, hidden, precision))
    return best


def _one_pass(layer: nn.Module, hidden: Tensor, precision: Precision) -> float:
    # Other processes on a CPU do not count in the thread's time; the work of a device is not in it.
    clock = time.thread_time if hidden.device.type == "cpu" else time.perf_counter
    started = clock()
    with torch.autocast(hidden.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        output = layer(hidden)
    total = output.float().sum()
    total.backward()
    total.item()  # a device has finished only when it has answered
    return clock() - started


@contextmanager
def onednn_products(device: torch.device) -> Iterator[None]:
    """Inside the block, let oneDNN multiply float32 matrices on a CPU, if it does so in float32.

    torch uses MKL unless less precise products are allowed. Then it uses oneDNN, which on most processors multiplies in
    float32 anyway, with faster code; results are equal up to rounding.
    """
    before = torch.get_float32_matmul_precision()
    if device.type != "cpu" or before != "highest" or not onednn_keeps_float32():
        yield
        return
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def onednn_keeps_float32() -> bool:
    """Multiply matrices of some sizes and compare: bfloat16 would be off by a thousandth."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    torch.set_float32_matmul_precision("medium")
    try:
        return all(_is_float32_product(size, generator) for size in (16, 128, 512))
    finally:
        torch.set_float32_matmul_precision("highest")


def _is_float32_product(size: int, generator: torch.Generator) -> bool:
    left, right = torch.rand(2, size, size, generator=generator)
    exact = left.double() @ right.double()
    return bool(((left @ right).double() / exact - 1).abs().max() < 1e-5)
