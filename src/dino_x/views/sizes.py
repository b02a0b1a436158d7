"""Which crop sizes a step has: one set for all its images, drawn from those of the options."""

import numpy as np

from dino_x.config.options import CropSizes, Options
from dino_x.randomness import generator

GLOBAL_VIEWS = 2  # global crops an image


def crop_sizes(options: Options) -> list[CropSizes]:
    """Every set of sizes a step may have; one, unless ``views.sizes`` names several."""
    views, gram = options.views, options.gram
    sets = views.sizes or [CropSizes(global_size=views.global_size, local_size=views.local_size)]
    return [
        one.model_copy(update={"gram_size": one.gram_size or gram.size or one.global_size})
        for one in sets
    ]


def draw_sizes(options: Options, step: int) -> CropSizes:
    """The sizes of a step, from (seed, step) alone, in proportion to their weights.

    One set a step: all its crops of a kind have one size, so a micro-batch stays a plain slice.
    """
    sets = crop_sizes(options)
    weights = np.array([one.weight for one in sets])
    rng = generator(options.train.seed, step, "sizes")
    return sets[int(rng.choice(len(sets), p=weights / weights.sum()))]
