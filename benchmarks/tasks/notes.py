"""Notes: what a reader of the scores must know about how a task's rows came about."""

from collections.abc import Hashable, Mapping, Sequence

from benchmarks.tasks.base_spec import BaseTaskSpec, Cut


class Notes:
    """Sentences, in order."""

    def __init__(self) -> None:
        self._sentences: list[str] = []

    def add(self, sentence: str) -> None:
        """Add a sentence, if there is one."""
        if sentence:
            self._sentences.append(sentence.strip().rstrip(".") + ".")

    def add_dropped(self, which: str, dropped: int, rows: int, split: str) -> None:
        """Say how many rows were left out, if any were."""
        if dropped:
            self.add(f"Rows {which} are dropped ({dropped} of {rows} in {split})")

    def add_cut(self, split: str, rows: int, cut: Cut) -> None:
        """Say that a split was cut from train."""
        self.add(f"{split.capitalize()}: {rows} rows cut from train (seed {cut.seed})")

    def add_subsets(self, spec: BaseTaskSpec, sizes: Mapping[str, int]) -> None:
        """Say which splits have fewer rows than the complete data set."""
        incomplete = [name for name, rows in spec.complete_rows.items() if sizes.get(name, rows) < rows]
        for name in incomplete:
            self.add(f"{name.capitalize()} is a subset: {sizes[name]} of {spec.complete_rows[name]} rows")
        if incomplete:
            self.add(spec.subset_notes)

    def add_repeats(self, texts: Mapping[str, Sequence[Hashable]]) -> None:
        """Say how many texts stand in train too. They are left in place, as everybody's scores have them."""
        seen = set(texts["train"])
        for name in ("validation", "test"):
            repeats = len(seen & set(texts[name]))
            if repeats:
                self.add(f"{repeats} {name} text{' also occurs' if repeats == 1 else 's also occur'} in train")

    def __str__(self) -> str:
        return " ".join(self._sentences)
