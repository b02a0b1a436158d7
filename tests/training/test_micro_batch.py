import pytest
import torch

from dino_x.errors import UserError
from dino_x.losses.ranks import share_of
from dino_x.training.micro_batch import (
    all_sizes,
    check_divides,
    check_equally_many,
    cut,
    divisors,
    largest_that_fits,
    parts_of_a_share,
    usable,
)


def test_divisors():
    assert divisors(12) == [12, 6, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("batch", "micro", "words"),
    [
        (250, 32, "micro-batch 32; the nearest that are: 224, 256"),
        (3, 4, "micro-batch 4; the nearest that is: 4"),
    ],
)
def test_what_does_not_divide_names_the_nearest(batch, micro, words):
    with pytest.raises(UserError) as error:
        check_divides(batch, micro)
    assert str(error.value) == f"effective batch {batch} is not a multiple of {words}"


def test_what_divides_is_accepted():
    check_divides(256, 16)


@pytest.mark.parametrize("batch", [1, 2, 16, 31])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("most", [1, 2, 3, 5, 40])
def test_shares_are_cut_evenly_and_whole(batch, ranks, most):
    parts = parts_of_a_share(batch, most, ranks)
    spans = [span for rank in range(ranks) for span in cut(share_of(batch, rank, ranks), parts)]
    sizes = [span.stop - span.start for span in spans]
    assert sizes == all_sizes(batch, most, ranks)
    assert [i for span in spans for i in range(span.start, span.stop)] == list(range(batch))
    assert max(sizes) <= most
    used = usable(batch, most, ranks, named=False)
    if ranks > 1:
        assert all_sizes(batch, used, ranks) == sizes, "the size that is said is cut likewise"


def test_a_micro_batch_that_one_process_cannot_use_is_refused_where_it_is_named():
    assert usable(16, 5, 1, named=False) == 4
    assert usable(16, 4, 1, named=True) == 4
    with pytest.raises(UserError, match="16 is not a multiple of micro-batch 5"):
        usable(16, 5, 1, named=True)


def test_networks_in_parts_need_equally_many_micro_batches():
    check_equally_many(16, 2, 3)
    with pytest.raises(UserError, match=r"16 images in micro-batches of 1 on 3 processes.*larger"):
        check_equally_many(16, 1, 3)


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
