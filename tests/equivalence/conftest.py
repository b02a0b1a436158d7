"""One step of a run in float64, whose gradients the tests compare."""

from functools import partial

import pytest

from tests.equivalence.bench import Bench, relative_error

__all__ = ["Bench", "relative_error"]


@pytest.fixture
def bench(device):
    """Makes a ``Bench`` on each device; keyword arguments are settings as ``section__key``."""
    return partial(Bench, device)
