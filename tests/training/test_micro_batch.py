import pytest
import torch

from dino_x.errors import UserError
from dino_x.training.micro_batch import check_divides, divisors, largest_that_fits


def test_divisors():
    assert divisors(12) == [12, 6, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("batch", "micro", "ranks", "words"),
    [
        (250, 32, 2, "micro-batch 32 x 2 ranks = 64; the nearest that are: 192, 256"),
        (3, 4, 1, "micro-batch 4 x 1 rank = 4; the nearest that is: 4"),
    ],
)
def test_what_does_not_divide_names_the_nearest(batch, micro, ranks, words):
    with pytest.raises(UserError) as error:
        check_divides(batch, micro, ranks)
    assert str(error.value) == f"effective batch {batch} is not a multiple of {words}"


def test_what_divides_is_accepted():
    check_divides(256, 16, 2)


def test_auto_on_a_cpu_divides_and_is_small():
    def never(size):
        raise AssertionError

    for batch, expected in [(256, 16), (12, 12), (34, 2), (17, 1)]:
        assert largest_that_fits(batch, torch.device("cpu"), never) == expected


def test_auto_on_a_gpu_is_the_largest_that_runs():
    tried = []

    def attempt(size):
        tried.append(size)
        if size > 10:
            raise torch.cuda.OutOfMemoryError

    assert largest_that_fits(32, torch.device("cuda"), attempt) == 8
    assert tried == [32, 16, 8]

    def nothing_fits(size):
        raise torch.cuda.OutOfMemoryError

    with pytest.raises(UserError, match="not even a micro-batch of 1"):
        largest_that_fits(4, torch.device("cuda"), nothing_fits)
