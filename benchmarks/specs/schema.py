"""Schemas of the harness, and the YAML files that people write by them: suites, tasks, tables of papers.

A schema refuses unknown keys; equal values have equal JSON.
"""

import json
import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from yaml.constructor import ConstructorError

from consistentee.errors import UserError, unknown_name

_SchemaT = TypeVar("_SchemaT", bound=BaseModel)

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
"""Endings of files that are tables of a user."""


def canonical_json(value: object) -> str:
    """Return the canonical JSON of a value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def hash_value(value: object) -> str:
    """Return the SHA-256 of the canonical JSON of a value, in hexadecimal."""
    return sha256(canonical_json(value).encode()).hexdigest()


class Strict(BaseModel):
    """A model that forbids unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


def yaml_files(folder: Path) -> dict[str, Path]:
    """Return the YAML files of a folder, by name."""
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_named(
    what: str,
    name_or_path: str | Path,
    known: Mapping[str, Path],
    schema_of: Callable[[dict[str, Any]], type[_SchemaT]],
    prepare: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> _SchemaT:
    """Read a YAML file, by its path or a known name; its fields, once prepared, define its schema.

    Raises UserError for an unknown name, and for a file that is not valid (the field is named).
    """
    path = known.get(str(name_or_path)) or Path(name_or_path).expanduser()
    if not path.is_file():
        if path.suffix in {".yaml", ".yml"}:
            raise UserError(f"no such {what} file: {path}")
        raise unknown_name(what, str(name_or_path), known)
    fields = prepare(read_fields(path, what))
    try:
        schema = schema_of(fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        raise UserError(f"{path} is not a {what}: {validation_sentence(error, schema)}") from error


def read_fields(path: Path, of: str) -> dict[str, Any]:
    """Return the fields of a YAML file; ``of`` names what they describe, for the message.

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
    """Return the value of a YAML text. Raises yaml.YAMLError for anything else, and for a key that is written twice."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice, and values that are none of their type."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError) as error:  # of a date, a number, ... that is none
            fault = f"{str(node.value)[:50]!r} is no {node.tag.rpartition(':')[2]}"
            raise ConstructorError(None, None, fault, node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        """Construct a mapping. Keys that come by ``<<`` may be written again: that is what it is for."""
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise ConstructorError(None, None, f"the key {key.value!r} is written twice", key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def validation_sentence(error: ValidationError, schema: object, before: str = "") -> str:
    """Describe in one sentence what is wrong with a file of a schema: every field, below ``before``, and its fault."""
    faults, places = [], [fault["loc"] for fault in error.errors()]
    for fault in error.errors():
        here = fault["loc"]
        if fault["type"] == "too_short" and any(place[: len(here)] == here for place in places if place != here):
            continue  # items with faults of their own are not counted
        words, place = fault["msg"].removeprefix("Value error, "), here
        if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            place = here[:-1]
            words = str(unknown_name("key", str(here[-1]), _keys_at(schema, place)))
        elif fault["type"] == "literal_error" and (choices := re.findall("'(.*?)'", fault["ctx"]["expected"])):
            words = str(unknown_name("value", str(fault["input"]), choices))
        field = f"{before}{'.'.join(map(str, place))}".rstrip(".")
        faults.append(f"{field}: {words}" if field else words)
    return "; ".join(faults)


def _keys_at(schema: object, place: Iterable[str | int]) -> Iterable[str]:
    """Return the keys of the model at a place in a schema; numbers of items and keys of mappings are passed over."""
    fields = _fields_in(schema)
    for part in place:
        fields = _fields_in(fields[part].annotation) if part in fields else fields
    return fields


def _fields_in(annotation: object) -> Mapping[Any, Any]:
    """Return the fields of a model, or of the first one in an annotation such as ``tuple[Model, ...]``."""
    found: Mapping[Any, Any] = getattr(annotation, "__pydantic_fields__", {})
    return found or next((fields for part in get_args(annotation) if (fields := _fields_in(part))), {})
