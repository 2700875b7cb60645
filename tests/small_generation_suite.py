"""A suite of generation that runs in seconds: a tiny decoder and a text task in files."""

import json
from pathlib import Path

import yaml
from small_suite import Bench

from benchmarks.testing.tiny import make_text_task
from consistentee.data.tasks import PromptSplit

METHODS = ["token-full", "token-static", "calm-tokens-softmax", "layerskip"]


def write_text_task(folder: Path, name: str = "toy-text") -> Path:
    """Write a toy task of texts as files and a YAML."""
    task = make_text_task(24)

    def write(split: PromptSplit) -> None:
        rows = zip(split.prompts, split.references, strict=True)
        lines = [json.dumps({"q": prompt, "a": reference.strip()}) for prompt, reference in rows]
        (folder / f"{name}-{split.name}.jsonl").write_text("\n".join(lines) + "\n")

    for split in (task.train, task.validation, task.test):
        write(split)
    files: dict[str, object] = {"format": "jsonl", "fields": {"question": "q"}, "response": "a"}
    files |= {split: f"{name}-{split}.jsonl" for split in ("train", "validation", "test")}
    spec = {"schema_version": 1, "kind": "text", "name": name, "version": 1, "description": "d", "files": files}
    spec |= {"metrics": ["rougeL", "rouge1"], "template": "{question}", "max_prompt_tokens": 4, "max_new_tokens": 6}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


class GenerationBench(Bench):
    """A small suite of generation, its results folder, and what its runs said."""

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
            "methods": METHODS,
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
