"""The order of very many images, computed: the promises of the order that is kept hold for it."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from dino_x.data.loading import order, sampler
from dino_x.data.loading.dealing import Layout
from dino_x.data.loading.order import layout_of, order_of
from dino_x.data.loading.sampler import sample_indices, strata_of
from tests.data.loading.test_strata import hospital, ref


@pytest.fixture(params=[2, 7, 10_000])
def chunks(request, monkeypatch):
    """Chunks at most: of many patients each, and of one patient each."""
    cut = order.chunk_bounds
    monkeypatch.setattr(order, "chunk_bounds", lambda starts, n: cut(starts, n, request.param))


def layout(rows, weights="size") -> Layout:
    return layout_of(strata_of(rows, weights))


def epochs_of(found: Layout, batch: int, epochs: int, seed: int = 3):
    """All steps of the first epochs, [steps, B], and the first step of each epoch."""
    firsts = [found.first_step(epoch, batch) for epoch in range(epochs + 1)]
    steps = np.array([found.step(seed, s, batch) for s in range(firsts[-1])])
    assert [found.epoch_of(first, batch) for first in firsts] == list(range(epochs + 1))
    assert [found.epoch_of(first - 1, batch) for first in firsts[1:]] == list(range(epochs))
    return steps, firsts


def most_in_a_step(numbers: np.ndarray) -> np.ndarray:
    """How many of each number a step holds at most; -1 does not count. [steps, B] to [numbers]."""
    rows = [np.bincount(step[step >= 0], minlength=numbers.max() + 1) for step in numbers]
    return np.max(rows, axis=0)


def numbers_of(keys) -> np.ndarray:
    known = {key: number for number, key in enumerate(dict.fromkeys(keys)) if key is not None}
    return np.array([known.get(key, -1) for key in keys])


@pytest.mark.parametrize("batch", [1, 7, 64, 131])
@pytest.mark.parametrize(("patients", "loose"), [(20, 0), (3, 400)])
def test_a_step_holds_as_few_of_a_patient_and_a_series_as_there_can_be(
    patients, loose, batch, chunks
):
    rows = hospital(np.random.default_rng(patients), patients, loose)
    steps, firsts = epochs_of(layout(rows), batch, 3)
    for kind in ("patient", "series"):
        numbers = numbers_of([getattr(row, kind) for row in rows])[steps]
        for first, after in pairwise(firsts):
            epoch = numbers[first:after]
            total = np.bincount(epoch[epoch >= 0], minlength=epoch.max() + 1)
            assert (most_in_a_step(epoch) <= np.ceil(total / (after - first))).all()


@pytest.mark.parametrize("batch", [1, 5, 113, 300])
def test_every_image_comes_once_an_epoch(batch, chunks):
    """But for fewer than 2B images that an epoch takes from the next, and gives back there."""
    rows = hospital(np.random.default_rng(1), 12, 30)
    n = len(rows)
    steps, firsts = epochs_of(layout(rows), batch, 4)
    for epoch, after in enumerate(firsts[1:], start=1):
        drawn = np.bincount(steps[:after].ravel(), minlength=n)
        assert drawn.min() >= epoch
        assert drawn.max() <= epoch + 1
        assert (drawn - epoch).sum() == after * batch - epoch * n < 2 * batch


def test_a_batch_of_all_images_has_each_once():
    rows = hospital(np.random.default_rng(1), 12)
    found = layout(rows)
    for step in range(3):
        assert sorted(found.step(0, step, len(rows))) == list(range(len(rows)))
    with pytest.raises(ValueError, match="more than all"):
        found.step(0, 0, len(rows) + 1)


def test_slices_that_must_come_together_are_far_apart():
    rows = [ref(i, f"p{i % 3}", f"s{i % 3}", i // 3 * 37 % 100) for i in range(300)]
    found = layout(rows)
    for step in range(20):  # 10 steps an epoch, 100 slices a series: 10 of each in a step
        batch = found.step(0, step, 30)
        for series in range(3):
            places = np.sort([rows[i].position_mm for i in batch if i % 3 == series])
            assert np.diff(places).min() >= 9


def test_a_step_is_a_pure_function():
    rows = hospital(np.random.default_rng(2), 10)
    found = layout(rows)
    wanted = found.step(5, 40, 6)
    for step in reversed(range(60)):
        found.step(5, step, 6)[:] = -1
    np.testing.assert_array_equal(layout(rows).step(5, 40, 6), wanted)


def test_a_known_draw_stays_as_it_is():
    """A run that is resumed must go on with the same images: see `sampler.ORDER`."""
    rows = [ref(i, f"p{i // 4}", f"s{i // 2}", i % 2) for i in range(40)]
    assert sampler.ORDER == "computed order 1"
    assert layout(rows).step(0, 0, 8).tolist() == KNOWN


KNOWN = [28, 24, 34, 21, 19, 3, 14, 8]


def test_steps_differ_by_epoch_and_seed():
    rows = hospital(np.random.default_rng(2), 40)
    found = layout(rows)
    drawn = {tuple(sorted(found.step(seed, step, 20))) for seed in range(3) for step in range(60)}
    assert len(drawn) == 180


def test_images_meet_others_in_every_epoch():
    """Two images share a step about as often as if steps were drawn at random."""
    rows = [ref(i, f"p{i // 4}", f"s{i // 4}", i % 4) for i in range(120)]
    found = layout(rows)
    met = np.zeros((120, 120), dtype=int)
    for step in range(12 * 120):  # 120 epochs of 12 steps of 10 images
        batch = found.step(0, step, 10)
        met[np.ix_(batch, batch)] += 1
    of_others = [met[i, j] for i in range(120) for j in range(120) if i // 4 != j // 4]
    expected = 120 * 9 / 116  # 9.3; of a binomial number with a deviation of 3
    assert np.mean(of_others) == pytest.approx(expected, rel=0.02)
    assert np.std(of_others) < 2 * 3  # 14 without the images that are taken ahead
    assert max(met[i, i + 1] for i in range(0, 120, 4)) == 0


def test_every_image_is_as_likely_as_any_other_in_a_first_step():
    rows = [ref(i, f"p{i // 5}", f"s{i // 5}", i % 5) for i in range(20)] + [ref(20)]
    found = layout(rows)
    first = Counter(int(i) for s in range(700) for i in found.step(s, 0, 3))
    assert all(60 < first[image] < 145 for image in range(21)), first  # 100 expected


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [("equal", [1 / 3] * 3), ([1, 0, 3], [0.25, 0, 0.75]), ([0.001, 1, 1], [0.0005, 0.5, 0.5])],
)
def test_sources_have_their_shares_and_their_images_come_equally_often(weights, wanted, chunks):
    source = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [20, 300, 80]))
    rows = [ref(i, f"p{i // 3}", source=int(s)) for i, s in enumerate(source)]
    found = layout(rows, weights)
    steps, _ = epochs_of(found, 16, 10)
    drawn = np.bincount(steps.ravel(), minlength=400)
    shares = [drawn[source == number].sum() / steps.size for number in range(3)]
    np.testing.assert_allclose(shares, wanted, atol=0.015)
    for number in range(3):
        assert np.ptp(drawn[source == number]) <= 2


def test_patients_of_a_source_are_kept_apart_where_sources_have_weights(chunks):
    rows = [ref(i, f"p{i // 8}", f"s{i // 8}", i % 8, source=int(i >= 160)) for i in range(480)]
    steps, firsts = epochs_of(layout(rows, [1, 1]), 16, 4)
    numbers = numbers_of([row.patient for row in rows])[steps]
    for first, after in pairwise(firsts):
        epoch = numbers[first:after]
        total = np.bincount(epoch.ravel(), minlength=60)
        assert (most_in_a_step(epoch) <= np.ceil(total / (after - first))).all()


def test_many_images_have_an_order_that_is_computed(monkeypatch):
    rows = hospital(np.random.default_rng(2), 10)
    n = len(rows)
    kept = sample_indices(0, 1, 8, n, order_of(rows))
    np.testing.assert_array_equal(kept, sample_indices(0, 1, 8, n, strata_of(rows)))
    for module in (order, sampler):
        monkeypatch.setattr(module, "COMPUTED_FROM", n)
    found = order_of(rows)
    assert isinstance(found, Layout)
    np.testing.assert_array_equal(sample_indices(0, 1, 8, n, found), found.step(0, 1, 8))
    assert order_of([ref(i) for i in range(n)]) is None


def test_where_nothing_is_known_of_many_images_every_one_comes_once_an_epoch(monkeypatch):
    monkeypatch.setattr(sampler, "COMPUTED_FROM", 11)
    small = np.concatenate([sample_indices(0, step, 4, 11) for step in range(33)])
    large = np.concatenate([sample_indices(0, step, 12, 11) for step in range(11)])
    np.testing.assert_array_equal(small, large)
    for epoch in range(12):
        assert sorted(small[epoch * 11 : epoch * 11 + 11]) == list(range(11))


def test_a_hundred_million_images():
    """Memory and time of a step do not grow with them."""
    n = 10**8
    found = Layout(lambda places: places, order.chunk_bounds(np.arange(0, n, 400), n, 2**12))
    for step in (0, 1, 24_417):
        batch = found.step(0, step, 4096)
        assert len({int(i) // 400 for i in batch}) == 4096
