"""Run commands as after ``pip install consistentee``: no package of an extra is found.

``python tests/without_extras.py FILE`` runs the commands in a JSON file, and prints exit code and output of each.
"""

import json
import subprocess
import sys
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import get_args

from packaging.utils import canonicalize_name

from consistentee.extras import Extra, packages_of

Result = tuple[int, str]


def hide_extras() -> None:
    """Let imports and metadata of this process find no package of an extra."""
    packages = {canonicalize_name(name) for extra in get_args(Extra) for name in packages_of(extra)} - {"consistentee"}
    owners = packages_distributions()
    hidden = {module for module, names in owners.items() if packages & set(map(canonicalize_name, names))}

    class Finder(PathFinder):
        @classmethod
        def find_spec(cls, fullname, path=None, target=None):
            return None if fullname.partition(".")[0] in hidden else super().find_spec(fullname, path, target)

        @classmethod
        def find_distributions(cls, *context):
            found = PathFinder.find_distributions(*context)
            return [one for one in found if canonicalize_name(one.name) not in packages]

    sys.meta_path[sys.meta_path.index(PathFinder)] = Finder


def results_of(commands: list[list[object]], folder: Path) -> list[Result]:
    """Run commands of ``consistentee`` in one process, in a folder."""
    file = folder / "commands.json"
    file.write_text(json.dumps([[str(word) for word in words] for words in commands]), encoding="utf-8")
    program = [sys.executable, __file__, str(file)]
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [tuple(one) for one in json.loads(done.stdout.splitlines()[-1])]


def main() -> None:
    """Hide the extras, and run commands."""
    commands = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    hide_extras()

    from command_line import call

    done = [call(*words) for words in commands]
    print(json.dumps([[one.exit_code, one.output] for one in done]))


if __name__ == "__main__":
    main()
