"""The record of a machine."""

import getpass
import json
import os
import subprocess
from pathlib import Path

from benchmarks.measure import environment
from benchmarks.measure.environment import command_line, describe_conditions, describe_environment


def test_environment_is_json_and_tells_what_matters_and_nobodys_name():
    text = json.dumps(describe_environment() | describe_conditions())
    values = json.loads(text)
    assert values["libraries"]["torch"]
    assert values["cores_usable"] >= 1
    assert len(values["load_average"]) == 3
    assert str(Path.home()) + os.sep not in text
    assert os.uname().nodename not in text
    assert f"/{getpass.getuser()}/" not in text


def test_command_line_loses_folders():
    arguments = ["run", "quick", "--out", "/home/me/out", "--data=/somewhere/else/data", "--published", "a/b"]
    shown = "consistentee run quick --out out --data=data --published a/b"
    assert command_line(["/usr/bin/consistentee", *arguments]) == shown
    assert command_line(["/somewhere/benchmarks/cli/__main__.py", "doctor"]) == "consistentee doctor"


def test_changes_count_where_they_are_code(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    monkeypatch.setattr(environment, "REPOSITORY", tmp_path)
    for folder in ("consistentee", "baselines", "benchmarks", "results"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text("before")
    (tmp_path / "pyproject.toml").write_text("")
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    for folder, counts in (("results", False), ("baselines", True)):
        (tmp_path / folder / "file").write_text("after")
        assert describe_environment()["uncommitted_changes"] is counts
