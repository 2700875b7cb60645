"""A made-up suite of two tasks and two seeds, as a folder and as results."""

from pathlib import Path

import pytest
from records_by_hand import write_results

from benchmarks.analysis.frames import Results, load_results


@pytest.fixture(scope="session")
def suite_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    write_results(folder, tasks=("mcid", "rte"), seeds=(0, 1))
    return folder


@pytest.fixture(scope="session")
def results(suite_folder: Path) -> Results:
    return load_results(suite_folder)
