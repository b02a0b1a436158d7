"""In which order a run sees its images: kept, or, for very many of them, computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dino_x.data.image import ImageRef
from dino_x.data.index.chosen import Chosen
from dino_x.data.index.layout import begins, chunk_bounds
from dino_x.data.index.rows import Rows
from dino_x.data.loading.dealing import Layout
from dino_x.data.loading.sampler import COMPUTED_FROM, Strata, draws_of, strata_of


def order_of(
    rows: Sequence[ImageRef],
    weights: str | Sequence[float] = "size",
    patients: Mapping[Path, str] | None = None,
) -> Strata | Layout | None:
    """What decides which images come together in a step, see `sampler.sample_indices`.

    Args:
        rows: n images.
        weights: of the sources, as `sampler.strata_of` takes them.
        patients: keys of patients of files that do not name theirs. Of very many images in an
            index these do not count.

    Returns: `Strata` for fewer than `COMPUTED_FROM` images, else a `Layout`; None if nothing is
        known that matters.

    Raises: ValueError if no source with images has a weight above 0.
    """
    if len(rows) < COMPUTED_FROM:
        return strata_of(rows, weights, patients)
    if isinstance(rows, Rows):
        return layout_of_rows(rows, weights)
    strata = strata_of(rows, weights, patients)
    return None if strata is None else layout_of(strata)


def layout_of(strata: Strata) -> Layout:
    """Images in memory, laid out as `strata` has them."""
    laid, images = strata.rows, len(strata.rows)
    new_patient = np.zeros(images, dtype=bool)
    new_patient[strata.start] = begins(strata.patient)
    if strata.draws is None:
        return Layout(laid.__getitem__, chunk_bounds(np.flatnonzero(new_patient), images))
    patient = np.empty(images, np.int64)
    source = np.empty(images, np.int64)
    patient[laid] = np.cumsum(new_patient)
    for number, members in enumerate(strata.members):
        source[members] = number
    laid = laid[np.argsort(source[laid], kind="stable")]
    new_source = begins(source[laid])
    bounds = chunk_bounds(np.flatnonzero(begins(patient[laid]) | new_source), images)
    starts = np.flatnonzero(new_source)
    return Layout(laid.__getitem__, _also(bounds, starts), starts, strata.draws)


def layout_of_rows(rows: Rows, weights: str | Sequence[float]) -> Layout | None:
    """The images of a large index, laid out as its row file has them."""
    file = rows.file
    draws, present = None, np.zeros(0, np.int64)
    if weights != "size" and file.has("sources"):
        counts = np.zeros(len(rows.files.sources), np.int64)
        for piece in rows.source_pieces():
            counts += np.bincount(piece, minlength=len(counts))
        present = np.flatnonzero(counts)
        draws = draws_of(present, counts[present], weights)
    if draws is None and not rows.known:
        return None
    name = "" if draws is None else " by source"
    bounds = file.array(f"bounds{name}")
    starts = np.zeros(1, np.int64)
    if draws is not None:
        starts = file.array("source begins")[np.isin(file.array("sources present"), present)]
        bounds = _also(bounds, starts)
    chosen = rows.chosen
    if chosen is None:
        return Layout(lambda at: rows.numbers_at(f"laid{name}", at), bounds, starts, draws)

    def taken(of: Chosen) -> Iterator[np.ndarray]:
        yield from (of.contains(piece.astype(np.int64)) for piece in file.pieces(f"laid{name}"))

    laid = Chosen.of(taken(chosen))

    def rows_at(places: np.ndarray) -> np.ndarray:
        return rows.numbers_here(rows.numbers_at(f"laid{name}", laid.nth(places)))

    return Layout(rows_at, laid.rank(bounds), laid.rank(starts), draws)


def _also(bounds: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The bounds of chunks, so that no chunk is of two sources."""
    return np.union1d(bounds, starts)
