"""Training, replay, classification and decoding on a device that is not the CPU; see ``second_device.py``.

Each group of tests runs in a process of its own, where the second device is the accelerator that torch finds.
"""

import os
import subprocess
import sys

import pytest
from documents import ROOT
from second_device import MISSING

CONTRACT, GOLDEN = "tests/testing/test_invariants.py", "tests/testing/test_golden_cells.py"
WORK, TRAINING = "tests/devices/on_device.py", "tests/training/test_training.py"
GROUPS = {
    "copies, reads and some methods": [
        *(WORK, CONTRACT, "-k"),
        "on_device or :bert:replay and (deebert or pabee) or :llama:replay and calm-tokens-softmax",
    ],
    "encoders": [
        *(CONTRACT, WORK, TRAINING, "-k"),
        ":bert:replay or deebert: and (replay or saved) or on_device or interrupted and not rows",
    ],
    "decoders": [
        *(CONTRACT, GOLDEN, "-k"),
        ":llama:replay or calm-tokens-softmax: and (replay or saved) or version and (deebert or hashee or free)",
    ],
    "the whole contract": [CONTRACT, "-m", ""],
    "all golden cells": [GOLDEN, "-k", "version"],
}
"""With ``-m slow`` every method on one family, one method on every family, some golden cells; and all of them.

Training in bfloat16 (``rows``) is left out: autocast needs more than a device in Python has."""
QUICK = "copies, reads and some methods"


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
@pytest.mark.parametrize("group", [pytest.param(name, marks=[pytest.mark.slow] * (name != QUICK)) for name in GROUPS])
@pytest.mark.timeout(1800)
def test_everything_runs_on_a_second_device(group):
    paths = os.pathsep.join([str(ROOT / "tests" / "devices"), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": paths, "CONSISTENTEE_DEVICE": "auto"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "second_device", *GROUPS[group]]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-10_000:] + run.stderr[-2_000:]
    print(run.stdout[-200:])
