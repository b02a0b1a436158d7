"""The gradient is that of the effective batch with every kind of view, code of the user's too."""

import numpy as np
import pytest
import torch

from tests.equivalence.conftest import relative_error

HISTOLOGY = {
    "channels": 3,
    "views__turns": 0.75,
    "views__vertical_flip": 0.5,
    "views__stain": 0.3,
    "views__stain_shift": 0.1,
    "views__extra": "tests.views.hooks:ripple",
}


@pytest.mark.parametrize("size", [1, 2, 8])
def test_gradient_with_turns_stains_and_code_of_the_users_own(bench, size):
    step = bench(**HISTOLOGY)
    terms_whole, whole, _ = step.exact(16)
    terms, gradient, _ = step.exact(size)
    assert relative_error(gradient, whole) < 1e-10
    assert terms == pytest.approx(terms_whole, rel=1e-10)


@pytest.mark.parametrize("without", ["views__turns", "views__stain", "views__extra"])
def test_each_of_them_changes_the_gradient(bench, without):
    """Or the test above would show nothing."""
    _, whole, _ = bench(**HISTOLOGY).exact(16)
    _, other, _ = bench(**{k: v for k, v in HISTOLOGY.items() if k != without}).exact(16)
    assert relative_error(other, whole) > 1e-3


def test_the_gram_teacher_sees_turned_crops_without_stains_and_without_that_code(bench):
    step = bench(gram__size=32, **HISTOLOGY)
    turns_alone = bench(gram__size=32, channels=3, views__turns=0.75, views__vertical_flip=0.5)
    (micro,), (plain,) = step.micro_batches(16), turns_alone.micro_batches(16)
    assert torch.equal(micro.gram_crops(), plain.gram_crops())
    assert not torch.equal(micro.global_crops(), plain.global_crops())
    numbers_of_a_crop = step.plan.global_extra_BVU.reshape(-1, step.plan.global_extra_BVU.shape[2])
    assert len(np.unique(numbers_of_a_crop, axis=0)) == 32
