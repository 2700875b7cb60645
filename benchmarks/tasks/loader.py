"""load_task: a task by name or YAML, from the first source that has its rows. Faults are named by file and line."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast

from benchmarks.specs.schema import TABLES, load_named, yaml_files
from benchmarks.tasks.cells import decoded, equal_lines, plain_cells, quoted_cells
from benchmarks.tasks.specs import (
    AnyTaskSpec,
    FileLayout,
    Files,
    HubLayout,
    Package,
    RowColumns,
    TaskSpec,
    TextTaskSpec,
    task_schema,
)
from benchmarks.tasks.splits import SPLITS, build_task, build_text_task
from consistentee.arguments import checked
from consistentee.backbones import hub as hub_access
from consistentee.backbones.wheels import PackageFile, Shipment, cache_dir, fetch
from consistentee.data.tasks import TaskData, TextTask
from consistentee.errors import UserError, reason_of
from consistentee.extras import check_extra
from consistentee.files import only_one, replacing

_FOLDER = Path(__file__).parent


class _UnavailableError(Exception):
    """A source does not have the task; the next one is tried."""


def list_tasks() -> dict[str, str]:
    """Return the one-line descriptions of the tasks, by name."""
    return {name: spec_of(name)[0].description for name in yaml_files(_FOLDER)}


def task_kind(name: str | Path) -> str:
    """Return the kind of a task of that name: classification or text. Errors as for load_task."""
    return spec_of(name)[0].kind


def task_shipment(name: str) -> Shipment | None:
    """Return what has to be fetched for a task of that name, None if no package ships it. Errors as for load_task."""
    spec, _ = spec_of(name)
    return _shipment(spec.name, spec.package) if spec.package else None


@checked
def load_task(name: str | Path, data_dir: Path | str | None = None) -> TaskData | TextTask:
    """Return a task with its three splits.

    Args:
        name: a task's name, or the path of a task YAML; files of such a YAML lie in its folder. Or the path of a table
            (CSV, TSV, JSON lines, Parquet) or a folder of ``datasets``: a classification, whose columns are guessed.
        data_dir: the folder with the layouts that the task YAMLs describe; by default CONSISTENTEE_DATA.

    The rows come from the data folder, else from the package that ships them, else from the Hugging Face hub.
    Raises UserError for an unknown name, a faulty YAML, a faulty row (named by file and line), and, listing what was
    tried, when no source has the task.
    """
    spec, own_folder = spec_of(name)
    data_dir = data_dir or os.environ.get("CONSISTENTEE_DATA")
    folders = [folder for folder in (own_folder, Path(data_dir).expanduser() if data_dir else None) if folder]
    sources = []
    if spec.files is not None:
        sources += [partial(_rows_of_folder, spec.files, folder / spec.files.folder) for folder in folders]
        if spec.package is not None:
            sources.append(partial(_rows_of_package, spec.name, spec.package, spec.files))
    if spec.hub is not None:
        sources.append(partial(_rows_of_hub, spec.hub))
    failures = [] if folders else ["no data directory was given"]
    for source in sources:
        try:
            rows = source()
        except _UnavailableError as failure:
            failures.append(str(failure))
            continue
        return build_text_task(spec, rows) if isinstance(spec, TextTaskSpec) else build_task(spec, rows)
    raise UserError(f"task {spec.name!r} cannot be loaded: {'; '.join(failures)}. {_remedy(spec)}")


def load_classification_task(name: str | Path, data_dir: Path | str | None = None) -> TaskData:
    """Return a classification or regression; arguments and errors as :func:`load_task`, also for another kind."""
    if task_kind(name) == "text":  # known from the YAML, so that nobody fetches rows that are of no use
        raise UserError(f"task {spec_of(name)[0].name!r} asks for texts: it is for suites of generation")
    return cast(TaskData, load_task(name, data_dir))


def load_text_task(name: str | Path, data_dir: Path | str | None = None) -> TextTask:
    """Return a task whose answers are texts; arguments and errors as :func:`load_task`, also for another kind."""
    if task_kind(name) != "text":
        raise UserError(f"task {spec_of(name)[0].name!r} asks for labels: it is for suites of classification")
    return cast(TextTask, load_task(name, data_dir))


def spec_of(name: str | Path) -> tuple[AnyTaskSpec, Path | None]:
    """Return a task's specification, and the folder of its files if they are a user's own."""
    known, path = yaml_files(_FOLDER), Path(name).expanduser()
    if str(name) not in known and (path.is_dir() or path.suffix.lower() in TABLES):
        return _spec_of_rows(path), path.parent
    return load_named("task", name, known, task_schema), None if str(name) in known else path.parent


def _spec_of_rows(path: Path) -> TaskSpec:
    """Return the task of a table of texts and labels, or of a saved data set; its columns are guessed.

    Raises UserError if it cannot be read, or several columns could be meant.
    """
    from benchmarks.tasks.data_files import find_columns, read_table  # pandas, which few tasks need

    hint = "say it in the YAML file of a task, see docs/tasks.md"
    splits: dict[str, str] = {"train": path.name}
    if path.is_dir():
        dataset = _saved_dataset(path)
        splits = {split: split for split in SPLITS if split in dataset}
        if "train" not in splits:
            raise UserError(f"{path} has no split 'train'; it has {', '.join(dataset)}; {hint}")
        names, layout = dataset["train"].column_names, {"format": "datasets", "folder": path.name}
    else:
        names, suffix = read_table(path).columns, path.suffix.lower().removeprefix(".")
        layout = {"format": {"ndjson": "jsonl"}.get(suffix, suffix)} | ({"quoting": "csv"} if suffix == "tsv" else {})
    found = find_columns(names, path, say=(hint, hint))
    files = Files.model_validate({**layout, **splits, "text": list(found.texts), "label": found.label})
    name = re.sub(r"[^\w.-]+", "-", path.stem).strip("-.") or "rows"
    fields = {"schema_version": 1, "name": name, "version": 1, "description": path.name, "notes": f"Columns: {found}."}
    return TaskSpec.model_validate({**fields, "metrics": ["accuracy"], "files": files})


def _remedy(spec: AnyTaskSpec) -> str:
    if spec.files is None:
        return "Check the connection to the hub"
    wanted = [file for file in (spec.files.train, spec.files.validation, spec.files.test) if file]
    folder = Path("DIR") / spec.files.folder
    return f"Give --data DIR (or set CONSISTENTEE_DATA), where {folder} holds {', '.join(wanted)}"


def _rows_of_folder(files: FileLayout, folder: Path) -> dict[str, list[Any]]:
    if files.format == "datasets":
        if not folder.is_dir():
            raise _UnavailableError(f"no folder {folder}")
        return rows_of_dataset(_saved_dataset(folder), files, str(folder))
    paths = {split: folder / file for split in SPLITS if (file := getattr(files, split)) is not None}
    missing = [str(path) for path in paths.values() if not path.is_file()]
    if missing:
        raise _UnavailableError(f"no file {' or '.join(missing)}")
    return {split: read_file(path, files) for split, path in paths.items()}


def _saved_dataset(folder: Path) -> Mapping[str, Any]:
    """Read a folder of ``save_to_disk``, or a copy of one of the hub: Parquet, CSV or JSON files. No code is run."""
    check_extra("bench", str(folder))
    import datasets

    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        found = datasets.load_from_disk(folder) if saved else datasets.load_dataset(str(folder))
    except Exception as error:  # the library raises many kinds, from a missing file to the schema
        raise UserError(f"{folder} cannot be read as a data set: {reason_of(error)}") from error
    return found if isinstance(found, dict) else {"train": found}


def _rows_of_package(name: str, package: Package, files: FileLayout) -> dict[str, list[Any]]:
    try:
        folder = fetch(_shipment(name, package))
    except UserError as error:
        raise _UnavailableError(str(error)) from error
    return _rows_of_folder(files, folder)


def _shipment(name: str, package: Package) -> Shipment:
    fields = package.model_dump(exclude={"folder", "inner", "shared_with"})
    return Shipment(
        name=package.shared_with or name, packages=(PackageFile(**fields),), folder=package.folder, inner=package.inner
    )


def _rows_of_hub(hub: HubLayout) -> dict[str, list[Any]]:
    """Return the rows of a hub data set; a copy is kept in the cache, so that later calls need no connection."""
    place = f"hub data set {hub.path}{f' ({hub.config})' if hub.config else ''}"
    try:
        check_extra("bench", place)
    except UserError as error:
        raise _UnavailableError(str(error)) from error
    import datasets

    copy = cache_dir() / "datasets" / "--".join([*hub.path.split("/"), hub.config or "default"])
    with only_one(copy):
        if not copy.is_dir():
            with replacing(copy) as new:
                _download(hub, place).save_to_disk(new)
    try:
        dataset = datasets.load_from_disk(copy)
    except Exception as error:  # whatever a damaged file makes of the library
        raise UserError(f"{copy} is damaged ({error}); remove this folder, and it is fetched again") from error
    return rows_of_dataset(dataset, hub, place)


def _download(hub: HubLayout, place: str) -> Any:
    import datasets
    from huggingface_hub import constants

    try:
        if not constants.HF_HUB_OFFLINE:  # the library looks into its own cache then; else it retries for minutes
            hub_access.ask("dataset_info", hub.path)
        return datasets.load_dataset(hub.path, hub.config)
    except hub_access.HubError as error:
        raise _UnavailableError(f"{place}: {error}") from error
    except Exception as error:  # the library raises many kinds, from connection to schema
        raise _UnavailableError(f"{place}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def rows_of_dataset(dataset: Mapping[str, Any], layout: HubLayout | FileLayout, place: str) -> dict[str, list[Any]]:
    """Return the rows of the splits that ``layout`` names of a ``DatasetDict``. UserError if one is missing."""
    names = {split: name for split in SPLITS if (name := getattr(layout, split)) is not None}
    missing = [name for name in names.values() if name not in dataset]
    if missing:
        raise UserError(f"{place} has no split {missing[0]!r}; it has {', '.join(dataset)}")
    return {split: read_hub_split(dataset[name], layout, f"{place} {name}") for split, name in names.items()}


Cells = tuple[str, dict[Any, Any]]
"""The place of a row, for messages, and its cells by column."""


def read_file(path: Path, files: FileLayout) -> list[Any]:
    """Return the rows of one file, as ``files.row`` makes them.

    Raises UserError for a file without rows, and for a faulty row (file and line).
    """
    if files.format == "parquet":
        rows = read_hub_split(_parquet(path), files, str(path))
    else:
        content = decoded(path)
        if not files.is_text_table:
            places = _json_cells(content, path, by_line=files.format == "jsonl")
        else:
            lines = quoted_cells(content, path, files.format) if files.quoted else plain_cells(content)
            places = _table_cells(lines, path, files)
        rows = [files.row(place, cells) for place, cells in places] if content.strip() else []
    if not rows:
        raise UserError(f"{path} holds no rows, so the split is empty")
    return rows


def _parquet(path: Path) -> Any:
    """Read a Parquet file as a data set, which knows the names of classes if the file has them."""
    check_extra("bench", str(path))
    import datasets
    import pyarrow.parquet as pq

    try:
        return datasets.Dataset(pq.read_table(path))
    except Exception as error:  # of a damaged file, or one of another format
        raise UserError(f"{path} cannot be read as Parquet: {reason_of(error)}") from error


def read_hub_split(dataset: Any, columns: RowColumns, place: str) -> list[Any]:
    """Return the rows of one split of a ``datasets`` data set, as ``columns.row`` makes them.

    Class numbers become class names first; the hub marks a label that is kept secret by -1, which becomes None.
    """
    wanted = columns.columns
    missing = [column for column in wanted if column not in dataset.column_names]
    if missing:
        raise UserError(f"{place} has no column {missing[0]!r}; it has {', '.join(dataset.column_names)}")
    class_names = {
        column: names for column in wanted if (names := getattr(dataset.features[column], "names", None)) is not None
    }
    rows = []
    for number, cells in enumerate(dataset.select_columns(wanted), start=1):
        for column, names in class_names.items():
            label = cells[column]
            cells[column] = names[label] if label is not None and 0 <= label < len(names) else None
        rows.append(columns.row(f"{place}:{number}", cells))
    return rows


def _json_cells(content: str, path: Path, *, by_line: bool) -> Iterator[Cells]:
    rows = content.removesuffix("\n").split("\n") if by_line else _parsed(content, str(path))
    if not isinstance(rows, list):
        raise UserError(f"{path}: not a JSON list")
    for number, row in enumerate(rows, start=1):
        place = f"{path}:{number}" if by_line else f"{path}, row {number}"
        cells = _parsed(row, place) if by_line else row
        if not isinstance(cells, dict):
            raise UserError(f"{place}: a row must be a JSON object")
        yield place, cells


def _parsed(content: str, place: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # names line and column
        raise UserError(f"{place}: not JSON ({error})") from error


def _table_cells(lines: Iterable[tuple[int, list[str]]], path: Path, files: FileLayout) -> Iterator[Cells]:
    rows = equal_lines(lines, path)
    keys: list[str] = []
    if files.header:
        _, keys = next(rows)
        for column in files.columns:
            if keys.count(str(column)) != 1:
                fault = "no column" if column not in keys else "more than one column"
                raise UserError(f"{path}:1: {fault} {column!r}; the header has {', '.join(keys)}")
    for number, cells in rows:
        yield f"{path}:{number}", dict(zip(keys or count(1), cells, strict=False))
