"""Hand in the result of a method as one folder in the format of published results, with its source and its author."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from pydantic import Field

from benchmarks.analysis.frames import FULL, role_of
from benchmarks.commands.publish import whole_results, write_folder
from benchmarks.specs.base import folder_name, label_of
from benchmarks.specs.method_files import method_version
from benchmarks.specs.schema import Strict
from benchmarks.store.hashes import write_text
from benchmarks.store.records import BaseRecord
from benchmarks.store.stored_results import failed_cells
from benchmarks.yaml_files import load_named
from consistentee.errors import UserError, unknown_name
from consistentee.methods.method import get_method, method_class_of

SUBMISSION_FILE = "submission.yaml"


class Submission(Strict):
    """Describe a submission for its readers; ``author``, ``paper`` and ``bibtex`` may be edited."""

    method: str = Field(description="its label in the records")
    code: str | None = Field(None, pattern=r"^[\w-]+\.py:\w+$", description="its file in this folder, and the class")
    author: str = Field(min_length=1, description="who hands it in, and answers questions")
    paper: str
    bibtex: str


def submit_run(run: Path, method: str, author: str, out: Path | None = None) -> list[Path]:
    """Write the results of a method, and of the full model on its tasks, as a submission; return the files.

    ``run`` may be published; ``method`` is a label or ``file.py:Class``; ``out`` is ``results/submissions/LABEL`` by
    default. Raises UserError for results that cannot be read or lack the method, and if its file is not what ran.
    """
    from benchmarks.commands.inventory import bibtex_of  # loads torch, as naming a method's class does

    results, label = whole_results(run), label_of(method)
    own = [cell.record for cell in results.cells if cell.record.label == label]
    if not own:
        raise unknown_name("method in these results", label, {cell.record.label for cell in results.cells})
    source = method if ".py:" in method else own[0].method
    if method_version(source) != own[0].key_parts.method_version:
        raise UserError(f"{source} is not the code of these results; run the suite again with it")
    file, _, class_name = source.rpartition(":")
    paper = method_class_of(source).paper
    submission = Submission(
        method=label,
        code=f"{Path(file).name}:{class_name}" if file else None,
        author=author,
        paper=paper,
        bibtex=" ".join((bibtex_of(label, paper) or "").split()),
    )
    cells = [c for c in results.cells if c.record.label == label or _is_reference(c.record, own)]
    keys = {"", *(cell.record.key for cell in cells)}
    timings = {}
    for name, timing in results.timings.items():
        kept = [contender for contender in timing.contenders if contender.cell_key in keys]
        if any(contender.cell_key for contender in kept):
            timings[name] = timing.model_copy(update={"contenders": kept})
    failures = {name: note for name, note in failed_cells(run).items() if Path(name).parts[2] == folder_name(label)}
    out = out or Path("results") / "submissions" / folder_name(label)
    part = replace(results, cells=cells, timings=timings)
    written = write_folder(out, run, part, failures, [Path(file)] if file else [])
    text = yaml.safe_dump(submission.model_dump(exclude_none=True), sort_keys=False, allow_unicode=True, width=120)
    write_text(out / SUBMISSION_FILE, text)
    return [*written, out / SUBMISSION_FILE]


def _is_reference(record: BaseRecord, own: Sequence[BaseRecord]) -> bool:
    return role_of(record.method) == FULL and any((r.task, r.backbone) == (record.task, record.backbone) for r in own)


def faults_of_submission(folder: Path, records: Sequence[BaseRecord], *, allow_code: bool) -> Iterator[str]:
    """Yield a sentence for every fault of a submission itself; ``allow_code`` imports the method's file to check it."""
    try:
        submission = load_named("submission", folder / SUBMISSION_FILE, {}, lambda fields: Submission)
        own = [record for record in records if record.label == submission.method]
        for label in sorted({r.label for r in records if r not in own and not _is_reference(r, own)}):
            yield f"{folder}: cells of {label} are no part of a submission of {submission.method}"
        if not own or (".py:" in own[0].method and submission.code is None):
            yield f"{folder}: {'the file' if own else 'there is no cell'} of {submission.method} is missing"
            return
        source = f"{folder}/{submission.code}" if submission.code else own[0].method
        if method_version(source) != own[0].key_parts.method_version:
            yield f"{source}: its version, or its code, is not that of the cells"
        elif submission.code and allow_code:
            from benchmarks.testing.check_method import check_method

            faults = check_method(source, get_method(source)).fault_lines()
            yield from (f"{source} breaks the contract of methods: {' '.join(fault.split())}" for fault in faults)
    except UserError as error:
        yield str(error)
