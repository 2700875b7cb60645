"""The leaderboard in its forms: tables for a terminal, Markdown, CSV."""

from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.analysis.comparisons.headline import headline
from benchmarks.analysis.leaderboard.board import Leaderboard
from benchmarks.analysis.leaderboard.standings import Entry, Standing
from benchmarks.analysis.tables.equal_cost import equal_cost_tables
from benchmarks.analysis.tables.text import MISSING, TextTable, csv_of, to_markdown, to_rich
from consistentee.errors import unknown_name

if TYPE_CHECKING:
    from rich.console import Group


def leaderboard_tables(board: Leaderboard) -> list[TextTable]:
    """Return the table at equal cost, where there is the full model, and one table a standing."""
    at_equal_cost = [_of_settings(board, table) for table in equal_cost_tables(board.panels)[:1]]
    return [*at_equal_cost, *(_table(board, standing) for standing in board.standings)]


def _of_settings(board: Leaderboard, table: TextTable) -> TextTable:
    """Say in a table at equal cost where it is over several settings of a task: there each counts as a task would."""
    found = headline(board.panels)
    compared = [] if found is None else found.panels
    tasks = len({(panel.cells[0].record.task, panel.backbone) for panel in compared})
    if tasks == len(compared):
        return table
    return replace(
        table,
        title=f"Points against the full model at equal cost, mean of {len(compared)} settings of {tasks} "
        f"task{'s' if tasks > 1 else ''}",
        notes=(
            *table.notes,
            "Each setting counts by itself here, so a task that has several weighs more in means and ranks; by area, "
            "below, they are averaged first.",
        ),
    )


def _table(board: Leaderboard, standing: Standing) -> TextTable:
    title = "Leaderboard by layers"
    if standing.kind == "time":
        letter = next(letter for letter, machine in board.machines.items() if machine == standing.machine)
        title = f"Leaderboard by time at batch size 1, on machine {letter}"
    lines = [_cells(entry, standing) for entry in standing.entries]
    lines += [_cells(entry, standing, reference=True) for entry in standing.references]
    return TextTable(
        title=title,
        headings=("place", "method", "area % [95%]", "mean rank [95%]", "tasks", "runs", "from"),
        cells=tuple(lines),
        notes=tuple(_notes(board, standing)),
        words=("method", "from"),
    )


def _cells(entry: Entry, standing: Standing, *, reference: bool = False) -> tuple[str, ...]:
    mark = " (reference)" if reference else "" if entry.runs == standing.runs else " *"
    area = f"{100 * entry.area:.1f}"
    if entry.area_interval is not None:
        area += " [{:.1f}, {:.1f}]".format(*(100 * bound for bound in entry.area_interval))
    rank = MISSING if entry.rank is None else f"{entry.rank:.2f}"
    if entry.rank_interval is not None:
        rank += " [{:.2f}, {:.2f}]".format(*entry.rank_interval)
    return (
        "" if entry.place is None else str(entry.place),
        entry.method + mark,
        area,
        rank,
        f"{entry.tasks} of {standing.tasks}",
        f"{entry.runs} of {standing.runs}",
        entry.machines,
    )


def _notes(board: Leaderboard, standing: Standing) -> list[str]:
    cost = "from 1 layer to all" if standing.kind == "layers" else "from 1/L of the stock model's time to all of it"
    notes = [
        f"Area: mean test score over all budgets, {cost}, along the knobs that validation data chooses; "
        "0 is the most frequent class, 100 the full model at every budget.",
        "A run is a task, a backbone, a recipe and a seed; seeds are averaged first, then recipes of a task. "
        "Intervals: bootstrap over tasks; with few of them they are rough.",
    ]
    if any(entry.runs < standing.runs for entry in standing.entries):
        notes.append("* lacks runs, so it has no place: its area is over other runs than the others'.")
    notes.append("Machines: " + "; ".join(f"{letter}: {machine}" for letter, machine in board.machines.items()) + ".")
    return notes


def to_terminal(board: Leaderboard) -> "Group":
    """Return the leaderboard for a terminal; what was left out is said below it."""
    from rich.console import Group
    from rich.text import Text

    warnings = [Text(note, style="yellow") for note in board.notes]
    return Group(*map(to_rich, leaderboard_tables(board)), *warnings)


def to_text(board: Leaderboard, table_format: str) -> str:
    """Write the leaderboard as ``md`` or ``csv``. Raises UserError for another format."""
    writers = {"md": _to_markdown, "csv": _to_csv}
    if table_format not in writers:
        raise unknown_name("format of a leaderboard", table_format, writers)
    return writers[table_format](board)


def _to_markdown(board: Leaderboard) -> str:
    tables = leaderboard_tables(board)
    if not tables:
        return "\n".join(f"- {note}" for note in board.notes) + "\n"
    tables[-1] = replace(tables[-1], notes=(*tables[-1].notes, *board.notes))
    return to_markdown(tables)


def _to_csv(board: Leaderboard) -> str:
    lines: list[dict[str, object]] = [
        {
            "cost": standing.kind,
            "place": entry.place or "",
            "method": entry.method,
            "reference": entry in standing.references,
            "area": entry.area,
            **_bounds("area", entry.area_interval),
            "mean_rank": "" if entry.rank is None else entry.rank,
            **_bounds("mean_rank", entry.rank_interval),
            "tasks": entry.tasks,
            "tasks_in_all": standing.tasks,
            "runs": entry.runs,
            "runs_in_all": standing.runs,
            "machines": "; ".join(board.machines[letter] for letter in entry.machines.split()),
        }
        for standing in board.standings
        for entry in (*standing.entries, *standing.references)
    ]
    return csv_of(lines, _CSV_FIELDS)


_CSV_FIELDS = (
    *("cost", "place", "method", "reference", "area", "area_low", "area_high"),
    *("mean_rank", "mean_rank_low", "mean_rank_high", "tasks", "tasks_in_all", "runs", "runs_in_all", "machines"),
)


def _bounds(name: str, interval: tuple[float, float] | None) -> dict[str, object]:
    low, high = interval or ("", "")
    return {f"{name}_low": low, f"{name}_high": high}
