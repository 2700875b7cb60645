"""What a suite takes, in words: a few columns of a list, and one sentence."""

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.specs.base import BaseSuite
from benchmarks.specs.generation import GenerationSuite
from benchmarks.specs.suites import expand
from benchmarks.tasks.loader import is_on_hub, task_shipment
from consistentee.backbones.catalog import list_backbones
from consistentee.backbones.wheels import Shipment

UNKNOWN = "?"


@dataclass(frozen=True)
class SuiteCost:
    """What a suite takes: counted from its cells, and as its YAML says.

    Attributes:
        suite: the suite.
        cells: number of cells.
        downloads: what comes in packages.
        elsewhere: the tasks that do not: those that the hub has too, and those that it has not.
    """

    suite: BaseSuite
    cells: int
    downloads: tuple[Shipment, ...]
    elsewhere: tuple[tuple[str, ...], tuple[str, ...]]

    @classmethod
    def of(cls, suite: BaseSuite) -> "SuiteCost":
        """Count what a suite takes."""
        tasks = _tasks_of(suite)
        known = [list_backbones().get(name) for name in suite.backbones]
        sources = [*(backbone.source for backbone in known if backbone), *map(task_shipment, tasks)]
        unshipped = [task for task in tasks if task_shipment(task) is None]
        return cls(
            suite,
            len(expand(suite)),
            tuple(dict.fromkeys(source for source in sources if isinstance(source, Shipment))),
            (
                tuple(task for task in unshipped if is_on_hub(task)),
                tuple(task for task in unshipped if not is_on_hub(task)),
            ),
        )

    @property
    def time(self) -> str:
        """What it takes in time, on 2 CPU cores; ``~`` where it is reckoned from a part of the cells."""
        cost = self.suite.cost
        hours = cost.hours_of(self.cells)
        if hours is None:
            return UNKNOWN if cost.gpu_gb is None else f"GPU, {cost.gpu_gb} GB"
        return f"{'~' if self._is_reckoned else ''}{in_hours(hours)}"

    @property
    def _is_reckoned(self) -> bool:
        return self.suite.cost.of_cells not in (None, self.cells)

    @property
    def disk(self) -> str:
        """What it takes of the disk."""
        disk = self.suite.cost.disk_of(self.cells)
        return UNKNOWN if disk is None else f"{disk:.2g} GB" if disk < 10 else f"{disk:.0f} GB"

    @property
    def data(self) -> str:
        """Where its rows come from, in a word: the hardest to have decides."""
        hub, files = self.elsewhere
        return "--data" if files else "--data or hub" if hub else "in packages"

    def sentence(self) -> str:
        """Say all of it."""
        cost = self.suite.cost
        return "; ".join(part for part in (*self._parts(), cost.remarks) if part)

    def _parts(self) -> Iterable[str]:
        cost = self.suite.cost
        yield f"{self.cells:,} cells" if self.cells > 1 else "1 cell"
        if cost.hours is not None:
            where = f"2 CPU cores{f' ({cost.processor})' if cost.processor else ''}"
            whole = f"{self.time} in all, " if self._is_reckoned else ""
            part = f"{cost.of_cells} cells took {in_hours(cost.hours)} on" if self._is_reckoned else f"{self.time} on"
            yield f"{whole}{part} {where}"
        elif cost.gpu_gb is not None:
            yield f"made for a GPU with {cost.gpu_gb} GB and not run by this project: --dry-run estimates its time"
        yield f"{self.disk} of disk until artifacts/ is deleted" if self.disk != UNKNOWN else ""
        size = sum(shipment.size for shipment in self.downloads) / 2**20
        yield f"{size:.0f} MiB to download" if size else ""
        hub, files = self.elsewhere
        yield f"data of {', '.join(hub)} from --data or the hub" if hub else ""
        yield f"data of {', '.join(files)} from --data" if files else ""


def in_hours(hours: float) -> str:
    """Return a time as people say it: ``4 min``, ``1.5 h``."""
    return f"{60 * hours:.0f} min" if hours < 1 else f"{hours:.2g} h" if hours < 10 else f"{hours:.0f} h"


def _tasks_of(suite: BaseSuite) -> tuple[str, ...]:
    trained_on = (suite.train_on,) if isinstance(suite, GenerationSuite) and suite.train_on else ()
    return tuple(dict.fromkeys((*suite.tasks, *trained_on)))
