"""Cuts a list of (student, teacher) pairs into chunks whose rows fit in memory together.

Shape letters: C student rows of a chunk, U teacher rows of a chunk, P pairs of a chunk.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dino_x.losses.transfer import all_there

BLOCK_ROWS = 16  # students combined with their teachers at a time; 16 was faster than 32 and 64


@dataclass
class Chunk:
    """Some pairs, and the rows that they need: each row once, in the order of first use."""

    student_rows: dict[int, int] = field(default_factory=dict)  # row -> its place in the chunk
    teacher_rows: dict[int, int] = field(default_factory=dict)
    pairs: list[int] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)  # of each pair, in the chunk

    def rows_with(self, student: int, teacher: int) -> int:
        """Rows that the chunk would need with one more pair."""
        new = (student not in self.student_rows) + (teacher not in self.teacher_rows)
        return len(self.student_rows) + len(self.teacher_rows) + new

    def add(self, pair: int, student: int, teacher: int) -> None:
        """Take one more pair in."""
        student_place = self.student_rows.setdefault(student, len(self.student_rows))
        teacher_place = self.teacher_rows.setdefault(teacher, len(self.teacher_rows))
        self.pairs.append(pair)
        self.places.append((student_place, teacher_place))

    def there(self, device: torch.device) -> "ChunkThere":
        """The chunk's places on a device, in one message."""
        students, teachers = zip(*self.places, strict=True)
        places = [list(self.student_rows), list(self.teacher_rows), self.pairs, students, teachers]
        return ChunkThere(*all_there([torch.tensor(part) for part in places], device))

    def blocks(self) -> list[tuple[slice, slice]]:
        """Runs of students, each with the range of teachers that it is paired with.

        Neighbouring students share neighbouring teachers, so that multiplying block by block
        costs a fraction of the full C x U product.
        """
        students, teachers = zip(*self.places, strict=True)  # places of students never fall
        found = []
        for start in range(0, len(self.student_rows), BLOCK_ROWS):
            stop = start + BLOCK_ROWS
            of_block = teachers[bisect_left(students, start) : bisect_left(students, stop)]
            found.append((slice(start, stop), slice(min(of_block), max(of_block) + 1)))
        return found


@dataclass(frozen=True)
class ChunkThere:
    """A chunk's places as tensors on a device.

    Attributes:
        student_C, teacher_U: its rows.
        pairs_P: its pairs.
        students_P, teachers_P: of each pair, places in the chunk.
    """

    student_C: Tensor
    teacher_U: Tensor
    pairs_P: Tensor
    students_P: Tensor
    teachers_P: Tensor

    def weights_CU(self, weights_P: Tensor) -> Tensor:
        """How much each student answers for each teacher; repeated pairs add up."""
        weights_CU = weights_P.new_zeros(len(self.student_C), len(self.teacher_U))
        places = (self.students_P, self.teachers_P)
        return weights_CU.index_put_(places, weights_P[self.pairs_P], accumulate=True)


def plan_chunks(pairs_P2: Tensor, rows_at_once: int) -> Iterator[Chunk]:
    """Chunks of at most ``rows_at_once`` (two or more) student and teacher rows in all.

    Students keep the order in which the pairs first name them. One with more teachers than fit
    is in several chunks, which is exact, because the loss is a sum over pairs. The pairs are on the
    CPU, where chunks are planned.
    """
    count = len(pairs_P2)
    if (pairs_P2 == torch.arange(count)[:, None]).numpy().all():
        yield from one_to_one(count, rows_at_once // 2)
        return
    pairs_of_student: dict[int, list[tuple[int, int]]] = {}
    for pair, (student, teacher) in enumerate(pairs_P2.numpy().tolist()):
        pairs_of_student.setdefault(student, []).append((pair, teacher))
    chunk = Chunk()
    for student, its_pairs in pairs_of_student.items():
        for pair, teacher in its_pairs:
            if chunk.rows_with(student, teacher) > rows_at_once:
                yield chunk
                chunk = Chunk()
            chunk.add(pair, student, teacher)
    yield chunk


def one_to_one(count: int, pairs_at_once: int) -> Iterator[Chunk]:
    """The same chunks where pair i is of student i and teacher i, as for masked patches.

    There are thousands of these pairs: 7 ms instead of 12 ms for 7,000 of them, tensors included.
    """
    for start in range(0, count, pairs_at_once):
        rows = range(start, min(start + pairs_at_once, count))
        places = range(len(rows))
        in_place = dict(zip(rows, places, strict=True))
        both = list(zip(places, places, strict=True))
        yield Chunk(in_place, in_place, list(rows), both)
