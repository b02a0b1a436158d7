"""Channels are never dropped: a model that takes other ones than an image has does not get it."""

from __future__ import annotations

from collections import Counter

from dino_x.data.index.listed import LISTED_UP_TO, Index, Skipped
from dino_x.data.index.rows import counts_of, having
from dino_x.errors import UserError


def refuse_channels(index: Index, channels: int) -> int:
    """Take images out of an index whose channels a model cannot take, and list them as skipped.

    A model of 1 or 3 channels takes grey and colour: colour becomes luma, and grey is repeated. Any
    other model takes images of just its number of channels.

    Args:
        index: the images.
        channels: of the model.

    Returns: the number of images taken out.

    Raises: UserError if nothing is left.
    """
    takes = {1, 3} if channels in (1, 3) else {channels}
    counts = counts_of(index.rows, "channels")
    others = Counter({has: n for (has,), n in counts.items() if has not in takes})
    if not others:
        return 0
    other = having(index.rows, "channels", set(others))
    usual = others.most_common(1)[0][0]
    reason = _reason(usual, channels)
    if len(other) == len(index.rows):
        raise UserError(f"no image is left to train on; {other[0].path} has {reason}")
    index.notes.append(
        f"{len(other):,} images are left out, such as {other[0].path}: it has"
        f" {_reason(other[0].channels, channels)}"
    )
    if len(other) <= LISTED_UP_TO:
        listed = dict.fromkeys(Skipped(ref.path, _reason(ref.channels, channels)) for ref in other)
        index.skipped = sorted([*index.skipped, *listed], key=lambda skip: skip.path)
    else:
        index.notes.append(
            f"skipped.csv does not list these {len(other):,} images: the index has their number of"
            " channels in the column 'channels'"
        )
    index.rows = having(index.rows, "channels", takes)
    return len(other)


def _reason(has: int, takes: int) -> str:
    return (
        f"{has} channels, and the model takes {takes}; model.channels={has} trains on all channels"
        " of such images"
    )
