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


@pytest.mark.parametrize("numbers", [(0, 1, 2, 3, 4), (1, 2), (3,), (0, 2, 4)])
def test_rows_are_taken_and_written_back(numbers):
    tensor = torch.arange(30.0).view(5, 3, 2)
    rows = rows_of(*numbers)
    assert torch.equal(rows.of(tensor), tensor[list(numbers)])
    assert torch.equal(rows.columns_of(tensor, 0, 1), tensor[list(numbers), :, :1])
    expected = tensor.clone()
    expected[list(numbers)] = -1
    rows.put(tensor, torch.full((len(numbers), 3, 2), -1.0))
    assert torch.equal(tensor, expected)
    assert rows.take([len(rows) - 1]).numbers.tolist() == [numbers[-1]]


def test_neighbours_are_a_view():
    tensor = torch.zeros(5, 3, 2)
    rows_of(1, 2, 3).columns_of(tensor, 0, 2).fill_(1)
    assert tensor[1:4, :, :2].all()
    rows_of(1, 3).columns_of(tensor, 0, 2).fill_(5)
    assert (tensor <= 1).all(), "a copy"


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


def test_a_window_returns_all_that_its_rows_attend_to():
    cache = make_cache()
    prompt_keys, prompt_values = random_keys(3, 4), random_keys(3, 4)
    cache.advance(4)
    keys, values = window(cache, (0, 1, 2), 0, 0, 4).update(prompt_keys, prompt_values, 0)
    assert torch.equal(keys, prompt_keys)
    assert torch.equal(values, prompt_values)
    new = random_keys(2, 1)
    cache.advance(1)
    note(cache.ledger, 1, np.array([1]), 4, 5, read=False)
    keys, values = window(cache, (0, 2), 1, 4, 5).update(new, -new, 0)
    assert torch.equal(keys, torch.cat([prompt_keys[[0, 2], :, 1:], new], dim=2))
    assert torch.equal(values, torch.cat([prompt_values[[0, 2], :, 1:], -new], dim=2))


def test_a_window_writes_no_column_that_a_row_has_already():
    cache = make_cache(rows=2)
    old, new = random_keys(2, 3), random_keys(2, 2)
    cache.advance(3)
    note(cache.ledger, 1, np.array([0]), 0, 3, read=False)
    note(cache.ledger, 1, np.array([1]), 0, 2, read=False)
    cache.keys[0][:, :, :3] = old
    cache.advance(1)
    opened = window(cache, (0, 1), 0, 2, 4, starts=np.array([3, 2]))
    keys, _ = opened.update(new, new, 0)
    assert torch.equal(keys[0], torch.cat([old[0], new[0, :, 1:]], dim=1))
    assert torch.equal(keys[1], torch.cat([old[1, :, :2], new[1]], dim=1))


def test_a_window_that_ends_before_the_newest_column_is_refused():
    cache = make_cache(rows=1)
    cache.advance(2)
    with pytest.raises(CacheHoleError, match="layer 1"):
        window(cache, (0,), 0, 0, 1).update(random_keys(1, 1), random_keys(1, 1), 0)


def test_owed_columns_are_filled_row_by_row():
    cache = make_cache()
    cache.advance(4)
    for row, stored in enumerate((4, 2, 3)):
        note(cache.ledger, 2, np.array([row]), 0, stored, read=False)
    owed = cache.owed(2, rows_of(0, 1, 2), np.full(3, 4))
    assert owed is not None
    assert owed.row_index.tolist() == [1, 1, 2]
    assert owed.column_index.tolist() == [2, 3, 3]
    keys, values = random_keys(1, 3), random_keys(1, 3)
    cache.fill(2, owed, keys, values)
    assert torch.equal(cache.keys[1][1, :, 2:4], keys[0, :, :2])
    assert torch.equal(cache.values[1][2, :, 3], values[0, :, 2])
    assert cache.owed(2, rows_of(0, 1, 2), np.full(3, 4)) is None
    assert cache.ledger.stored[1].tolist() == [4, 4, 4]


def test_padding_is_written_as_zeros():
    cache = make_cache()
    for tensor in (*cache.keys, *cache.values):
        tensor.fill_(torch.nan)
    cache.advance(4)
    cache.pad(rows_of(0, 2), 3)
    for layer, tensors in enumerate(zip(cache.keys, cache.values, strict=True), start=1):
        assert cache.ledger.stored[layer - 1].tolist() == [3, 0, 3]
        for tensor in tensors:
            assert (tensor[[0, 2], :, :3] == 0).all()
            assert tensor[1].isnan().all()
    cache.pad(rows_of(1), 0)
    assert cache.ledger.stored[0].tolist() == [3, 0, 3]


def test_rows_that_are_kept_keep_their_columns():
    cache = make_cache()
    keys, values = random_keys(3, 2), random_keys(3, 2)
    cache.advance(2)
    for layer in range(3):
        window(cache, (0, 1, 2), 0, 0, 2).update(keys, values, layer)
    cache.keep(rows_of(0, 2))
    cache.advance(1)
    new = random_keys(2, 1)
    read, _ = window(cache, (0, 1), 0, 2, 3).update(new, new, 2)
    assert torch.equal(read, torch.cat([keys[[0, 2]], new], dim=2))


def test_columns_that_are_taken_back_are_written_again():
    cache = make_cache(rows=1)
    first, second = random_keys(1, 4), random_keys(1, 2)
    cache.advance(4)
    for layer in range(3):
        window(cache, (0,), 0, 0, 4).update(first, first, layer)
    cache.rewind(3)
    cache.advance(2)
    read, _ = window(cache, (0,), 0, 3, 5).update(second, second, 1)
    assert torch.equal(read, torch.cat([first[:, :, :3], second], dim=2))
