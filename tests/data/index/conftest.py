"""The labelled images of the tests of evaluation, which labels are tested on, too."""

from tests.evaluation.conftest import images

__all__ = ["images"]
