import pytest

from dino_x.distributed.shares import (
    all_sizes,
    are_equally_many,
    check_divides,
    check_equally_many,
    choices,
    cut,
    divisors,
    parts_of_a_share,
    usable,
)
from dino_x.errors import UserError
from dino_x.losses.ranks import share_of


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


@pytest.mark.parametrize("batch", [1, 2, 16, 31])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_what_there_is_to_choose_from_is_what_each_choice_comes_to(batch, ranks):
    found = choices(batch, ranks)
    assert found == sorted(found, reverse=True)
    if ranks == 1:
        assert found == divisors(batch)
    else:
        assert set(found) == {max(all_sizes(batch, most, ranks)) for most in range(1, batch + 1)}
    for size in choices(batch, ranks, equally_many=True):
        assert are_equally_many(batch, size, ranks)
