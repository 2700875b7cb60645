"""The printed page: how wide figures are, how large their letters, how a page of panels is laid out, what is written.

Figures fit a paper as they are: a column or the full width of the text, letters of 8 points, not to be scaled.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from benchmarks.measure.garbage import garbage_collection_off
from consistentee.errors import unknown_name
from consistentee.files import replacing

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_P = ParamSpec("_P")
_T = TypeVar("_T")

COLUMN = 3.3
"""Width of a column, in inches."""
TEXT = 7.0
"""Width of the text, which is that of two columns."""
MOST_PANELS = 10
"""A figure has no more panels; of more tasks there are several figures."""
ACROSS = 5
"""Panels, or entries of the legend, in a row of a page's width."""
_DOTS_PER_INCH = 300
_DOTS_ON_SCREEN = 150  # in a notebook

_STYLE: dict[str, object] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: figures are alike on all machines
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "legend.columnspacing": 1.2,
    "legend.labelspacing": 0.35,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.edgecolor": "0.25",
    "axes.titlepad": 3,
    "axes.labelpad": 2,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.pad": 2,
    "ytick.major.pad": 2,
    "grid.color": "0.92",
    "grid.linewidth": 0.5,
    "lines.solid_capstyle": "round",
    "pdf.fonttype": 42,  # letters stay letters, embedded as TrueType: what journals ask for
    "svg.fonttype": "path",  # letters are outlines: alike where the font is not installed
    "svg.hashsalt": "consistentee",
}

_PALETTE = 256
"""So many colours has a PNG at most."""
_UNDATED: dict[str, dict[str, str | None]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
"""Format -> what is not written into a file, so that the same figure is the same file."""
_DESCRIPTION = {"png": "Description", "pdf": "Subject", "svg": "Description"}
"""Format -> the name of the words that say what is shown."""


def printed(draw: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a function draw with the letters and lines of the printed page."""

    @wraps(draw)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        from matplotlib import rc_context

        with rc_context(_STYLE), garbage_collection_off():  # artists are many and stay: looking takes a tenth
            return draw(*args, **kwargs)

    return drawn


def panel_grid(
    panels: int, *, across: int = ACROSS, width: float = TEXT, height: float, legend_rows: int = 0
) -> "tuple[Figure, list[Axes]]":
    """Return a figure and one axes a panel, row by row, rows of like length; axes that are left over are hidden.

    Args:
        panels: number of panels.
        across: at most so many in a row.
        width: of the figure, in inches.
        height: of a row of panels, in inches.
        legend_rows: lines of the legend below.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = -(-panels // across)
    columns = -(-panels // rows)
    figure = Figure(
        figsize=(width, height * rows + 0.15 * legend_rows),
        dpi=_DOTS_ON_SCREEN,
        layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02),
    )
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[panels:]:
        axes.set_visible(False)
    return figure, grid[:panels]


def is_leftmost(axes: "Axes") -> bool:
    """Say whether a panel is the first of its row, where what all panels have in common is written once."""
    place = axes.get_subplotspec()
    return place is None or place.is_first_col()


def label_below(grid: "Sequence[Axes]", words: str) -> None:
    """Label the horizontal axis of the panels that have no panel below them."""
    places = {axes: place for axes in grid if (place := axes.get_subplotspec()) is not None}
    lowest = {place.colspan.start: axes for axes, place in places.items()}  # panels come row by row
    for axes in lowest.values():
        axes.set_xlabel(words)


def legend_rows(handles: "Sequence[Artist]", across: int = ACROSS) -> int:
    """Return how many lines a legend takes."""
    return -(-len(handles) // across)


def add_legend(figure: "Figure", handles: "Sequence[Artist]", across: int = ACROSS) -> None:
    """Write the one legend of a figure below its panels."""
    columns = -(-len(handles) // legend_rows(handles, across))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def pages_of(items: Sequence[_T], at_most: int = MOST_PANELS) -> list[Sequence[_T]]:
    """Cut what is one panel each into pages of like length."""
    pages = -(-len(items) // at_most)
    length = -(-len(items) // max(pages, 1))
    return [items[start : start + length] for start in range(0, len(items), length)] if items else []


def save_figure(
    drawn: "Figure", out_dir: Path, name: str, kinds: Sequence[str] = ("png",), *, title: str = "", shows: str = ""
) -> list[Path]:
    """Write a figure in some formats, atomically, the same bytes for the same figure.

    ``title`` and ``shows`` are kept inside of the files, for whoever writes a caption or cannot see them. Raises
    UserError for a format that is none of ``png`` (300 dots an inch), ``pdf`` and ``svg``.
    """
    from matplotlib import rc_context

    for kind in kinds:
        if kind not in _DESCRIPTION:
            raise unknown_name("figure format", kind, _DESCRIPTION)
    paths = [out_dir / f"{name}.{kind}" for kind in kinds]
    with rc_context(_STYLE), garbage_collection_off():
        layout = drawn.get_layout_engine()
        if layout is not None:  # places are found once, without drawing, and are the same for all files
            layout.execute(drawn)
            drawn.set_layout_engine(None)
        for path, kind in zip(paths, kinds, strict=True):
            with replacing(path) as temporary:
                words = {"Title": title, _DESCRIPTION[kind]: shows} if title else {}
                if kind == "png":
                    _save_png(drawn, temporary, words)
                else:
                    drawn.savefig(temporary, format=kind, dpi=_DOTS_PER_INCH, metadata=_UNDATED[kind] | words)
    return paths


def _save_png(drawn: "Figure", path: Path, words: Mapping[str, str]) -> None:
    """Write a figure's dots with a palette: what is drawn in a few colours takes a third of what all colours take."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    kept, dots = PngInfo(), BytesIO()
    for name, value in words.items():
        kept.add_text(name, value)
    drawn.savefig(dots, format="png", dpi=_DOTS_PER_INCH)
    image = Image.open(dots).convert("RGB").quantize(_PALETTE, dither=Image.Dither.NONE)
    image.save(path, format="png", optimize=True, dpi=(_DOTS_PER_INCH, _DOTS_PER_INCH), pnginfo=kept)
