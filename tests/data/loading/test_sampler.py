from collections import Counter

import numpy as np
import pytest

from dino_x.data.loading.sampler import sample_indices


@pytest.mark.parametrize(("images", "batch"), [(10, 5), (10, 3), (7, 10), (7, 23), (1, 4), (5, 1)])
def test_every_image_comes_once_an_epoch_whatever_the_batch(images, batch):
    epochs = 6
    steps = epochs * images // batch + 1
    stream = np.concatenate([sample_indices(3, step, batch, images) for step in range(steps)])
    for epoch in range(epochs):
        drawn = stream[epoch * images : (epoch + 1) * images]
        assert sorted(drawn) == list(range(images))


def test_batches_are_pieces_of_one_sequence_whatever_their_size():
    small = [sample_indices(0, step, 4, 11) for step in range(30)]
    large = [sample_indices(0, step, 12, 11) for step in range(10)]
    np.testing.assert_array_equal(np.concatenate(small), np.concatenate(large))


def test_a_step_does_not_depend_on_what_was_drawn_before():
    drawn_alone = sample_indices(5, 40, 6, 100)
    for step in reversed(range(60)):
        sample_indices(5, step, 6, 100)
        sample_indices(6, step, 6, 77)
    np.testing.assert_array_equal(sample_indices(5, 40, 6, 100), drawn_alone)


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(sample_indices(s, e, 50, 50)) for s in range(3) for e in range(3)]
    assert len(set(orders)) == 9
    assert tuple(range(50)) not in orders


def test_a_known_draw_stays_as_it_is():
    """Runs that were stopped before an upgrade must go on with the same images."""
    assert sample_indices(0, 0, 8, 10).tolist() == [0, 2, 5, 8, 7, 6, 4, 9]


def test_all_positions_of_an_epoch_are_equally_likely():
    first = Counter(int(sample_indices(seed, 0, 1, 4)[0]) for seed in range(400))
    assert all(60 < first[image] < 140 for image in range(4))  # 100 expected, deviation 9


def test_a_caller_cannot_change_later_draws():
    before = sample_indices(0, 0, 5, 20)
    kept = before.copy()
    before[:] = -1
    np.testing.assert_array_equal(sample_indices(0, 0, 5, 20), kept)


def test_rows_are_int64():
    assert sample_indices(0, 0, 5, 20).dtype == np.int64


@pytest.mark.parametrize("arguments", [(0, 0, 0, 5), (0, 0, 5, 0), (-1, 0, 5, 5), (0, -1, 5, 5)])
def test_impossible_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="batch of|must not be negative"):
        sample_indices(*arguments)
