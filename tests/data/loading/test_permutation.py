"""Permutations that are computed and not stored."""

import numpy as np
import pytest

from dino_x.data.loading.permutation import permuted


def test_every_number_comes_once_for_every_length():
    for length in [*range(1, 140), *range(141, 2001, 31), 2000, 32_767, 65_537, 99_999]:
        found = permuted(np.arange(length), length, 3, 1, "images")
        np.testing.assert_array_equal(np.sort(found), np.arange(length))


def test_a_number_does_not_depend_on_those_it_is_asked_with():
    whole = permuted(np.arange(1001), 1001, 0, 0, "images")
    places = np.array([1000, 5, 5, 0])
    np.testing.assert_array_equal(permuted(places, 1001, 0, 0, "images"), whole[places])
    assert permuted(places, 1001, 0, 0, "images").dtype == np.int64


def test_seeds_epochs_and_purposes_have_permutations_of_their_own():
    ways = [(s, e, p) for s in range(4) for e in range(4) for p in ("images", "steps")]
    found = {tuple(permuted(np.arange(300), 300, *way)) for way in ways}
    assert len(found) == len(ways)


@pytest.mark.parametrize("length", [1000, 1025])
def test_where_a_number_goes_is_nearly_uniform(length):
    """Chi-squared over 16 parts of the numbers; 15 degrees of freedom, 0.1% beyond 38."""
    for number in (0, 1, length - 1):
        goes = [int(permuted(np.array([number]), length, s, 0, "x")[0]) for s in range(800)]
        counts = np.bincount(np.array(goes) * 16 // length, minlength=16)
        assert ((counts - 50) ** 2 / 50).sum() < 45


def test_neighbours_do_not_stay_neighbours():
    length = 100_000
    found = permuted(np.arange(length), length, 0, 0, "images")
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 0.02
    assert abs(np.corrcoef(found, np.arange(length))[0, 1]) < 0.02
    near = np.abs(np.diff(found)) < 1000  # of two numbers drawn at random 2% are
    assert 0.017 < near.mean() < 0.023
    assert (np.sort(found[:1000]) // 1000).max() == 99


def test_very_many_numbers():
    length = 10**15 + 1
    found = permuted(np.arange(length - 1000, length), length, 5, 2, "images")
    assert len(set(found.tolist())) == 1000
    assert 0 <= found.min() < length / 100
    assert length * 0.99 < found.max() < length


@pytest.mark.parametrize("length", [0, -1, 2**62 + 1])
def test_impossible_lengths_are_refused(length):
    with pytest.raises(ValueError, match="it must be 1 to"):
        permuted(np.array([0]), length, 0, 0, "images")
