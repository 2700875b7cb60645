"""Classification: replay the whole curve, choose knobs on validation rows, check them live on test rows."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.kinds.kind import CellRows, Kind, TrainedCell
from benchmarks.specs.base import CellSpec, Regrouped, SuiteSpec
from benchmarks.store.hashes import hash_model
from benchmarks.store.records import CellRecord
from benchmarks.store.timings import TimingSamples
from benchmarks.tasks.loader import load_classification_task
from consistentee.backbones.catalog import resolve
from consistentee.data.instances import TaskData

if TYPE_CHECKING:
    from benchmarks.kinds.instance_evaluation import InstanceEvaluation
    from consistentee.data.encoding import Encoding
    from consistentee.methods.method import Method
    from consistentee.models.encoder.multi_exit_model import MultiExitModel


class BatchTime(NamedTuple):
    """The seconds of one batch, and the layers that each of its rows ran."""

    seconds: float
    layers: list[float]


class Classification(Kind[CellSpec, TaskData, "Method", "MultiExitModel", "Encoding", BatchTime]):
    """Cells of classification; a batch of tokenised rows is timed from collation to the answers."""

    suite = SuiteSpec
    record = CellRecord
    model_file = "multi_exit.json"
    usual_backbone = "minilm-l6"
    stock_label = "stock model"

    def load_rows(self, spec: CellSpec, data_dir: Path | None) -> CellRows[TaskData]:
        task = load_classification_task(spec.task, data_dir)
        task = task.capped(validation=spec.validation_rows, test=spec.test_rows)
        return CellRows(task, task)

    def backbone_identity(self, name: str) -> dict[str, object]:
        found = resolve(name)
        return {"pooling": found.pooling, "pooler": found.pooler, "files": hash_model(Path(found.path))}

    def build_model(self, spec: CellSpec, rows: CellRows[TaskData]) -> "MultiExitModel":
        from consistentee.models.encoder.multi_exit_model import MultiExitModel

        task = rows.task
        return MultiExitModel.from_backbone(
            spec.backbone, task.num_labels, label_names=task.label_names, seed=spec.seed
        )

    def choose(self, cell: TrainedCell[CellSpec, TaskData, "Method", "MultiExitModel"]) -> "InstanceEvaluation":
        from benchmarks.kinds.instance_evaluation import InstanceEvaluation

        return InstanceEvaluation(cell)

    def load_model(self, folder: Path, loaded: Sequence["MultiExitModel"] = ()) -> "MultiExitModel":
        from consistentee.models.encoder.multi_exit_model import MultiExitModel

        return MultiExitModel.from_pretrained(folder)

    def stock_model(self, specs: Sequence[CellSpec], models: Sequence["MultiExitModel"]) -> "MultiExitModel":
        """Choose the full model, or the first with a linear last classifier, since other classifiers cost more.

        A model without some of the stock layers is never chosen.
        """
        from consistentee.models.classifiers import LinearClassifier
        from consistentee.models.encoder.multi_exit_model import MultiExitModel

        full = [model for spec, model in zip(specs, models, strict=True) if spec.method == "full"]
        whole = [model for model in models if model.num_layers >= model.stock_layers]
        linear = [model for model in whole if isinstance(model.classifier(model.num_layers), LinearClassifier)]
        if found := [*full, *linear, *whole]:
            return found[0]
        return MultiExitModel.from_backbone(specs[0].backbone, models[0].num_labels).to(models[0].device)

    def timed_rows(
        self, model: "MultiExitModel", spec: CellSpec, rows: CellRows[TaskData], at_most: int
    ) -> Sequence["Encoding"]:
        return model.tokenize(rows.task.test.texts[:at_most])

    def time_stock(self, model: "MultiExitModel", **options: int) -> Callable[[Sequence["Encoding"]], BatchTime]:
        from benchmarks.measure.clock import timed
        from consistentee.engine.classify import stock_encoded

        def run(batch: Sequence["Encoding"]) -> BatchTime:
            seconds, _ = timed(lambda rows: stock_encoded(model, rows, batch_size=len(rows)), batch, model.device)
            return BatchTime(seconds, [float(model.stock_layers)] * len(batch))

        return run

    def time_method(
        self, method: "Method", model: "MultiExitModel", knob: float, regrouped: Regrouped | None = None, **options: int
    ) -> Callable[[Sequence["Encoding"]], BatchTime]:
        from benchmarks.measure.clock import timed
        from consistentee.engine.classify import classify_encoded

        rule, flight = method.rule(model, knob), {} if regrouped is None else regrouped.model_dump()

        def run(batch: Sequence["Encoding"]) -> BatchTime:
            options = {"batch_size": len(batch)} | flight
            seconds, answers = timed(lambda rows: classify_encoded(model, rows, rule, **options), batch, model.device)
            return BatchTime(seconds, answers.layers_run.tolist())

        return run

    def average_layers(self, batches: Sequence[BatchTime]) -> float:
        layers = [layers for batch in batches for layers in batch.layers]
        return sum(layers) / len(layers)

    def samples(
        self, batch_size: int, rows: int, rounds: Sequence[Sequence[BatchTime]], in_flight: int | None = None
    ) -> TimingSamples:
        seconds = [[batch.seconds for batch in batches] for batches in rounds]
        return TimingSamples(
            batch_size=batch_size,
            rows=rows,
            seconds_per_round=list(map(sum, seconds)),
            seconds_per_batch=seconds,
            in_flight=in_flight,
        )
