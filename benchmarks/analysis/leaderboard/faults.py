"""Records that are damaged in ways that their schemas cannot see."""

import numpy as np

from benchmarks.store.records import CellRecord, TimingRecord


def record_fault(record: CellRecord) -> str | None:
    """Say what makes a record unusable that its schema cannot see, or return None."""
    points = [*record.curve_test, *record.curve_validation]
    points += [side for point in record.operating_points for side in (point.test, point.validation)]
    if not record.curve_test or len(record.curve_test) != len(record.curve_validation):
        return "its curves are empty or of different lengths"
    if not record.operating_points:
        return "it has no operating point"
    for point in points:
        if not np.isfinite(point.scores.get(record.metric, np.nan)):
            return f"no finite {record.metric} at the knob {point.knob:g}"
        histogram = point.exit_histogram
        if len(histogram) < record.num_layers or min(histogram) < 0 or sum(histogram) == 0:
            return f"the exit histogram at the knob {point.knob:g} does not hold {record.num_layers} layers"
    return None


def timing_fault(timing: TimingRecord) -> str | None:
    """Say what makes a timing unusable that its schema cannot see, or return None."""
    for contender in timing.contenders:
        for sample in contender.samples:
            seconds = sample.seconds_per_round
            if len(seconds) != timing.rounds or len(sample.seconds_per_batch) != timing.rounds:
                return f"{contender.label} lacks rounds"
            batches = -(-sample.rows // max(sample.batch_size, 1))
            if batches < 1 or any(len(one_round) != batches for one_round in sample.seconds_per_batch):
                return f"{contender.label} lacks batches"
            if not all(np.isfinite(value) and value > 0 for value in seconds):
                return f"{contender.label} has times that are none"
    return None
