import numpy as np
import pytest

from dino_x.data.index.chosen import Chosen, Marked


@pytest.mark.parametrize("length", [0, 1, 7, 8, 511, 512, 513, 2000])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 1.0])
def test_numbers_are_found_by_their_place_and_places_by_their_number(length, share):
    mask = np.random.default_rng(length).random(length) < share
    chosen = Chosen.of([mask[:300], mask[300:303], mask[303:]])
    wanted = np.flatnonzero(mask)
    assert len(chosen) == len(wanted)
    np.testing.assert_array_equal(chosen.nth(np.arange(len(wanted))), wanted)
    numbers = np.arange(length + 1)
    np.testing.assert_array_equal(chosen.rank(numbers), np.searchsorted(wanted, numbers))
    np.testing.assert_array_equal(chosen.contains(np.arange(length)), mask)
    pieces = list(chosen.pieces(8))
    np.testing.assert_array_equal(np.concatenate([np.zeros(0, bool), *pieces]), mask)


def test_numbers_are_looked_up_in_any_order_and_some_at_a_time(monkeypatch):
    monkeypatch.setattr("dino_x.data.index.chosen._AT_ONCE", 3)
    chosen = Chosen.of([np.arange(1000) % 3 == 1])
    np.testing.assert_array_equal(chosen.nth(np.array([9, 0, 9, 100])), [28, 1, 28, 301])
    assert chosen.nth(np.zeros(0, int)).dtype == np.int64


def test_what_is_marked_counts_once():
    marked = Marked(100)
    marked.mark(np.array([5, 5, 6, 99]))
    marked.mark(6)
    assert len(marked) == 3
    marked.mark(np.arange(100))
    assert len(marked) == 100
