"""What the processes of a run tell each other when one of them cannot go on."""

import pytest
import torch

from dino_x.distributed.agreement import FINE, GIVES_UP, NO_MEMORY, NOT_FINITE, Agreement
from dino_x.errors import UserError
from dino_x.losses.checks import NotFiniteError
from dino_x.machine.out_of_memory import OutOfMemory


class Two:
    """Two processes, of which the second always tells the same."""

    world_size, rank = 2, 0

    def __init__(self, other: int) -> None:
        self.other, self.asked = other, 0

    def numbers(self, own, device):
        self.asked += 1
        return [own, [self.other, 0]]


def of_two(other: int) -> Agreement:
    return Agreement(Two(other))


def no_room():
    raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB. More is said here.")


def test_lack_of_memory_is_raised_in_every_process():
    with pytest.raises(OutOfMemory, match="^tried to allocate 2.00 GiB$") as own, \
            of_two(FINE).part():  # fmt: skip
        no_room()
    with pytest.raises(OutOfMemory, match="^in process 1$") as others, of_two(NO_MEMORY).part():
        pass
    assert own.value.told
    assert others.value.told


@pytest.mark.parametrize("trouble", [NotFiniteError("NaN"), UserError("gone")])
def test_lack_of_memory_comes_before_what_else_is_wrong(trouble):
    """A step without memory is none to skip."""
    with pytest.raises(OutOfMemory, match="in process 1"), of_two(NO_MEMORY).part():
        raise trouble
    for other in (NOT_FINITE, GIVES_UP):
        with pytest.raises(OutOfMemory, match="allocate"), of_two(other).part():
            no_room()
    agreement = of_two(FINE)
    with agreement.this_rank_only():
        raise UserError("kept")
    with pytest.raises(OutOfMemory, match="allocate"), agreement.part():
        no_room()


def test_where_others_wait_in_a_part_there_is_no_exchange_to_come_to():
    agreement = of_two(FINE)
    with pytest.raises(OutOfMemory) as found, agreement.part(joint=True):
        no_room()
    assert not found.value.told
    assert agreement.exchanges == 0
    with pytest.raises(OutOfMemory) as found, agreement.part(joint=True), agreement.part():
        no_room()  # in what each does by itself there is
    assert found.value.told
    assert agreement.exchanges == 2


def test_what_one_does_by_itself_is_told_at_the_next_exchange():
    agreement = of_two(FINE)
    with agreement.this_rank_only():
        no_room()
    with pytest.raises(OutOfMemory, match="allocate"):
        agreement.exchange()
    with pytest.raises(OutOfMemory), of_two(FINE).this_rank_only(joint=True):
        no_room()
    with pytest.raises(OutOfMemory), Agreement().this_rank_only():
        no_room()
