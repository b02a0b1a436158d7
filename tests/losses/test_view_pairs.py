"""Which rows are compared, and how they are cut into chunks."""

import pytest

from dino_x.losses import view_pairs
from dino_x.losses.pair_chunks import plan_chunks


@pytest.mark.parametrize("same_view", [False, True])
@pytest.mark.parametrize(("images", "student_views", "teacher_views"), [(1, 2, 1), (3, 5, 2)])
def test_view_pairs_are_all_pairs_of_an_image(
    images: int, student_views: int, teacher_views: int, same_view: bool
) -> None:
    pairs = view_pairs(images, student_views, teacher_views, same_view=same_view).tolist()
    expected = {
        (student * images + image, teacher * images + image)
        for image in range(images)
        for student in range(student_views)
        for teacher in range(teacher_views)
        if same_view or student != teacher
    }
    assert len(pairs) == len(expected)
    assert {(student, teacher) for student, teacher in pairs} == expected


def test_chunks_of_view_pairs_compute_a_target_once_an_image() -> None:
    chunks = list(plan_chunks(view_pairs(64, 10, 2), rows_at_once=125))
    assert sum(len(chunk.pairs) for chunk in chunks) == 64 * (10 * 2 - 2)
    assert sum(len(chunk.student_rows) for chunk in chunks) < 640 + 2 * len(chunks)
    assert sum(len(chunk.teacher_rows) for chunk in chunks) < 128 + 2 * len(chunks)
    assert max(len(chunk.student_rows) + len(chunk.teacher_rows) for chunk in chunks) <= 125


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((0, 2, 1), "images is 0; expected 1 or more"),
        ((1, 2, 0), "teacher_views is 0; expected 1 or more"),
        ((1, 2, 3), "student_views is 2; expected 3 or more"),
        ((1, 1, 1), "student_views is 1 and same_view is False; expected 2"),
    ],
)
def test_view_pairs_refuse_counts_without_a_pair(
    counts: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        view_pairs(*counts)
