"""The cache of rows that leave at different layers: rows, ledger, windows, and that no hole goes unseen."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from consistentee.engine.step.cache import CacheHoleError, CacheWindow, KeyValueCache, Ledger, Rows

CPU = torch.device("cpu")
ALL = slice(None)


class FakeStepper:
    """What the cache asks of a stepper."""

    num_layers, kv_heads, head_dim = 3, 2, 4


def make_cache(rows: int = 3, columns: int = 6) -> KeyValueCache:
    return KeyValueCache(FakeStepper(), rows, columns, dtype=torch.float32, device=CPU)


def rows_of(*numbers: int) -> Rows:
    return Rows(np.array(numbers), CPU)


def window(cache: KeyValueCache, rows: tuple[int, ...], first: int, *span: int, **options) -> CacheWindow:
    return CacheWindow(cache, rows_of(*rows), first=first, begin=span[0], end=span[1], **options)


def random_keys(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, 2, columns, 4)


def note(ledger: Ledger, layer: int, rows, starts, end: int, *, read: bool = True) -> None:
    ledger.write(layer, rows, starts, end, then_read=read)


class TestLedger:
    def test_by_hand(self):
        ledger = Ledger(num_layers=2, rows=2)
        ledger.advance(3)
        for layer in (1, 2):
            note(ledger, layer, ALL, 0, 3)
        ledger.advance(1)
        note(ledger, 1, ALL, 3, 4)
        note(ledger, 2, np.array([1]), 3, 4)
        assert ledger.stored.tolist() == [[4, 4], [3, 4]]
        with pytest.raises(CacheHoleError, match="taken back"):
            ledger.rewind(3)
        ledger.keep(np.array([1]))
        ledger.rewind(2)
        assert ledger.lengths.tolist() == [2]
        assert ledger.stored.tolist() == [[2], [2]]

    def test_columns_cannot_be_left_out(self):
        ledger = Ledger(num_layers=1, rows=2)
        ledger.advance(4)
        with pytest.raises(CacheHoleError, match="columns from 1"):
            note(ledger, 1, ALL, 1, 4, read=False)

    def test_who_reads_owes_nothing(self):
        ledger = Ledger(num_layers=1, rows=2)
        ledger.advance(4)
        note(ledger, 1, ALL, 0, 3, read=False)
        with pytest.raises(CacheHoleError, match="layer 1: stored"):
            note(ledger, 1, np.array([0]), 3, 3)

    def test_layers_that_were_treated_differently_are_looked_at_one_by_one(self):
        ledger = Ledger(num_layers=3, rows=1)
        ledger.advance(1)
        note(ledger, 1, ALL, 0, 1)
        ledger.advance(1)
        note(ledger, 1, ALL, 1, 2)
        with pytest.raises(CacheHoleError, match="layer 2: columns from 1"):
            note(ledger, 2, ALL, 1, 2)
        note(ledger, 2, ALL, 0, 2)
        assert ledger.stored.tolist() == [[2], [2], [0]]

    @given(st.lists(st.lists(st.integers(1, 4), min_size=3, max_size=3), max_size=12))
    def test_a_layer_has_the_columns_up_to_the_last_that_reached_it(self, exits):
        """Rows that reach a layer pay what they owe it, and then read it."""
        ledger = Ledger(num_layers=4, rows=3)
        for number, of_step in enumerate(exits, start=1):
            ledger.advance(1)
            for layer in range(1, 5):
                reading = np.flatnonzero(np.array(of_step) >= layer)
                if len(reading):
                    note(ledger, layer, reading, ledger.stored[layer - 1, reading], number)
        for row in range(3):
            for layer in range(1, 5):
                reached = [step for step, of_step in enumerate(exits, start=1) if of_step[row] >= layer]
                assert ledger.stored[layer - 1, row] == max(reached, default=0)


def test_a_window_that_ends_before_the_newest_column_is_refused():
    cache = make_cache(rows=1)
    cache.advance(2)
    with pytest.raises(CacheHoleError, match="layer 1"):
        window(cache, (0,), 0, 0, 1).update(random_keys(1, 1), random_keys(1, 1), 0)
