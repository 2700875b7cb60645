"""Reading the YAML files that people write: suites and tasks."""

from collections.abc import Hashable
from typing import Any

import yaml
from yaml.constructor import ConstructorError


def read_yaml(text: str) -> Any:
    """Return what a YAML text says. Raises yaml.YAMLError for text that is not YAML, and for a key written twice."""
    return yaml.load(text, Loader=_NoKeyTwice)


class _NoKeyTwice(yaml.SafeLoader):
    """SafeLoader, which would silently keep the last of two values, but for a key that is written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Construct a mapping. Keys that come by ``<<`` may be written again: that is what it is for."""
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise ConstructorError(None, None, f"the key {key.value!r} is written twice", key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)
