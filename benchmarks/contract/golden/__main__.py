"""The command that writes golden cells, see :mod:`benchmarks.contract.golden`."""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.contract.faults import BrokenContractError
from benchmarks.contract.golden.computing import Golden, draws_alike
from benchmarks.contract.golden.files import COMMAND, all_methods, write_cell
from consistentee.errors import UserError


def main() -> int:
    """Write golden cells; return 2 if numbers moved without a version."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Write the golden cells of methods.")
    parser.add_argument("method", nargs="*", help="a registered name; all of them by default")
    names = parser.parse_args().method or all_methods()
    if not draws_alike():
        parser.error("golden cells are of an x86 CPU alone: dropout draws other numbers here")
    torch.set_num_threads(1)  # tiny models are slower with more
    refused = 0
    with tempfile.TemporaryDirectory() as folder:
        golden = Golden(Path(folder))
        for name in names:
            try:
                print(f"{name}: {write_cell(name, golden)}", flush=True)
            except (UserError, BrokenContractError) as error:
                print(error, file=sys.stderr)
                refused = 2
    return refused


if __name__ == "__main__":
    sys.exit(main())
