"""Run commands as after ``pip install consistentee``: nothing is found but what this brings.

``python tests/without_extras.py FILE`` runs the commands in a JSON file, and prints exit code and output of each.
"""

import json
import subprocess
import sys
from importlib.machinery import PathFinder
from importlib.metadata import Distribution, distribution, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

Result = tuple[int, str]


def core_packages(package: str = "consistentee", extras: frozenset[str] = frozenset()) -> set[str]:
    """Return a package and everything that installing it brings, by the metadata of what is installed here."""
    found = {canonicalize_name(package)}
    waiting = [(package, extras)]
    seen = set(waiting)
    while waiting:
        name, wanted = waiting.pop()
        for requirement in map(Requirement, distribution(name).requires or ()):
            marker = requirement.marker
            if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                continue
            found.add(canonicalize_name(requirement.name))
            if (further := (requirement.name, frozenset(requirement.extras))) not in seen:
                seen.add(further)
                waiting.append(further)
    return found


def hide_all_but(packages: set[str]) -> None:
    """Let imports and metadata of this process find these packages alone."""
    owners = packages_distributions()
    hidden = {module for module, names in owners.items() if not packages & set(map(canonicalize_name, names))}

    class Finder(PathFinder):
        @classmethod
        def find_spec(cls, fullname, path=None, target=None):
            return None if fullname.partition(".")[0] in hidden else super().find_spec(fullname, path, target)

        @classmethod
        def find_distributions(cls, *context):
            found: list[Distribution] = list(PathFinder.find_distributions(*context))
            return [one for one in found if canonicalize_name(one.name) in packages]

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
    hide_all_but(core_packages())

    from command_line import call

    done = [call(*words) for words in commands]
    print(json.dumps([[one.exit_code, one.output] for one in done]))


if __name__ == "__main__":
    main()
