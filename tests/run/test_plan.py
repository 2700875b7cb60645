"""The parts of a planned cell's key besides its settings."""

import shutil
from pathlib import Path

from small_suite import Bench

from benchmarks.run.plan import Inputs
from benchmarks.specs.suites import expand, load_suite
from benchmarks.store.file_hashes import FileHashes
from benchmarks.store.keys import differences
from benchmarks.store.records import KeyParts


def test_the_files_of_a_backbone_in_a_parameter_count(tmp_path, tiny_backbone):
    bench = Bench(tmp_path, tiny_backbone("bert"))
    companion = tmp_path / "companion"
    shutil.copytree(tiny_backbone("bert"), companion)

    def parts(weights: str) -> KeyParts:
        (companion / "model.safetensors").write_text(weights)
        entry = {"method": "cascade-bert", "parameters": {"companion_backbone": str(companion)}}
        (cell,) = expand(load_suite(bench.write(methods=[entry])))
        return Inputs(None, FileHashes(Path("nowhere"))).parts(cell)

    assert parts("first") == parts("first")
    assert differences(parts("first"), parts("second")) == [
        "the backbone is another (companion_backbone.files.model.safetensors)"
    ]
