"""Work of a decoding step beside the layers, in operations, whose number is the same on any machine.

``tests/devices/on_device.py`` counts copies and reads.
"""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from known_exits import KnownRandomRule
from tensors_by_hand import pad
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from baselines.calm import DecayingThresholdRule
from benchmarks.testing.tiny import DECODER_CONFIGS, make_decoder_tokenizer, save_random_model
from consistentee import ExitRule, MultiExitDecoder, NeverExit, generate_encoded
from consistentee.signals import margin

BATCH, SHORT, LONG = 8, 2, 6
PROMPTS = [list(range(5, 5 + length)) for length in (5, 9, 3, 7, 12, 8, 6, 10)]


class Counted(TorchDispatchMode):
    """Count operations, and layers that are called, whatever their number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.work: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.work["operations"] += 1
        self.work["layers"] += "scaled_dot_product" in str(function)
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> MultiExitDecoder:
    """Deep and narrow: an operation is one whatever it costs."""
    folder = tmp_path_factory.mktemp("deep")
    config = DECODER_CONFIGS["llama"]()
    config.num_hidden_layers, config.layer_types = 12, None
    save_random_model(AutoModelForCausalLM, config, folder, spread=0.3)
    make_decoder_tokenizer().save_pretrained(folder)
    return MultiExitDecoder.from_backbone(str(folder), rank=16).eval()


def work_of_a_step(write: Callable[[int], object], batches: int = 1) -> dict[str, float]:
    """Return the work of one step of 8 rows, of longer texts less shorter ones; ``write`` gets the new tokens."""
    with Counted() as longer:
        write(LONG)
    with Counted() as shorter:
        write(SHORT)
    return {name: (longer.work[name] - shorter.work[name]) / (LONG - SHORT) / batches for name in longer.work}


@pytest.fixture
def stock(model) -> dict[str, float]:
    """The work of one step of stock ``generate``."""
    tokens, mask = pad(PROMPTS, "left", model.pad_id)
    options = {"attention_mask": mask.long(), "do_sample": False, "pad_token_id": model.pad_id, "eos_token_id": None}
    with torch.inference_mode():
        return work_of_a_step(lambda new_tokens: model.backbone.generate(tokens, max_new_tokens=new_tokens, **options))


def test_a_step_dispatches_little_more_than_its_layers(model, stock):
    """Where rows exit at different layers, in step a batch runs on for its deepest row; in flight it does not."""

    def step_of(rule: ExitRule, in_flight: int | None = None) -> dict[str, float]:
        batches = (in_flight or BATCH) // BATCH
        options = {"batch_size": BATCH, "end_at_eos": False, "in_flight": in_flight}

        def write(new_tokens: int) -> object:
            return generate_encoded(model, PROMPTS * batches, rule, max_new_tokens=new_tokens, **options)

        return work_of_a_step(write, batches)

    known = KnownRandomRule()
    calm = DecayingThresholdRule(margin, -0.04, 0.0, 64)  # half depth
    steps = {
        "never exit": step_of(NeverExit()),
        "random exits": step_of(known),
        "random exits, in flight": step_of(known, in_flight=32),
        "CALM": step_of(calm),
        "CALM, in flight": step_of(calm, in_flight=32),
    }
    assert steps["never exit"]["operations"] <= 1.05 * stock["operations"]
    for name in ("random exits", "CALM"):
        in_step, in_flight = steps[name], steps[f"{name}, in flight"]
        of_layers = stock["operations"] * in_step["layers"] / model.num_layers
        assert in_step["operations"] <= 1.6 * of_layers, "missing keys and values are the most of it"
        assert in_flight["operations"] < in_step["operations"]
