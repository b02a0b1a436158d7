"""Which crop sizes a step has: one set for all its images, drawn from those of the options.

The first steps may have small crops, which take less time, and the last ones the full size
(Zhang et al. 2025, "FastDINOv2", arXiv 2507.03779: three quarters and one quarter of the steps).
"""

import numpy as np

from dino_x.config.options import CropSizes, Options
from dino_x.randomness import generator

GLOBAL_VIEWS = 2  # global crops an image


def crop_sizes(options: Options) -> list[CropSizes]:
    """Every set of sizes a step may have, early or late; weights are shares of the steps."""
    early, late = early_sizes(options), late_sizes(options)
    if early is None:
        return late
    share, whole = options.views.early_share, sum(one.weight for one in late)
    sets = [early.model_copy(update={"weight": share})]
    if share < 1:
        for one in late:
            weight = (1 - share) * one.weight / whole
            sets.append(one.model_copy(update={"weight": weight}))
    return sets


def late_sizes(options: Options) -> list[CropSizes]:
    """The sets of full size; one, unless ``views.sizes`` names several."""
    views, gram = options.views, options.gram
    sets = views.sizes or [CropSizes(global_size=views.global_size, local_size=views.local_size)]
    return [
        one.model_copy(update={"gram_size": one.gram_size or gram.size or one.global_size})
        for one in sets
    ]


def early_sizes(options: Options) -> CropSizes | None:
    """The set of the first steps; None if they have those of all others."""
    views = options.views
    if not views.early_share:
        return None
    side = views.early_global_size or max(1, views.global_size // 2)
    return CropSizes(
        global_size=side,
        local_size=views.early_local_size or max(1, views.local_size // 2),
        gram_size=options.gram.size or side,
    )


def is_early(options: Options, step: int) -> bool:
    """Whether a step has small crops. What comes before the first step, too, has them.

    Args:
        options: resolved.
        step: from 0; steps that only fill the queue are counted from beyond the last.
    """
    steps = options.train.steps or 0
    return step < round(options.views.early_share * steps) or step >= steps


def draw_sizes(options: Options, step: int) -> CropSizes:
    """The sizes of a step, from (seed, step) alone, in proportion to their weights.

    One set a step: all its crops of a kind have one size, so a micro-batch stays a plain slice.
    """
    early = early_sizes(options)
    if early is not None and is_early(options, step):
        return early
    sets = late_sizes(options)
    weights = np.array([one.weight for one in sets])
    rng = generator(options.train.seed, step, "sizes")
    return sets[int(rng.choice(len(sets), p=weights / weights.sum()))]
