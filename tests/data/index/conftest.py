"""Labelled images, as the tests of the evaluation use them."""

from tests.evaluation.conftest import images  # noqa: F401 a fixture
