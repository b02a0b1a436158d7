"""What an index is to a run: the images to train on, and the files that are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dino_x.data.image import WITHOUT_IMAGE, ImageRef, remarks_in
from dino_x.data.index.rows import counts_of
from dino_x.data.storage.archives import address
from dino_x.errors import UserError

Progress = Callable[[int, int], None]

# If more than this share of files is unreadable, these are not a few broken files: the data are
# not what the user believes they are.
UNREADABLE_SHARE = 0.1

LEFT_OUT = "left out: "  # how the reason begins for images that are no view of anatomy


# Of a large index no more images than this are listed one by one. If no more than this are left to
# train on, they are a list like those of any other data.
LISTED_UP_TO = 100_000


@dataclass(frozen=True)
class Skipped:
    """A file that is left out, and the reason why."""

    path: Path
    reason: str


@dataclass
class Index:
    """The images to train on, in an order that is the same on every machine.

    Attributes:
        rows: the images: a list, or `Rows` of a large index.
        skipped: the files that are left out.
        notes: sentences for the user.
        left_out: how many images of each kind are left out by default, see `image.KINDS`.
        without_image: how many files are whole and hold no image, such as reports.
        passed: how many files are no images, by suffix, see passed_over.py.
        damaged: the images that turned out not to be decodable, which ``skipped`` lists by file.
        patients: salted keys of patients that a table names, for files that do not name theirs.
    """

    rows: Sequence[ImageRef]
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    without_image: int = 0
    passed: dict[str, int] = field(default_factory=dict)
    damaged: list[ImageRef] = field(default_factory=list)
    patients: Mapping[Path, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def largest_side(self) -> int:
        """The largest height or width of any image, in pixels."""
        return max(max(size) for size in counts_of(self.rows, "height", "width"))


def in_words(counts: Mapping[str, int]) -> str:
    """What is left out by default, and how to take it."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    return f"{kinds} images (data.take=[{','.join(counts)}] takes them)"


def reasons_of(left_out: Sequence[ImageRef]) -> list[Skipped]:
    """The files of images of kinds that are left out, each once."""
    return list(dict.fromkeys(Skipped(ref.path, f"{LEFT_OUT}{ref.kind}") for ref in left_out))


def remarks_on(rows: Sequence[ImageRef]) -> list[str]:
    """Sentences about what readers could not decide from headers, the most images first."""
    remarks: Counter[str] = Counter()
    for (remark,), count in counts_of(rows, "remark").items():
        for one in remarks_in(remark):
            remarks[one] += count
    return [f"{count:,} images: {remark}" for remark, count in remarks.most_common()]


def nothing_left(left_out: Mapping[str, int]) -> UserError:
    """The error for images that are all of kinds that are left out."""
    return UserError(f"no image is left to train on: left out are {in_words(left_out)}")


def check_share(index: Index, paths: Sequence[Path], files: int, unlisted: int) -> None:
    """Refuse data without a usable image, or with too many damaged or unsupported files.

    Args:
        index: the images, and the files that are left out.
        paths: what the user named.
        files: how many files there are.
        unlisted: how many files that cannot be used ``index.skipped`` does not list.

    Raises: UserError.
    """
    no_fault = (LEFT_OUT, WITHOUT_IMAGE)
    broken = [skip for skip in index.skipped if not skip.reason.startswith(no_fault)]
    if not index.rows:
        first = (broken or index.skipped)[0]
        raise UserError(
            f"no readable image among {files} files in {listed(paths)}; {first.path}:"
            f" {first.reason}"
        )
    count, of = len(broken) + unlisted, files - index.without_image
    if count > UNREADABLE_SHARE * of:
        raise UserError(
            f"{count} of {of} image files are unreadable, more than 1 in 10: "
            f"move them away or name the folders that hold images; {broken[0].path}:"
            f" {broken[0].reason}"
        )


def listed(paths: Sequence[Path]) -> str:
    """The first of some paths, and how many more there are."""
    names = ", ".join(address(path) for path in paths[:3])
    return names if len(paths) <= 3 else f"{names} and {len(paths) - 3} more"
