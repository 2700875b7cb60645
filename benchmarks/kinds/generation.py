"""Generation: knobs are replayed on validation prompts, test prompts are decoded and scored; decoding is timed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.kinds.kind import CellRows, Kind
from benchmarks.specs.base import DecodingTimingSpec, GenerationCellSpec, GenerationSuite, Regrouped, TimingSpec
from benchmarks.store.hashes import hash_model
from benchmarks.tasks.loader import load_text_task
from consistentee.backbones.catalog import resolve_decoder
from consistentee.data.tasks import TextTask

if TYPE_CHECKING:
    from benchmarks.kinds.text_evaluation import TextEvaluation
    from benchmarks.measure.clock import BatchTimes
    from consistentee.methods.token_methods import TokenMethod
    from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder


class Generation(Kind):
    """Cells of generation."""

    suite = GenerationSuite
    model_file = "multi_exit_decoder.json"
    usual_backbone = "smollm2-135m"
    stock_label = "stock generate"
    full_method = "token-full"

    def load_rows(self, spec: GenerationCellSpec, data_dir: Path | None) -> CellRows[TextTask]:
        task = load_text_task(spec.task, data_dir)
        training = task if spec.train_on == spec.task else load_text_task(spec.train_on, data_dir)
        return CellRows(task.capped(validation=spec.validation_prompts, test=spec.test_prompts), training)

    def backbone_identity(self, name: str) -> dict[str, object]:
        return {"files": hash_model(Path(resolve_decoder(name)))}

    def build_model(self, spec: GenerationCellSpec, rows: CellRows[TextTask]) -> "MultiExitDecoder":
        from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder

        return MultiExitDecoder.from_backbone(
            spec.backbone,
            exit_layers=spec.exits.layers,
            adapter=spec.exits.adapter,
            rank=spec.exits.rank,
            closing_layers=spec.exits.closing_layers,
            chat_template=spec.chat_template,
            seed=spec.seed,
        )

    def evaluate(
        self,
        spec: GenerationCellSpec,
        rows: CellRows[TextTask],
        method: "TokenMethod",
        model: "MultiExitDecoder",
        store: Path | None,
    ) -> "TextEvaluation":
        from benchmarks.kinds.text_evaluation import TextEvaluation

        return TextEvaluation(spec, rows, method, model, store)

    def load_model(self, folder: Path, loaded: Sequence["MultiExitDecoder"] = ()) -> "MultiExitDecoder":
        """Load a trained decoder; models with the same backbone weights share them, since all are in memory at once."""
        from consistentee.backbones.decoders import decoder_stepper_for
        from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder

        model = MultiExitDecoder.from_pretrained(folder)
        same = [other for other in loaded if other.description.backbone_hash == model.description.backbone_hash]
        if same:
            model.backbone, model.stepper = same[0].backbone, decoder_stepper_for(same[0].backbone)
        return model

    def stock_model(
        self, specs: Sequence[GenerationCellSpec], models: Sequence["MultiExitDecoder"]
    ) -> "MultiExitDecoder":
        """Choose the full model, or else the first.

        Weights change the time of a token only above batch 1, when a text that ends leaves its batch a row short.
        """
        full = [model for spec, model in zip(specs, models, strict=True) if spec.method == self.full_method]
        return next(iter([*full, *models]))

    def timed_rows(
        self, model: "MultiExitDecoder", spec: GenerationCellSpec, rows: CellRows[TextTask], at_most: int
    ) -> Sequence[str]:
        from benchmarks.kinds.text_evaluation import fitted

        return fitted(model, spec, rows, "test")[0].prompts[:at_most]

    def timing_options(
        self, spec: GenerationCellSpec, rows: CellRows[TextTask], protocol: DecodingTimingSpec
    ) -> dict[str, int]:
        return {"max_new_tokens": protocol.max_new_tokens or spec.max_new_tokens or rows.task.max_new_tokens}

    def time_stock(self, model: "MultiExitDecoder", **options: int) -> Callable[[Sequence[str]], "BatchTimes"]:
        """Time the stock model's greedy ``generate``, a whole batch of prompts padded on the left at once."""
        from benchmarks.measure.clock import stock_times

        return lambda batch: stock_times(model, model.encode(batch), options["max_new_tokens"])

    def regroupings(self, method: "TokenMethod", protocol: TimingSpec) -> Sequence[Regrouped]:
        """List the settings of the protocol, for methods that decode in the common way."""
        return () if method.has_own_loop else protocol.regrouped

    def time_method(
        self, method: "TokenMethod", model: "MultiExitDecoder", knob: float, **options: int
    ) -> Callable[[Sequence[str]], "BatchTimes"]:
        """Time a batch of prompts in step, or one of prompts in flight.

        The latter are read in the order of their length, the default of ``generate``: which prompts are read together
        is part of regrouping, and reading is timed apart.
        """
        from benchmarks.measure.clock import BatchTimes

        def run(batch: Sequence[str]) -> BatchTimes:
            written = method.generate(model, batch, knob, **{"batch_size": len(batch)} | options)
            return BatchTimes(
                seconds=written.decode_seconds,
                units=written.decoded_tokens,
                layer_calls=float(written.layer_calls),
                prefill_seconds=written.prefill_seconds,
                completed=written.completed_seconds or None,
            )

        return run
