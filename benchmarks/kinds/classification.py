"""Classification: every knob is replayed on two splits; batches of tokenised rows are timed up to their answers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.kinds.kind import CellRows, Kind
from benchmarks.specs.base import CellSpec, SuiteSpec
from benchmarks.store.hashes import hash_model
from benchmarks.tasks.loader import load_classification_task
from consistentee.backbones.catalog import resolve
from consistentee.data.tasks import TaskData

if TYPE_CHECKING:
    from benchmarks.kinds.instance_evaluation import InstanceEvaluation
    from benchmarks.measure.clock import BatchTimes
    from consistentee.data.encoding import Encoding
    from consistentee.methods.method import Method
    from consistentee.models.encoder import MultiExitModel


class Classification(Kind):
    """Cells of classification."""

    suite = SuiteSpec
    model_file = "multi_exit.json"
    usual_backbone = "minilm-l6"
    stock_label = "stock model"
    full_method = "full"

    def load_rows(self, spec: CellSpec, data_dir: Path | None) -> CellRows[TaskData]:
        task = load_classification_task(spec.task, data_dir)
        task = task.capped(validation=spec.validation_rows, test=spec.test_rows)
        return CellRows(task, task)

    def backbone_identity(self, name: str) -> dict[str, object]:
        found = resolve(name)
        return {"pooling": found.pooling, "pooler": found.pooler, "files": hash_model(Path(found.path))}

    def build_model(self, spec: CellSpec, rows: CellRows[TaskData]) -> "MultiExitModel":
        from consistentee.models.encoder import MultiExitModel

        classes, names = rows.task.num_labels, rows.task.label_names
        return MultiExitModel.from_backbone(spec.backbone, classes, label_names=names, seed=spec.seed)

    def evaluate(
        self, spec: CellSpec, rows: CellRows[TaskData], method: "Method", model: "MultiExitModel", store: Path | None
    ) -> "InstanceEvaluation":
        from benchmarks.kinds.instance_evaluation import InstanceEvaluation

        return InstanceEvaluation(spec, rows.task, method, model, store)

    def load_model(self, folder: Path, loaded: Sequence["MultiExitModel"] = ()) -> "MultiExitModel":
        from consistentee.models.encoder import MultiExitModel

        return MultiExitModel.from_pretrained(folder)

    def stock_model(self, specs: Sequence[CellSpec], models: Sequence["MultiExitModel"]) -> "MultiExitModel":
        """Choose the full model, or the first with a linear last classifier, since other classifiers cost more.

        A model without some of the stock layers is never chosen.
        """
        from consistentee.models.classifiers import LinearClassifier
        from consistentee.models.encoder import MultiExitModel

        full = [model for spec, model in zip(specs, models, strict=True) if spec.method == self.full_method]
        whole = [model for model in models if model.num_layers >= model.stock_layers]
        linear = [model for model in whole if isinstance(model.classifier(model.num_layers), LinearClassifier)]
        if found := [*full, *linear, *whole]:
            return found[0]
        return MultiExitModel.from_backbone(specs[0].backbone, models[0].num_labels).to(models[0].device)

    def timed_rows(
        self, model: "MultiExitModel", spec: CellSpec, rows: CellRows[TaskData], at_most: int
    ) -> Sequence["Encoding"]:
        return model.tokenize(rows.task.test.texts[:at_most], spec.recipe.max_length)

    def time_stock(self, model: "MultiExitModel", **options: int) -> Callable[[Sequence["Encoding"]], "BatchTimes"]:
        from benchmarks.measure.clock import BatchTimes, timed
        from consistentee.engine.classify import stock_encoded

        def run(batch: Sequence["Encoding"]) -> BatchTimes:
            seconds, _ = timed(lambda rows: stock_encoded(model, rows, batch_size=len(rows)), batch, model.device)
            return BatchTimes(seconds, len(batch), float(model.stock_layers * len(batch)))

        return run

    def time_method(
        self, method: "Method", model: "MultiExitModel", knob: float, **options: int
    ) -> Callable[[Sequence["Encoding"]], "BatchTimes"]:
        from benchmarks.measure.clock import BatchTimes, timed
        from consistentee.engine.classify import classify_encoded

        rule = method.rule(model, knob)

        def run(batch: Sequence["Encoding"]) -> BatchTimes:
            flight: dict[str, Any] = {"batch_size": len(batch)} | options
            seconds, answers = timed(lambda rows: classify_encoded(model, rows, rule, **flight), batch, model.device)
            return BatchTimes(seconds, len(batch), float(sum(answers.layers_run.tolist())))

        return run
