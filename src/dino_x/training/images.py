"""Which images a run trains on, and what can be refused before any of them is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dino_x.config.model_sizes import is_size
from dino_x.config.options import DataOptions, Options
from dino_x.config.presets import check
from dino_x.data.image import Reading
from dino_x.data.index.channels import refuse_channels
from dino_x.data.index.index import Index, build_index
from dino_x.data.index.labels import Labelled, keys_of_patients, load_labels
from dino_x.data.index.rows import Rows, filtered
from dino_x.data.loading.neighbours import refuse_uneven
from dino_x.data.loading.sampler import COMPUTED_FROM
from dino_x.data.readers.decoding import decoding_in
from dino_x.distributed.shares import check_enough
from dino_x.losses.ranks import Ranks
from dino_x.model.backbone import CHANNELS, Backbone, build_backbone
from dino_x.progress import progress_bar
from dino_x.runs.checkpoint_model import make_model_at
from dino_x.runs.start import refuse_unnamed_code
from dino_x.training.loggers import check_logger
from dino_x.views.extra import load_extra


@dataclass(frozen=True)
class Early:
    """What is known before images are read.

    Attributes:
        options: as far as the user set them.
        backbone: the student's, if its weights had to be loaded.
    """

    options: Options
    backbone: Backbone | None

    @property
    def channels(self) -> int:
        """The number of channels that the model takes."""
        if self.backbone is not None:
            return self.backbone.channels
        return self.options.model.channels or CHANNELS

    @property
    def patch_size(self) -> int | None:
        """Side of a patch of the backbone in pixels; None if its options say it."""
        if self.backbone is None:
            return None
        return self.backbone.patch_size


def early_checks(overrides: Mapping[str, Any], ranks: Ranks) -> Early:
    """Refuse what can be refused before images are read."""
    options = check(overrides)
    refuse_unnamed_code(overrides)
    if options.views.extra is not None:
        load_extra(options.views.extra)
    check_logger(options.report.log)
    check_enough(options.train.effective_batch, ranks.world_size)
    if is_size(options.model.name):
        return Early(options, None)
    if ranks.rank == 0:
        make_model_at(options.model.name)
    seed = options.train.seed
    return Early(options, build_backbone(options.model, options.views.global_size, seed))


def images_of(
    early: Early, console: Console, kept: Mapping[str, str] | None = None
) -> tuple[Index, int, Labelled | None]:
    """The images to train on, how many are held out, and the labels.

    Args:
        early: what is known before images are read.
        console: where to say what happens.
        kept: the split that the run made when it started, see ``labels.load_labels``.
    """
    options = early.options
    index = read_index(options, console)
    refuse_channels(index, early.channels)
    held_out, labelled = hold_out(options, index, kept)
    if options.data.slices == 3:
        refuse_uneven(index)
    return index, held_out, labelled


def read_index(options: Options, console: Console) -> Index:
    """All images that can be read, with a progress bar."""
    decoding = decoding_in(options.data.decode_in)
    with decoding, progress_bar(console, "reading images") as on_progress:
        return build_index(
            [Path(path) for path in options.data.paths],
            verify=options.data.verify,
            workers=options.data.workers,
            on_progress=on_progress,
            reading=Reading.of(options.data),
            kept_in=Path(options.data.index) if options.data.index else None,
            where=options.data.where,
            decoding=decoding,
            take=options.data.take,
        )


def take_patients(index: Index, data: DataOptions) -> None:
    """Take the patients that the table of labels names into the index, where files name none."""
    assert data.labels is not None
    found = keys_of_patients(data.labels, index.rows, data.paths, data.label_column)
    if found and isinstance(index.rows, Rows) and len(index) >= COMPUTED_FROM:
        index.notes.append(
            f"the patients of {len(found):,} files that {data.labels} names do not keep images"
            f" apart in training: from {COMPUTED_FROM:,} images of an index on, patients are those"
            " of headers"
        )
        return
    index.patients = found


def hold_out(
    options: Options, index: Index, kept: Mapping[str, str] | None = None
) -> tuple[int, Labelled | None]:
    """Take the images that the labels are tested on out of the index.

    Returns: how many they are, and the labelled images, if there are labels.

    Raises: UserError if the labels cannot be used: now, not after training.
    """
    data = options.data
    if not data.labels:
        return 0, None
    labelled = load_labels(
        data.labels,
        index.rows,
        data.paths,
        label_column=data.label_column,
        damaged=index.damaged,
        kept=kept,
    )
    if data.label_patients:
        take_patients(index, data)
    if not data.hold_out:
        return 0, labelled
    tested = {ref for ref, test in zip(labelled.refs, labelled.is_test, strict=True) if test}
    wanted = np.fromiter((ref not in tested for ref in index.rows), bool, len(index))
    index.rows = filtered(index.rows, wanted)
    return len(tested), labelled
