"""Work of a decoding step beside the layers, in numbers that hold on any machine: operations, host reads and copies.

Operations are those that PyTorch dispatches, views among them. A read waits for the device, and a copy brings numbers
of the host to it: on a CPU both are counted at the functions that do them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from baselines.calm import DecayingThresholdRule
from baselines.references import RandomRule
from benchmarks.testing.decoders import DECODER_CONFIGS, make_decoder_tokenizer
from benchmarks.testing.encoders import save_random_model
from consistentee.engine.generate import generate_encoded
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.rules.exit_rule import ExitRule, NeverExit, StaticRule
from consistentee.signals import margin

BATCH, SHORT, LONG = 8, 2, 6
LENGTHS = (5, 9, 3, 7, 12, 8, 6, 10)
_READS = ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "numpy", "cpu")


@dataclass
class Work:
    """Counts of one step; ``layers`` are those that are called, whatever the number of rows."""

    operations: float = 0
    reads: float = 0
    copies: float = 0
    layers: float = 0

    def __sub__(self, other: "Work") -> "Work":
        return Work(**{name: value - getattr(other, name) for name, value in vars(self).items()})

    def over(self, steps: float) -> "Work":
        return Work(**{name: value / steps for name, value in vars(self).items()})


class _Operations(TorchDispatchMode):
    def __init__(self, work: Work) -> None:
        super().__init__()
        self._work = work

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self._work.operations += 1
        self._work.copies += "lift_fresh" in str(function)  # every tensor of numbers of the host
        self._work.layers += "scaled_dot_product" in str(function)
        return function(*args, **(kwargs or {}))


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    """Count what the block does."""
    work = Work()

    def reading(name: str) -> Callable[..., object]:
        read = getattr(torch.Tensor, name)

        def counting(*args: object, **options: object) -> object:
            work.reads += 1
            return read(*args, **options)

        return counting

    with monkeypatch.context() as patched, _Operations(work):
        for name in _READS:
            patched.setattr(torch.Tensor, name, reading(name))
        yield work


@pytest.fixture(scope="module", params=[12, pytest.param(30, marks=pytest.mark.slow)])
def model(request, tmp_path_factory) -> MultiExitDecoder:
    """Deep and narrow: an operation is one whatever it costs. SmolLM2-135M has 30 layers."""
    folder = tmp_path_factory.mktemp("deep")
    config = DECODER_CONFIGS["llama"]()
    config.num_hidden_layers, config.layer_types = request.param, None
    save_random_model(AutoModelForCausalLM, config, folder, spread=0.3)
    make_decoder_tokenizer().save_pretrained(folder)
    return MultiExitDecoder.from_backbone(str(folder), rank=16).eval()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(5, 60, (length,), generator=generator).tolist() for length in LENGTHS]


@pytest.fixture
def step_of(model, prompts, monkeypatch) -> Callable[..., Work]:
    """Return a function: rule -> the work of one step of 8 rows, of longer texts less shorter ones."""

    def work_of(rule: ExitRule, new_tokens: int, rows: int, options: dict[str, int]) -> Work:
        with counted(monkeypatch) as work:
            asked = {"max_new_tokens": new_tokens, "batch_size": BATCH, "end_at_eos": False}
            generate_encoded(model, prompts * (rows // BATCH), rule, **asked, **options)
        return work

    def step(rule: ExitRule, **options: int) -> Work:
        rows = options.get("in_flight", BATCH)
        longer, shorter = (work_of(rule, new_tokens, rows, options) for new_tokens in (LONG, SHORT))
        return (longer - shorter).over((LONG - SHORT) * rows / BATCH)

    return step


@pytest.fixture
def stock(model, prompts, monkeypatch) -> Work:
    """The work of one step of stock ``generate``."""
    longest = max(LENGTHS)
    tokens = torch.tensor([[model.pad_id] * (longest - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])

    def work_of(new_tokens: int) -> Work:
        options = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": model.pad_id}
        with torch.inference_mode(), counted(monkeypatch) as work:
            model.backbone.generate(tokens, attention_mask=mask, eos_token_id=None, **options)
        return work

    return (work_of(LONG) - work_of(SHORT)).over(LONG - SHORT)


def test_a_step_dispatches_little_more_than_its_layers(model, step_of, stock):
    """Exits at half depth: in step a batch runs on for its deepest row, in flight it does not."""
    half = RandomRule(model.num_layers / 2, 0, model.exit_layers)
    calm = DecayingThresholdRule(margin, -0.04, 0.0, 64, model.width)  # half depth, too
    steps = {
        "never exit": step_of(NeverExit()),
        "static exit at half depth": step_of(StaticRule(model.exit_layers[2])),
        "random exits": step_of(half),
        "random exits, exact": step_of(half, kv="exact"),
        "random exits, in flight": step_of(half, in_flight=32),
        "CALM": step_of(calm),
        "CALM, in flight": step_of(calm, in_flight=32),
    }
    for name, work in {"stock generate": stock, **steps}.items():
        print(
            f"{name:26s} {work.layers:5.1f} layer calls, {work.operations:6.0f} operations, "
            f"{work.operations / stock.operations:.2f} of stock, {work.reads:.1f} reads, {work.copies:.1f} copies"
        )
    assert steps["never exit"].operations <= 1.05 * stock.operations
    assert (steps["never exit"].reads, steps["never exit"].copies) == (1, 1)
    assert (steps["static exit at half depth"].reads, steps["static exit at half depth"].copies) == (1, 1)
    assert steps["random exits"].reads == 1, "they are known before the first layer"
    assert steps["CALM"].reads <= len(model.exit_layers), "one an exit, the last one's for the tokens"
    for name in ("random exits", "CALM"):
        in_step, in_flight = steps[name], steps[f"{name}, in flight"]
        assert in_step.copies <= 1.5 * len(model.exit_layers)
        of_layers = stock.operations * in_step.layers / model.num_layers
        assert in_step.operations <= 1.6 * of_layers, "what skipped layers are owed is the most of it"
        assert in_flight.operations < in_step.operations
