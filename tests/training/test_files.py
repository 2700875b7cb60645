"""Work that one process does and others wait for, and what killed processes leave behind."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from comparing import same_weights

from benchmarks.testing.tiny import make_task
from consistentee.files import clear_leftovers, load_tensors, only_one, save_tensors
from consistentee.training.encoder import TokenSource, train_jointly
from consistentee.training.recipe import Recipe

HOLD = """
import sys, time
from pathlib import Path
from consistentee.files import only_one
with only_one(Path(sys.argv[1])):
    print("holding", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_free_once_its_holder_is_killed(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "stage")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "holding\n"
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(lambda: only_one(tmp_path / "stage").__enter__())
        time.sleep(0.3)
        assert not waiting.done()
        os.kill(process.pid, signal.SIGKILL)
        waiting.result(timeout=20)
    process.wait()


def test_leftovers_are_removed_and_held_locks_stay(tmp_path):
    for name in (".model.x1.partial", "cells/.record.json.x2.partial"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".said.x3.partial").write_text("half")
    (tmp_path / "record.json").write_text("{}")
    with only_one(tmp_path / "free"):
        pass
    with only_one(tmp_path / "cells" / "held"):
        clear_leftovers(tmp_path)
        kept = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
        assert kept == ["cells/.held.lock", "record.json"]
    clear_leftovers(tmp_path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["record.json"]


@pytest.mark.parametrize("place", [9, 75, -1])
def test_a_flipped_bit_in_tensors_is_named_and_set_aside(tmp_path, caplog, place):
    path = tmp_path / "stage.safetensors"
    save_tensors({"weight": torch.arange(8.0), "step": torch.tensor(3)}, path)
    assert load_tensors(path)["weight"].tolist() == list(range(8))
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert load_tensors(path) is None
    assert "stage.safetensors is damaged" in caplog.text
    assert [file.name for file in tmp_path.iterdir()] == ["stage.safetensors.damaged-1"]


def test_a_shared_stage_is_trained_once_by_two_that_want_it(tmp_path, tiny_model, monkeypatch):
    models = [tiny_model(), tiny_model()]
    steps, real = [], TokenSource.batch
    monkeypatch.setattr(TokenSource, "batch", lambda source, rows, step: steps.append(step) or real(source, rows, step))
    recipe = Recipe(epochs=1, max_length=16, store=tmp_path)
    with ThreadPoolExecutor(2) as pool:  # as two cells of one group do
        list(pool.map(lambda model: train_jointly(model, make_task(), recipe), models))
    assert steps == list(range(len(steps))), "one went through the steps"
    assert same_weights(*models)
