"""Follow README and the first page of the documentation, small, with what ``pip install`` of the wheel brings.

Run by ``tox -e user`` in an empty folder, with the installed package instead of this repository and no pytest. At first
there is the core alone: what it promises works, and other commands name the extra. Then the extra is installed, and
everything works.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from importlib.metadata import distributions
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from classifiers_on_disk import save_classifier, write_rows
from documents import ROOT, blocks_of, commands_of

import benchmarks
import consistentee
from benchmarks.testing.tiny import TinyDecoders

BENCH_COMMANDS = ("run", "table", "report", "plot", "publish", "verify", "reproduce")
"""The commands that need the extra ``bench``."""

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
CORE_COMMANDS = """
consistentee doctor
consistentee list methods
consistentee accelerate classifier rows.csv --loss 12 --no-compile --set frozen_steps=8 epochs=1 --out faster
consistentee predict faster --file rows.csv --out labelled.csv
consistentee time faster rows.csv
"""
MORE_COMMANDS = """
consistentee run small.yaml
consistentee table runs/small
consistentee report runs/small
"""
DECODING = """
import consistentee as ee

decoder = ee.MultiExitDecoder.from_backbone("{backbone}")
written = ee.generate(decoder, ["The council voted on Tuesday to"], ee.NeverExit(), max_new_tokens=8)
print(written.texts, written.exit_layers)
assert len(written.tokens[0]) == 8 and written.texts[0].strip()
"""


followed = set()


def follow(words: list[str], *, refused: bool = False) -> None:
    """Run a command in this folder, once, and end with its output if it fails, or if it is not refused as expected."""
    if tuple(words) in followed:
        return
    start, before = time.perf_counter(), os.times()
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    seconds, after = time.perf_counter() - start, os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    shown = " ".join(" ".join([Path(words[0]).name, *words[1:]]).split())
    print(f"{seconds:6.1f} s ({busy:5.1f} s of a processor)  {'refused: ' * refused}{shown[:100]}", flush=True)
    if refused:
        expected = done.returncode == 2 and done.stdout.endswith('run: pip install "consistentee[bench]"\n')
    else:
        expected = done.returncode == 0 and "Traceback" not in done.stdout
        followed.add(tuple(words))
    if not expected:
        raise SystemExit(f"{done.stdout}\nended with {done.returncode}")


def follow_commands(source: str, *, has_bench: bool) -> None:
    """Run the commands of a block that are the project's own; installation is what tox and this script do."""
    for program, *words in commands_of(source):
        if program == "consistentee":
            command = [str(Path(sys.executable).with_name("consistentee")), *words]
            follow(command, refused=words[0] in BENCH_COMMANDS and not has_bench)


def follow_documents(*, has_bench: bool) -> None:
    """Follow every block that is meant to be run."""
    for document in ("README.md", "docs/index.md"):
        for block in blocks_of(document):
            if block.said.startswith(("parsed", "slow", "test_", "on tiny")):
                continue
            if block.language == "sh":
                follow_commands(block.smaller(), has_bench=has_bench)
            elif block.language == "python":
                follow([sys.executable, "-c", block.smaller()])


def show_size(title: str) -> None:
    packages = Path(sysconfig.get_path("purelib"))
    size = sum(file.stat().st_size for file in packages.rglob("*") if file.is_file())
    print(f"{title}: {len(list(distributions()))} packages, {size / 1e6:,.0f} MB", flush=True)


def main() -> None:
    """Follow the documents and what else a new user tries: with the core alone, and with the extra."""
    for package in (benchmarks, consistentee):
        assert "site-packages" in str(package.__file__), f"{package.__file__} is not the installed package"
    pip = [sys.executable, "-m", "pip"]
    shutil.copytree(ROOT / "results", "results")
    Path("small.yaml").write_text(SUITE, encoding="utf-8")
    save_classifier(Path("classifier"))
    write_rows(Path("rows.csv"))

    installed = {one.name for one in distributions()}
    assert installed.isdisjoint({"pyarrow", "datasets", "scikit-learn", "matplotlib"}), (
        "this is not the core alone: tox -r -e user makes the environment anew"
    )
    show_size("the core")
    follow([*pip, "check"])
    follow_documents(has_bench=False)
    follow_commands(CORE_COMMANDS, has_bench=False)
    decoder = TinyDecoders(Path("decoders")).backbone()
    follow([sys.executable, "-c", DECODING.format(backbone=decoder)])
    follow_commands(MORE_COMMANDS, has_bench=False)

    start = time.perf_counter()
    subprocess.run([*pip, "install", "--quiet", f"{os.environ['TOX_PACKAGE']}[bench]"], check=True)
    show_size(f"with bench, after {time.perf_counter() - start:.0f} s more")
    followed.discard((*pip, "check"))
    follow([*pip, "check"])
    follow_documents(has_bench=True)
    follow([sys.executable, "-c", DECODING.format(backbone="smollm2-135m")])
    follow_commands(MORE_COMMANDS, has_bench=True)


if __name__ == "__main__":
    main()
