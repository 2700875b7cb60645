"""Follow README and the first page of the documentation, small, with what ``pip install`` of the project brings.

Run by ``tox -e user`` in an empty folder: no pytest, no extra, and the installed package instead of this repository.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from documents import ROOT, blocks_of, commands_of

import benchmarks
import consistentee

SUITE = """
name: small
description: A suite that a new user might write.
tasks: [movie-snippets]
backbones: [minilm-l6]
methods: [full, {method: deebert}, {method: consistentee-held-out}]
recipe: {epochs: 1, max_rows: 64, frozen_steps: 20}
seeds: [0]
validation_rows: 64
test_rows: 64
timing: {rounds: 3, batch_sizes: [1], rows: 8, warmup_batches: 1}
"""
MORE_COMMANDS = """
consistentee run small.yaml
consistentee table runs/small
consistentee report runs/small
consistentee doctor
"""
DECODING = """
import consistentee as ee

decoder = ee.MultiExitDecoder.from_backbone("smollm2-135m")
written = ee.generate(decoder, ["The council voted on Tuesday to"], ee.NeverExit(), max_new_tokens=8)
print(written.texts, written.exit_layers)
assert len(written.tokens[0]) == 8 and written.texts[0].strip()
"""


followed = set()


def follow(words: list[str]) -> None:
    """Run a command in this folder, once, and end with its output if it fails."""
    if tuple(words) in followed:
        return
    followed.add(tuple(words))
    start, before = time.perf_counter(), os.times()
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    seconds, after = time.perf_counter() - start, os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    shown = " ".join(" ".join([Path(words[0]).name, *words[1:]]).split())
    print(f"{seconds:6.1f} s ({busy:5.1f} s of a processor)  {shown[:100]}", flush=True)
    if done.returncode or "Traceback" in done.stdout:
        raise SystemExit(f"{done.stdout}\nended with {done.returncode}")


def follow_commands(source: str) -> None:
    """Run the commands of a block that are the project's own; installation is what tox has done already."""
    for words in commands_of(source):
        if words[0] == "consistentee":
            follow([str(Path(sys.executable).with_name("consistentee")), *words[1:]])


def main() -> None:
    """Follow every block that is meant to be run, and then what else a new user tries."""
    for package in (benchmarks, consistentee):
        assert "site-packages" in str(package.__file__), f"{package.__file__} is not the installed package"
    shutil.copytree(ROOT / "results", "results")
    Path("small.yaml").write_text(SUITE, encoding="utf-8")
    for document in ("README.md", "docs/index.md"):
        for block in blocks_of(document):
            if block.said.startswith(("parsed", "slow", "test_", "on tiny")):
                continue
            if block.language == "sh":
                follow_commands(block.smaller())
            elif block.language == "python":
                follow([sys.executable, "-c", block.smaller()])
    follow([sys.executable, "-c", DECODING])
    follow_commands(MORE_COMMANDS)


if __name__ == "__main__":
    main()
