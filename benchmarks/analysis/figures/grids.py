"""A grid of axes, one a panel, in the look of all figures."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FONT_SCALE = 1.0


def panel_grid(panels: int, *, columns: int, width: float, height: float) -> "tuple[Figure, list[Axes]]":
    """Return a figure and one axes a panel, row by row; axes that are left over are hidden.

    Args:
        panels: number of panels.
        columns: at most so many in a row.
        width, height: of one panel, in inches.
    """
    import seaborn
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(panels, columns)
    rows = -(-panels // columns)
    with seaborn.axes_style("ticks"), seaborn.plotting_context("paper", font_scale=FONT_SCALE):
        figure = Figure(
            figsize=(max(width * columns, 4.6), height * rows + 0.2),
            layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06),
        )
        grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[panels:]:
        axes.set_visible(False)
    return figure, grid[:panels]
