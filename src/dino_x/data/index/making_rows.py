"""Making the row file of an index: once, a million rows at a time.

What has to be in memory at a time is about 50 bytes an image, for the order by patient and series.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dino_x.data.identity import fingerprint
from dino_x.data.image import WITHOUT_IMAGE
from dino_x.data.index import layout
from dino_x.data.index.index_files import IndexFiles
from dino_x.data.index.patients import one_patient_in_words, sole_issuers
from dino_x.data.index.row_file import (
    BLOCK_SCHEMA,
    ROWS_IN_BLOCK,
    SUFFIX,
    CutOffError,
    RowFile,
    RowFileWriter,
)
from dino_x.data.index.table import SCHEMA
from dino_x.data.storage.archives import is_remote
from dino_x.files import name_of, write_atomically

Progress = Callable[[int, int], None]

# Whole columns of these are counted: what a run asks of all its images before it starts.
COUNTED = (
    "height", "width", "channels", "spacing_row_mm", "spacing_column_mm", "kind", "remark",
)  # fmt: skip
HASHED = ("path", "frame", "height", "width")
_MOST_COUNTED = 100_000  # different rows of these; with more, columns are read where they are asked
_MOST_UNUSABLE = 100_000  # files that are listed by name
PICTURES = (".png", ".jpg", ".jpeg", ".bmp")


def opened_rows(files: IndexFiles, on_progress: Progress | None = None) -> tuple[RowFile, bool]:
    """The row file of some indexes, and whether it had to be made now.

    It lies beside the first index; if that folder cannot be written to, below the user's folder of
    caches (``XDG_CACHE_HOME``, or ``~/.cache``).

    Args:
        files: the indexes.
        on_progress: called with (done, total) rows while it is made.

    Raises: OSError if it can be written to neither place, UserError for a damaged index.
    """
    states = [list(state) for state in files.states()]
    places = places_of(files)
    for place in places:
        try:
            file = RowFile(place)
        except (OSError, CutOffError, ValueError, KeyError, TypeError):
            continue
        if file.facts.get("made_from") == states:
            return file, False
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, lambda path: _write(files, states, path, on_progress))
        except OSError:
            if place == places[-1]:
                raise
            continue
        return RowFile(place), True
    raise OSError("there is no place for it")


def places_of(files: IndexFiles) -> list[Path]:
    """Where the row file of some indexes may lie, the better place first."""
    every = "|".join(str(path.absolute()) for path in files.paths)
    digest = hashlib.blake2b(os.fsencode(every), digest_size=6).hexdigest()
    first = files.paths[0]
    beside = first.with_suffix(SUFFIX)
    if len(files.paths) > 1:
        beside = first.with_name(f"{first.stem}-{digest}{SUFFIX}")
    places = [beside]
    folder = os.environ.get("XDG_CACHE_HOME")
    try:
        caches = Path(folder) if folder else Path("~/.cache").expanduser()
        places.append(caches / "dino-x" / f"index-{digest}{SUFFIX}")
    except RuntimeError:  # there is no home
        pass
    return places


def _write(
    files: IndexFiles, states: list[list[Any]], path: Path, on_progress: Progress | None
) -> None:
    with path.open("wb") as file:
        made = _Made(files, RowFileWriter(file))
        made.write(on_progress)
        made.writer.close({"made_from": states, **made.facts()})


@dataclass
class _Made:
    """What is gathered of all rows while a row file is written."""

    files: IndexFiles
    writer: RowFileWriter
    images: int = 0
    unusable: list[list[Any]] = field(default_factory=list)
    unusable_files: int = 0
    without_image: int = 0
    files_in_all: int = 0
    files_with_images: int = 0
    pictures: int = 0
    in_row_groups: int = 0
    counted: pa.Table | None = None
    counts: bool = True
    patients: list[np.ndarray] = field(default_factory=list)
    series: list[np.ndarray] = field(default_factory=list)
    positions: list[np.ndarray] = field(default_factory=list)
    sources: list[np.ndarray] = field(default_factory=list)
    begins: list[np.ndarray] = field(default_factory=list)
    last_file: tuple[Any, Any] = (None, None)
    rest: pa.Table | None = None
    remark: str | None = None
    digest: Any = field(default_factory=hashlib.sha256)

    def write(self, on_progress: Progress | None) -> None:
        """Go through all rows, then write the order of the images."""
        sources = [str(source) for source in self.files.sources]
        numbers = {name: number for number, name in enumerate(sources)}
        columns = [name for name in SCHEMA.names if name not in ("content", "label")]
        alone = sole_issuers_in(self.files)
        total = sum(segment.end - segment.begin for segment in self.files.segments)
        done = 0
        for part in self.files.scan(columns, images=False):
            done += len(part)
            self._take_unusable(part)
            images = part.filter(pc.is_null(part.column("unusable"))).drop_columns(["unusable"])
            self._take(of_sole_issuers(images, alone), numbers)
            if on_progress is not None:
                on_progress(done, total)
        self._write_blocks(None)
        self._write_order()

    def _take_unusable(self, part: pa.Table) -> None:
        rows = part.filter(pc.is_valid(part.column("unusable")))
        self.unusable_files += len(rows)
        self.files_in_all += len(rows)
        for row in rows.select(["path", "source", "unusable"]).to_pylist():
            self.without_image += row["unusable"].startswith(WITHOUT_IMAGE)
            if len(self.unusable) < _MOST_UNUSABLE:
                self.unusable.append([row["source"], row["path"], row["unusable"]])

    def _take(self, images: pa.Table, numbers: dict[str, int]) -> None:
        """Write the blocks of some images, and keep what their order depends on."""
        if not len(images):
            return
        images = images.combine_chunks()
        self.images += len(images)
        of_source = images.column("source").combine_chunks()
        codes = [numbers[str(name_of(text))] for text in of_source.dictionary.to_pylist()]
        source = np.array(codes, np.int32)[of_source.indices.to_numpy(zero_copy_only=False)]
        path = images.column("path").combine_chunks()
        begin = self._file_begins(path, source)
        self.files_with_images += int(begin.sum())
        self.files_in_all += int(begin.sum())
        self.sources.append(source)
        self.begins.append(begin)
        self.patients.append(layout.keys_of_texts(images.column("patient").combine_chunks()))
        self.series.append(layout.keys_of_texts(images.column("series").combine_chunks()))
        position = images.column("position_mm").combine_chunks().fill_null(0.0)
        self.positions.append(position.to_numpy(zero_copy_only=False))
        self.pictures += int(np.count_nonzero(are_pictures(path)))
        self.in_row_groups += len(images) - images.column("row_group").null_count
        self._count(images)
        add_names(self.digest, images.select(list(HASHED)))
        self._write_blocks(images)

    def _file_begins(self, path: pa.Array, source: np.ndarray) -> np.ndarray:
        """Whether each image is the first of its file, bool [n]."""
        same = pc.equal(path[1:], path[:-1]).to_numpy(zero_copy_only=False).astype(bool)
        same &= source[1:] == source[:-1]
        first = (int(source[0]), path[0].as_py()) != self.last_file
        self.last_file = (int(source[-1]), path[-1].as_py())
        return np.append(first, ~same)

    def _count(self, images: pa.Table) -> None:
        """Count the images of each size, kind and so on, as long as these are not too many."""
        if not self.counts:
            return
        found = counted(images.select(list(COUNTED)))
        if self.counted is not None:
            found = counted(pa.concat_tables([self.counted, found]))
        self.counted = found
        self.counts = len(found) <= _MOST_COUNTED

    def _write_blocks(self, images: pa.Table | None) -> None:
        """Write whole blocks, and keep the rest for the next images; None: there are no more."""
        plain = None if images is None else images.select(BLOCK_SCHEMA.names).cast(BLOCK_SCHEMA)
        parts = [part for part in (self.rest, plain) if part is not None]
        if not parts:
            return
        rows = pa.concat_tables(parts).combine_chunks()
        whole = len(rows) if images is None else len(rows) // ROWS_IN_BLOCK * ROWS_IN_BLOCK
        for block in rows.slice(0, whole).to_batches(max_chunksize=ROWS_IN_BLOCK):
            self.writer.block(block)
        self.rest = rows.slice(whole)

    def _write_order(self) -> None:
        """Write the order of the images by patient and series."""
        patient = _joined(self.patients)
        every_patient = bool((patient != 0).all())
        series = _joined(self.series)
        self.writer.section("known", layout.in_bits((patient != 0) | (series != 0)))
        begins = _joined(self.begins)
        self.writer.section("file begins", layout.in_bits(begins))
        patient_of, series_of = layout.groups_of(patient, series, begins)
        if every_patient and self.images and int(patient_of.max()) == 0:
            self.remark = one_patient_in_words(int(series_of.max()) + 1)
        del patient, series, begins
        laid = layout.laid_out(patient_of, series_of, _joined(self.positions))
        self._write_layout("", laid, patient_of)
        self.writer.section("series begins", layout.in_bits(layout.begins(series_of[laid])))
        del series_of
        source = _joined(self.sources)
        if self.images and source.max() > source.min():
            self.writer.section("sources", source)
            laid = layout.source_order(laid, source)
            of_source = patient_of.astype(np.int64) * (int(source.max()) + 1) + source
            self._write_layout(" by source", laid, of_source)
            starts = np.flatnonzero(layout.begins(source[laid]))
            self.writer.section("source begins", starts)
            self.writer.section("sources present", source[laid[starts]])

    def _write_layout(self, name: str, laid: np.ndarray, patient_of: np.ndarray) -> None:
        begins = layout.begins(patient_of[laid])
        narrow = self.images < 2**32
        self.writer.section(f"laid{name}", laid.astype(np.uint32) if narrow else laid)
        self.writer.section(f"patient begins{name}", layout.in_bits(begins))
        bounds = layout.chunk_bounds(np.flatnonzero(begins), self.images)
        self.writer.section(f"bounds{name}", bounds)

    def facts(self) -> dict[str, Any]:
        """What the footer says of the rows."""
        counts = self.counted.to_pydict() if self.counts and self.counted is not None else None
        return {
            "images": self.images,
            "salt": fingerprint(),
            "sources": [str(source) for source in self.files.sources],
            "remote": any(map(is_remote, self.files.sources)),
            "files": self.files_in_all,
            "files with images": self.files_with_images,
            "unusable": self.unusable,
            "unusable files": self.unusable_files,
            "without image": self.without_image,
            "pictures": self.pictures,
            "in row groups": self.in_row_groups,
            "counts": counts,
            "remark": self.remark,
            "hash": self.digest.hexdigest(),
        }


def counted(rows: pa.Table) -> pa.Table:
    """Rows with those that are equal as one, and a column `count` of how many they are."""
    names = [name for name in rows.column_names if name != "count"]
    if "count" not in rows.column_names:
        rows = rows.append_column("count", pa.repeat(pa.scalar(1, pa.int64()), len(rows)))
    found = rows.group_by(names, use_threads=False).aggregate([("count", "sum")])
    return found.rename_columns([*names, "count"]).select([*names, "count"])


def add_names(digest: Any, images: pa.Table) -> None:
    """Add the columns `HASHED` of some images to a hash, as `rows.hash_of_rows` does."""
    if not len(images):
        return
    numbers = [images.column(name).cast(pa.string()) for name in HASHED[1:]]
    path = images.column("path")
    if pc.any(pc.match_substring(path, "\\x")).as_py():  # names that are not UTF-8
        values = zip(path.to_pylist(), *(column.to_pylist() for column in numbers), strict=True)
        for spelled, *rest in values:
            name = PurePath(str(name_of(spelled))).name
            digest.update(f"{'|'.join([name, *rest])}\n".encode(errors="replace"))
        return
    name = pc.replace_substring_regex(path, pattern="(?s)^.*/", replacement="")
    lines = pc.binary_join_element_wise(name, *numbers, "|")
    for chunk in pc.binary_join_element_wise(lines, "", "\n").chunks:
        _, offsets, data = chunk.buffers()
        ends = np.frombuffer(offsets, np.int32)[[chunk.offset, chunk.offset + len(chunk)]]
        digest.update(memoryview(data)[ends[0] : ends[1]])


def are_pictures(paths: pa.Array) -> np.ndarray:
    """Whether the suffix of each path is that of an 8-bit picture, bool [n]."""
    lower = pc.utf8_lower(paths)
    found = [pc.ends_with(lower, suffix).to_numpy(zero_copy_only=False) for suffix in PICTURES]
    return np.logical_or.reduce(found)


def is_picture(path: PurePath) -> bool:
    """Whether the suffix of a path is that of an 8-bit picture."""
    return path.suffix.lower() in PICTURES


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """The parts as one array; the list is emptied, so that they are not in memory twice."""
    whole = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    parts.clear()
    return whole


def sole_issuers_in(files: IndexFiles) -> set[str]:
    """The keys of patients' numbers that one issuer alone is known of, see patients.py."""
    columns = (part.column("patient") for part in files.scan(["patient"]))
    named = (column.filter(pc.match_substring(column, "-")) for column in columns)
    return sole_issuers(key for column in named for key in pc.unique(column).to_pylist())


def of_sole_issuers(images: pa.Table, alone: set[str]) -> pa.Table:
    """The images with one key a patient, see patients.py."""
    if not alone:
        return images
    encoded = images.column("patient").combine_chunks().dictionary_encode()
    texts = [
        text.partition("-")[0] if text.partition("-")[0] in alone else text
        for text in encoded.dictionary.to_pylist()
    ]
    merged = pa.DictionaryArray.from_arrays(encoded.indices, pa.array(texts, pa.string()))
    place = images.schema.get_field_index("patient")
    return images.set_column(place, "patient", merged.cast(pa.string()))
