"""Suites of classification and of generation that run in seconds, their results folders, and what their runs said."""

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from copy import copy
from pathlib import Path
from typing import Self

import pandas as pd
import pytest
import yaml
from rich.console import Console
from task_files import LABELS, SPEC, TEXTS, lines, table, write_yaml

from benchmarks.run import pool
from benchmarks.run.jobs import Job
from benchmarks.run.pool import compute_here
from benchmarks.run.sweep import RunOutcome, run_suite
from benchmarks.specs.suites import Filters, load_suite
from benchmarks.store.folders import RECORD_FILE
from benchmarks.store.records import CellRecord
from benchmarks.store.results_folder import StoredResults, open_results
from benchmarks.testing.tiny import make_task, make_text_task

GENERATION_METHODS = ["token-full", "token-static", "calm-tokens-softmax", "layerskip"]

# A shell makes its commands in the background deaf to Ctrl-C, and so what they start.
_PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from benchmarks.cli import main
main()
"""


def carry_out_here(job: Job) -> None:
    """Compute a job in this process, which has loaded the libraries already."""
    compute_here(job)
    job.status.unlink(missing_ok=True)


def wait_until(happened: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        time.sleep(0.005)
        assert time.monotonic() < deadline


def stamps(paths: Iterable[Path]) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in paths}


def write_task(folder: Path, name: str, regression: bool = False) -> Path:
    task = make_task(regression=regression)
    splits = {f"{name}-{split.name}.tsv": split for split in (task.train, task.validation, task.test)}
    rows = {file: table(zip(split.texts, map(str, split.labels), strict=True)) for file, split in splits.items()}
    files = {**LABELS, **{split.name: file for file, split in splits.items()}}
    target = {"target": "number", "metrics": ["pearson"]} if regression else {"metrics": ["accuracy"]}
    return write_yaml(folder, rows, {**SPEC, "name": name, "files": files, **target})


def write_text_task(folder: Path, name: str = "toy-text") -> Path:
    task = make_text_task(24)
    splits = {f"{name}-{split.name}.jsonl": split for split in (task.train, task.validation, task.test)}
    rows = {
        file: lines({"q": q, "a": a.strip()} for q, a in zip(split.prompts, split.references, strict=True))
        for file, split in splits.items()
    }
    files = {**TEXTS, **{split.name: file for file, split in splits.items()}}
    spec = {**SPEC, "kind": "text", "name": name, "files": files, "metrics": ["rougeL", "rouge1"]}
    spec |= {"template": "{question}", "max_prompt_tokens": 4, "max_new_tokens": 6}
    return write_yaml(folder, rows, spec)


class Bench:
    """A small suite, its results folder, and what its runs said."""

    def __init__(self, folder: Path, backbone: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.suite_file = folder / "suite.yaml"
        self.said = ""
        self.outcome: RunOutcome | None = None
        self.values = {
            "name": "toy",
            "description": "d",
            "tasks": [str(write_task(folder, "toy"))],
            "backbones": [str(backbone)],
            "seeds": [0],
            "recipe": {"epochs": 1, "max_length": 16},
            "methods": ["full", "oracle", "calm-softmax"],
            "timing": {"rows": 8, "batch_sizes": [1, 4]},
        }

    def write(self, **changes: object) -> Path:
        self.suite_file.write_text(yaml.safe_dump({**self.values, **changes}))
        return self.suite_file

    def run(self, filters: Filters | None = None, *, changes: dict | None = None, **options: object) -> RunOutcome:
        """Run the suite; in this process, unless a schedule is given."""
        console = Console(file=io.StringIO(), width=1000)
        suite = load_suite(self.write(**(changes or {})))
        with pytest.MonkeyPatch.context() as patch:
            if "schedule" not in options:
                patch.setattr(pool, "execute", carry_out_here)
            try:
                return run_suite(suite, filters, out=self.out, console=console, **options)
            finally:
                self.said = console.file.getvalue()

    def run_once(self) -> Self:
        """Run the whole suite, and show it without published results."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("benchmarks.analysis.board.published_folders", list)
            self.outcome = self.run()
        return self

    def plan(self, filters: Filters | None = None, *, changes: dict | None = None, **options: object) -> list[str]:
        """Return the plan of a run, which changes nothing."""
        suite = load_suite(self.write(**(changes or {})))
        return list(run_suite(suite, filters, out=self.out, dry_run=True, **options).plan)

    def elsewhere(self, out: Path) -> "Bench":
        """Return the same suite with another results folder."""
        other = copy(self)
        other.out, other.suite_file = out, out.parent / "suite.yaml"
        other.write()
        return other

    def timed_labels(self) -> list[set[str]]:
        """Return the labels in each timing, the latest first."""
        return [{one.label for one in timing.timed} for timing in self.read().timings.values()]

    def read(self) -> StoredResults:
        return open_results(self.out)

    def records(self) -> dict[str, CellRecord]:
        return {record.label: record for record in self.read().cells.values()}

    def folder_of(self, label: str) -> Path:
        found = self.read()
        return next(found.place(folder) for folder, record in found.cells.items() if record.label == label)

    def frames_of(self, label: str) -> dict[str, pd.DataFrame]:
        found = self.read()
        return next(found.frames_of(folder) for folder, record in found.cells.items() if record.label == label)

    def finished_cells(self) -> list[Path]:
        # A record that is being written lies in a folder of another name.
        return list(self.out.glob(f"cells/*/*/*/*/seed0/{RECORD_FILE}"))

    def leftovers(self) -> list[Path]:
        """Return what is temporary: hidden files and folders, and checkpoints of training."""
        return [p for p in self.out.rglob("*") if p.name.startswith(".") or ".checkpoint." in p.name]

    def assert_complete(self, cells: int) -> None:
        """Check that the first run computed all cells and wrote all files, without faults, own folders or leftovers."""
        outcome = self.outcome
        assert (outcome.finished, outcome.computed, outcome.failed, outcome.refused) == (cells, cells, (), ())
        written = {path.name for path in self.out.iterdir()}
        assert {"table.md", "suite.yaml", "environment.json"} <= written
        assert any(name.endswith(".png") for name in written)
        assert self.read().faults == []
        assert str(self.folder) not in "".join(path.read_text() for path in self.out.rglob(RECORD_FILE))
        assert self.leftovers() == []

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """Start the command in a process group of its own."""
        arguments = ["run", str(self.suite_file), "--out", str(self.out), *options]
        command = [sys.executable, "-c", _PROGRAM, *arguments]
        with (self.folder / "said.txt").open("ab") as said:
            return subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True, env=os.environ)

    def results(self) -> dict[str, dict[str, str]]:
        """Return what must not depend on how a run went: the frames of every cell, with scores, exits and answers."""
        return {
            label: {name: frame.to_json() for name, frame in self.frames_of(label).items()} for label in self.records()
        }


class GenerationBench(Bench):
    def __init__(self, folder: Path, backbone: Path) -> None:
        super().__init__(folder, backbone)
        self.values = {
            "name": "toy-generation",
            "kind": "generation",
            "description": "d",
            "tasks": [str(write_text_task(folder))],
            "train_on": str(write_text_task(folder, "other-text")),
            "backbones": [str(backbone)],
            "seeds": [0],
            "recipe": {"exit_steps": 5, "exit_batch_size": 16, "head_steps": 5, "head_tokens": 64},
            "methods": GENERATION_METHODS,
            "validation_prompts": 6,
            "test_prompts": 6,
            "max_prompt_tokens": 3,
            "timing": {
                "rows": 4,
                "batch_sizes": [1, 4],
                "max_new_tokens": 3,
                "regrouped": [{"batch_size": 1, "in_flight": 4}],
            },
        }
