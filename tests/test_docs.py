"""What the documentation shows, works."""

import re
from pathlib import Path

from conftest import make_task

from consistentee.method import get_method
from consistentee.trace import record_trace, sweep
from consistentee.training import Recipe

ROOT = Path(__file__).parent.parent


def test_the_method_of_the_guide_works_and_is_short(tmp_path, tiny_model):
    guide = (ROOT / "docs" / "add_a_method.md").read_text(encoding="utf-8")
    source = re.search(r"```python\n(.*?)```", guide, re.DOTALL).group(1)
    assert len(source.splitlines()) <= 60
    path = tmp_path / "mine.py"
    path.write_text(source, encoding="utf-8")
    method = get_method(f"{path}:Gate")
    task = make_task()
    model = method.fit(tiny_model(), task, Recipe(epochs=1, max_length=32, frozen_steps=4))
    exits = sweep([method.rule(model, knob) for knob in method.knob_values(model)], record_trace(model, task.test))
    assert (exits[0] == 1).all()
    assert (exits[-1] == model.num_layers).all()


def test_files_that_the_readme_links_to_exist():
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        links = re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text(encoding="utf-8"))
        assert links
        for link in links:
            assert (document.parent / link).exists(), f"{document.name}: {link}"
