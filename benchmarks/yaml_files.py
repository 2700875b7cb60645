"""Reading the YAML files that people write: suites, tasks and tables of papers."""

from collections.abc import Hashable
from pathlib import Path

import yaml
from yaml.constructor import ConstructorError

from consistentee.errors import UserError


def read_fields(path: Path, of: str) -> dict[str, object]:
    """Return the fields that a YAML file gives; ``of`` says whose, for the message.

    Raises UserError for a file that cannot be read, is not YAML, has a key twice, or holds no mapping.
    """
    try:
        fields = read_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path} must hold a mapping of the fields of a {of}")
    return fields


def read_yaml(text: str) -> object:
    """Return what a YAML text says. Raises yaml.YAMLError for text that is not YAML, and for a key written twice."""
    return yaml.load(text, Loader=_NoKeyTwice)


class _NoKeyTwice(yaml.SafeLoader):
    """SafeLoader, which would silently keep the last of two values, but for a key that is written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        """Construct a mapping. Keys that come by ``<<`` may be written again: that is what it is for."""
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise ConstructorError(None, None, f"the key {key.value!r} is written twice", key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)
