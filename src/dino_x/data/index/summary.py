"""A summary of images for a person, in a few lines."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median

from dino_x.data.image import ImageRef, remarks_in
from dino_x.data.index.headers import Record, content_key, whole
from dino_x.data.index.passed_over import suffix_of
from dino_x.data.readers.several_files import values_in

_MOST_SHOWN, _MOST_FORMATS = 4, 12


def duplicates(records: Sequence[Record]) -> list[list[Path]]:
    """Find files of the same content, in groups of two or more.

    Samples of their bytes were hashed when the headers were read; only files whose samples agree
    are read as a whole.
    """
    alike: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.content is not None and record.size:
            alike[record.content].append(record)
    equal: defaultdict[str, list[Path]] = defaultdict(list)
    for group in alike.values():
        if len(group) > 1:
            for record in group:
                digest = content_key(record.path, record.format, whole)
                if digest is not None:
                    equal[digest].append(record.path)
    return [paths for paths in equal.values() if len(paths) > 1]


def summary(records: Sequence[Record], named: Callable[[Path], object] = str) -> dict[str, str]:
    """The lines of a summary of some files, by their titles.

    Args:
        records: all files, including unusable ones.
        named: how a file is named.
    """
    every = [ref for record in records for ref in record.refs]
    refs = [ref for ref in every if ref.kind is None]
    usable = sum(any(ref.kind is None for ref in record.refs) for record in records)
    lines = {"images": f"{len(refs):,} in {usable:,} files" if refs else "none"}
    if refs:
        lines |= {
            "patients": _keys(refs, lambda ref: ref.patient),
            "series": _keys(refs, lambda ref: ref.series),
            "formats": _counts((ref.format for ref in refs), _MOST_FORMATS),
            "modalities": _counts(ref.modality for ref in refs),
            "sizes": _counts(f"{ref.height} x {ref.width}" for ref in refs),
            "spacing": _range(ref.spacing_mm[0] if ref.spacing_mm else None for ref in refs),
            "thickness": _range(ref.thickness_mm for ref in refs),
        }
        if any(ref.body_part for ref in refs):
            lines["body parts"] = _counts(ref.body_part for ref in refs)
        if any(record.label for record in records):
            lines["labels"] = _counts(record.label for record in records for _ in record.refs)
    lines |= _no_views(records, every)
    copies = duplicates(records)
    if copies:
        second = copies[0][1]
        extra = sum(len(paths) - 1 for paths in copies)
        are = "file is a copy of another" if extra == 1 else "files are copies of others"
        lines["duplicates"] = f"{extra:,} {are}, such as {named(second)}"
    else:
        lines["duplicates"] = "none"
    return lines


def _no_views(records: Sequence[Record], refs: Sequence[ImageRef]) -> dict[str, str]:
    """The lines of what is no view of anatomy: images that are left out, and files without any."""
    lines = {}
    kinds = Counter(ref.kind for ref in refs if ref.kind is not None)
    if kinds:
        lines["left out"] = f"{_counts(kinds.elements())}; data.take takes them"
    remarks = Counter(one for ref in refs for one in remarks_in(ref.remark))
    if remarks:
        lines["remarks"] = _counts(remarks.elements())
    reports = Counter(
        str(record.unusable).partition(": ")[2] for record in records if record.holds_no_image
    )
    if reports:
        lines["no image"] = f"{reports.total():,} files: {_counts(reports.elements())}"
    return lines


def values_of_headers(records: Iterable[Record]) -> Counter[str]:
    """How many files, by suffix, hold the values of images whose headers are files of their own."""
    values = (values_in(record.path, record.refs[0].format) for record in records if record.refs)
    return Counter(suffix_of(path.name) for path in set(values) if path is not None)


def unusable(records: Iterable[Record]) -> list[tuple[int, str, Path]]:
    """Reasons why files cannot be used, the most frequent first: (files, reason, one of them)."""
    groups: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.unusable is not None and not record.holds_no_image:
            groups[re.sub(r"\d[\d,]*", "N", record.unusable)].append(record)
    found = []
    for reason, group in groups.items():
        first = group[0]
        if len(group) == 1:
            reason = first.unusable or ""
        found.append((len(group), reason, first.path))
    return sorted(found, key=lambda line: -line[0])


def _keys(refs: Sequence[ImageRef], key: Callable[[ImageRef], str | None]) -> str:
    images = Counter(found for ref in refs if (found := key(ref)) is not None)
    unknown = len(refs) - images.total()
    if not images:
        return "not known"
    each = f", of {median(images.values()):g} images in the median" if len(images) > 1 else ""
    return f"{len(images):,}{each}{_unknown(unknown)}"


def _counts(values: Iterable[str | None], most: int = _MOST_SHOWN) -> str:
    counts = Counter(values)
    unknown = counts.pop(None, 0)
    if not counts:
        return "not known"
    shown = counts.most_common(most)
    more = len(counts) - len(shown)
    text = ", ".join(f"{name} ({count:,})" for name, count in shown)
    return text + (f" and {more} more" if more else "") + _unknown(unknown)


def _range(values: Iterable[float | None]) -> str:
    every = list(values)
    known = [value for value in every if value is not None]
    if not known:
        return "not known"
    low, high = min(known), max(known)
    if f"{low:.3g}" == f"{high:.3g}":
        text = f"{low:.3g} mm"
    else:
        text = f"{low:.3g} to {high:.3g} mm, {median(known):.3g} in the median"
    return text + _unknown(len(every) - len(known))


def _unknown(count: int) -> str:
    return f"; unknown for {count:,} images" if count else ""
