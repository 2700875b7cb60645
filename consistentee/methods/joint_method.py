"""JointMethod: the base of methods that put a rule on the jointly trained model."""

from dataclasses import dataclass

from consistentee.data.instances import TaskData
from consistentee.methods.method import Method
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.training.recipe import Recipe
from consistentee.training.stages import train_jointly


@dataclass(frozen=True)
class JointMethod(Method):
    """Train backbone and all classifiers together, on ``sum_t t * CE_t / sum_t t``, in a stage that methods share."""

    def fit(self, model: MultiExitModel, task: TaskData, recipe: Recipe) -> MultiExitModel:
        """Train backbone and all classifiers on the depth-weighted loss."""
        self.check_task(task)
        train_jointly(model, task, recipe)
        return model
