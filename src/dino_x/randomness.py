"""Counted randomness: every draw is a pure function of (seed, step, purpose).

Nothing is ever taken from "wherever the generator is now", so the number of workers, the size of
the micro-batch and a restart change nothing. Draws are made for the whole effective batch and
sliced by position; a micro-batch never draws for itself.
"""

import zlib

import numpy as np


def generator(seed: int, step: int, purpose: str) -> np.random.Generator:
    """A generator of its own for one purpose in one optimizer step.

    Args:
        seed: the run's seed, >= 0.
        step: optimizer step, or epoch, or whatever counts for this purpose; >= 0.
        purpose: a word such as ``"crops"``; different purposes are independent streams.
    """
    return np.random.Generator(
        np.random.Philox(np.random.SeedSequence((seed, step, zlib.crc32(purpose.encode()))))
    )
