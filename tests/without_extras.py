"""Hide packages, as after ``pip install consistentee``: no package of an extra is found."""

import sys
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions
from typing import get_args

from packaging.utils import canonicalize_name

from consistentee.extras import Extra, packages_of


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
