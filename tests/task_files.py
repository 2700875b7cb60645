"""Task YAMLs with their files, for the tests of tasks."""

import json
from pathlib import Path

import yaml

SPEC = {"schema_version": 1, "name": "mine", "version": 1, "description": "mine"}
LABELS = {"format": "tsv", "train": "train.tsv", "text": "text", "label": "label"}
TEXTS = {"format": "jsonl", "train": "train.jsonl", "fields": {"question": "q"}, "response": "a"}


def write_yaml(folder: Path, contents: dict[str, str], spec: dict) -> Path:
    """Write a task's YAML and its files; ``contents`` by file name."""
    for name, content in contents.items():
        (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    path = folder / f"{spec['name']}.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def write_task(folder: Path, contents: dict[str, str], files: dict | None = None, **keys) -> Path:
    return write_yaml(folder, contents, {**SPEC, "metrics": ["accuracy"], "files": {**LABELS, **(files or {})}, **keys})


def write_text_task(folder: Path, contents: dict[str, str], files: dict | None = None, **keys) -> Path:
    spec = {**SPEC, "kind": "text", "metrics": ["rougeL"], "template": "Q: {question}\nA:"}
    return write_yaml(folder, contents, {**spec, "files": {**TEXTS, **(files or {})}, **keys})


def table(rows, header="text\tlabel") -> str:
    return "\n".join([header, *("\t".join(row) for row in rows)]) + "\n"


def balanced(rows: int, classes: int = 2) -> str:
    return table([(f"text {i}", f"c{i % classes}") for i in range(rows)])


def lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def questions(count: int, prefix: str = "q") -> str:
    return lines({"q": f"{prefix}{i}", "a": f"a{i}"} for i in range(count))
