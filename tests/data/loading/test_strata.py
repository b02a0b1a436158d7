"""Which images come together in a step, where patients, series or sources are known."""

from collections import Counter
from itertools import pairwise
from math import ceil
from pathlib import Path

import numpy as np
import pytest

from dino_x.data.image import ImageRef
from dino_x.data.loading.sampler import Strata, _first_step, sample_indices, strata_of


def ref(number: int, patient=None, series=None, position=None, source=0) -> ImageRef:
    return ImageRef(
        path=Path(f"{number}.png"), height=4, width=4,
        patient=patient, series=series, position_mm=position, source=source,
    )  # fmt: skip


def hospital(rng: np.random.Generator, patients: int, loose: int = 0) -> list[ImageRef]:
    """Patients of 1 to 4 series of 1 to 30 slices, in a random order, and loose images."""
    rows = []
    for patient in range(patients):
        for series in range(rng.integers(1, 5)):
            for slice_ in range(rng.integers(1, 31)):
                rows.append((f"p{patient}", f"s{patient}.{series}", 2.5 * slice_))
    rows += [(None, None, None)] * loose
    return [ref(i, *rows[j]) for i, j in enumerate(rng.permutation(len(rows)))]


def stream(rows, strata, batch, epochs, seed=3):
    """All steps that begin in the first epochs: [steps, B], and the first step of each epoch."""
    length = len(rows) * ceil(batch / len(rows))
    firsts = [_first_step(epoch, batch, length) for epoch in range(epochs + 1)]
    steps = [sample_indices(seed, s, batch, len(rows), strata) for s in range(firsts[-1])]
    return np.array(steps), firsts


@pytest.mark.parametrize("batch", [1, 7, 16, 64, 250])
@pytest.mark.parametrize(("patients", "loose"), [(20, 0), (3, 400), (60, 13)])
def test_a_step_holds_as_few_of_a_patient_and_a_series_as_there_can_be(patients, loose, batch):
    rows = hospital(np.random.default_rng(patients), patients, loose)
    strata = strata_of(rows)
    steps, firsts = stream(rows, strata, batch, 4)
    for kind in ("patient", "series"):
        for first, after in pairwise(firsts):
            epoch = [[getattr(rows[i], kind) for i in step] for step in steps[first:after]]
            total = Counter(key for step in epoch for key in step if key is not None)
            for step in epoch:
                for key, count in Counter(key for key in step if key is not None).items():
                    assert count <= ceil(total[key] / (after - first)), (kind, key)


def test_no_patient_is_twice_in_a_step_while_there_are_enough():
    rows = [ref(i, f"p{i // 8}", f"s{i // 4}", i % 4) for i in range(8 * 64)]
    strata = strata_of(rows)
    for step in range(60):
        batch = sample_indices(0, step, 32, len(rows), strata)
        assert len({rows[i].patient for i in batch}) == 32


def test_slices_that_must_come_together_are_far_apart():
    rows = [ref(i, f"p{i % 3}", f"s{i % 3}", i // 3 * 37 % 100) for i in range(300)]
    strata = strata_of(rows)
    for step in range(20):  # 10 steps an epoch, 100 slices a series: 10 of each in a step
        batch = sample_indices(0, step, 30, 300, strata)
        for series in range(3):
            places = np.sort([rows[i].position_mm for i in batch if i % 3 == series])
            assert np.diff(places).min() >= 9


@pytest.mark.parametrize("batch", [1, 5, 32, 113, 300, 1000])
def test_every_image_comes_once_an_epoch(batch):
    """But for fewer than B images that an epoch takes from the next, and gives back there."""
    rows = hospital(np.random.default_rng(1), 12)
    strata, n = strata_of(rows), len(rows)
    passes = ceil(batch / n)
    steps, firsts = stream(rows, strata, batch, 5)
    for epoch, after in enumerate(firsts[1:], start=1):
        drawn = np.bincount(steps[:after].ravel(), minlength=n)
        ahead = after * batch - epoch * n * passes
        assert drawn.min() >= epoch * passes
        assert drawn.max() <= epoch * passes + max(1, ceil(ahead / n))
        assert (drawn - epoch * passes).sum() == ahead


def test_a_step_is_a_pure_function():
    rows = hospital(np.random.default_rng(2), 10)
    strata = strata_of(rows)
    wanted = sample_indices(5, 40, 6, len(rows), strata)
    for step in reversed(range(60)):
        sample_indices(5, step, 6, len(rows), strata)[:] = -1
    np.testing.assert_array_equal(sample_indices(5, 40, 6, len(rows), strata_of(rows)), wanted)


def test_orders_differ_by_epoch_and_seed():
    rows = hospital(np.random.default_rng(2), 10)
    strata, n = strata_of(rows), len(rows)
    orders = {tuple(sample_indices(s, e, n, n, strata)) for s in range(3) for e in range(3)}
    assert len(orders) == 9


def test_every_image_is_as_likely_as_any_other_in_a_first_step():
    rows = [ref(i, f"p{i // 5}", f"s{i // 5}", i % 5) for i in range(20)] + [ref(20)]
    strata = strata_of(rows)
    first = Counter(int(i) for s in range(700) for i in sample_indices(s, 0, 3, 21, strata))
    assert all(60 < first[image] < 145 for image in range(21)), first  # 100 expected


def test_the_order_does_not_depend_on_the_salt():
    """Keys are salted hashes: only which are equal may count."""
    rows = hospital(np.random.default_rng(2), 10)
    renamed = [
        ref(i, f"x{hash(row.patient)}", f"y{hash(row.series)}", row.position_mm)
        for i, row in enumerate(rows)
    ]
    for step in range(5):
        np.testing.assert_array_equal(
            sample_indices(0, step, 9, len(rows), strata_of(rows)),
            sample_indices(0, step, 9, len(rows), strata_of(renamed)),
        )


def test_where_nothing_is_known_the_order_is_the_plain_one():
    rows = [ref(i, position=float(i)) for i in range(10)]
    assert strata_of(rows) is None
    assert strata_of(rows, "equal") is None
    assert strata_of([ref(i, source=i % 2) for i in range(10)]) is None
    assert strata_of([ref(i, source=i % 2) for i in range(10)], "equal") is None
    assert sample_indices(0, 0, 8, 10, None).tolist() == [0, 2, 5, 8, 7, 6, 4, 9]


def shares(strata: Strata, source: np.ndarray, batch: int, epochs: int) -> np.ndarray:
    steps = epochs * len(source) // batch
    drawn = [sample_indices(0, step, batch, len(source), strata) for step in range(steps)]
    counts = np.bincount(source[np.concatenate(drawn)], minlength=source.max() + 1)
    return counts / counts.sum()


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [("equal", [1 / 3] * 3), ([1, 0, 3], [0.25, 0, 0.75]), ([0.001, 1, 1], [0.0005, 0.5, 0.5])],
)
def test_sources_have_their_shares_whatever_their_size(weights, wanted):
    source = np.repeat([0, 1, 2], [20, 300, 80])
    rows = [ref(i, f"p{i // 3}", source=int(s)) for i, s in enumerate(source)]
    strata = strata_of(rows, weights)
    np.testing.assert_allclose(shares(strata, source, 16, 10), wanted, atol=0.015)


@pytest.mark.parametrize("batch", [10, 700])
def test_images_of_a_source_come_equally_often(batch):
    source = np.repeat([0, 1], [30, 270])
    strata = strata_of([ref(i, source=int(s)) for i, s in enumerate(source)], "equal")
    steps = 20 * 300 // batch
    drawn = [sample_indices(0, step, batch, 300, strata) for step in range(steps)]
    counts = np.bincount(np.concatenate(drawn), minlength=300)
    for number in range(2):
        assert np.ptp(counts[source == number]) <= 1 + batch // 300 * 2


def test_a_path_without_images_has_no_say():
    rows = [ref(i, source=2 * (i % 2)) for i in range(40)]
    strata = strata_of(rows, [1, 5, 3])
    np.testing.assert_array_equal(strata.draws, [10, 30])
    with pytest.raises(ValueError, match="no source"):
        strata_of(rows, [0, 1, 0])


def test_a_million_images():
    """Vectorised: a second or so, where a loop over images would take minutes."""
    n = 1_000_000
    order = np.arange(n)
    start = np.arange(0, n, 50)
    strata = Strata(order, start, np.full(len(start), 50), np.arange(len(start)) // 2)
    batch = sample_indices(0, 2000, 256, n, strata)
    assert len({int(i) // 100 for i in batch}) == 256
