"""The rows of a cell of either kind."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from consistentee.data.instances import TaskData
from consistentee.data.prompts import TextTask
from consistentee.training.recipe import RecipeSettings, TokenRecipeSettings

TaskT = TypeVar("TaskT", bound=TaskData | TextTask)


@dataclass(frozen=True)
class CellRows(Generic[TaskT]):
    """The rows of a cell.

    Attributes:
        task: whose validation and test rows are scored, capped.
        training: whose training rows are trained on; the recipe caps them.
    """

    task: TaskT
    training: TaskT

    @property
    def tasks(self) -> list[TaskT]:
        """The different ones of the two."""
        return [self.task] if self.training is self.task else [self.task, self.training]

    def trained_on(self, recipe: RecipeSettings | TokenRecipeSettings) -> int:
        """Return how many of the training rows a recipe takes."""
        rows = len(self.training.train)
        return min(rows, recipe.max_rows or rows)

    def fingerprint(self) -> str:
        """Return a hash of all of them."""
        return " ".join(task.fingerprint() for task in self.tasks)
