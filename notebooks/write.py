"""Execute notebooks and write them with their outputs: `tox -e write-notebooks`, or with names only these."""

import base64
import io
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent


def write(path: Path) -> None:
    """Write a notebook with its outputs, and nothing into it that differs from run to run unasked."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1800, record_timing=False, resources={"metadata": {"path": FOLDER}}).execute()
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        if cell.cell_type == "code":  # warnings and bars name folders of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for data in (output.data for output in cell.get("outputs", []) if "data" in output):
            if "image/png" in data:
                data["image/png"] = with_few_colours(data["image/png"])
    del notebook.metadata["language_info"]  # the version of Python
    nbformat.write(notebook, path)


def with_few_colours(png: str) -> str:
    """Return a figure in base64 with 128 colours: a third of the size."""
    written = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(128).save(written, "png", optimize=True)
    return base64.b64encode(written.getvalue()).decode()


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        print(name, flush=True)
        write(FOLDER / f"{name}.ipynb")
