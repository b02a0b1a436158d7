"""A shape that can be read in two ways is asked about, never guessed."""

import numpy as np
import pytest

from dino_x.config.presets import check
from dino_x.data.image import Reading, Unreadable
from dino_x.data.readers.axes import layout_of
from dino_x.data.readers.registry import read, refs
from dino_x.errors import UserError


@pytest.fixture
def write(tmp_path):
    def write(values):
        np.save(tmp_path / "a.npy", values)
        return tmp_path / "a.npy"

    return write


@pytest.mark.parametrize(
    ("shape", "one", "other"),
    [
        ((48, 64, 4), "48 images of 64 x 4 (data.axes=NHW)", "1 image of 48 x 64 with 4 channels"),
        ((96, 96, 20), "96 images of 96 x 20 (data.axes=NHW)", "20 images of 96 x 96"),
        ((64, 64, 64), "(data.axes=NHW)", "(data.axes=HWN)"),
        ((256, 192, 180), "256 images of 192 x 180", "180 images of 256 x 192"),
        ((3, 48, 64), "3 images of 48 x 64", "1 image of 48 x 64 with 3 channels (data.axes=CHW)"),
        ((5, 3, 48, 64), "15 images of 48 x 64", "5 images of 48 x 64 with 3 channels"),
        ((5, 20, 48, 64), "100 images of 48 x 64 (data.axes=NZHW)", "(data.axes=NCHW)"),
    ],
)
def test_a_shape_that_can_be_read_in_two_ways_is_refused_with_both(write, shape, one, other):
    with pytest.raises(Unreadable) as refused:
        refs(write(np.zeros(shape, np.uint8)))
    assert one in str(refused.value)
    assert other in str(refused.value)
    assert "set data.axes" in str(refused.value)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((48, 64), "HW"), ((48, 64, 3), "HWC"), ((48, 64, 1), "HWC"), ((1, 48, 64), "CHW"),
        ((20, 48, 64), "NHW"), ((176, 96, 96), "NHW"), ((1000, 28, 30), "NHW"),
        ((4, 48, 64), "NHW"), ((7, 48, 64, 3), "NHWC"), ((7, 1, 48, 64), "NCHW"),
    ],
)  # fmt: skip
def test_a_shape_that_can_be_read_in_one_way_is_read(shape, axes):
    assert layout_of(shape).axes == axes


@pytest.mark.parametrize(
    "axes", ["NHW", "HWN", "HWC", "CHW", "WHZ", "NWHC", "TZHW", "HWCN", "ZCHW"]
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_axes_that_are_named_are_read_as_they_are_named(write, rng, axes, order):
    lengths = {"N": 3, "Z": 4, "T": 2, "C": 5, "H": 6, "W": 7}
    values = rng.integers(0, 9999, [lengths[letter] for letter in axes]).astype(np.uint16)
    path = write(np.asarray(values, order=order))
    found = refs(path, Reading(axes=axes))
    stacked = [letter for letter in axes if letter in "NZT"]
    channels = ["C"] if "C" in axes else []
    wanted = np.einsum(f"{axes}->{''.join([*stacked, *channels, 'H', 'W'])}", values)
    wanted = wanted.reshape(-1, lengths["C"] if channels else 1, 6, 7)
    assert len(found) == len(wanted)
    for ref, image in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(read(ref).pixels, image)
        assert (ref.height, ref.width, ref.channels) == (6, 7, image.shape[0])


def test_volumes_of_one_file_are_series_of_their_own(write):
    found = refs(write(np.zeros((2, 3, 8, 9))), Reading(axes="NZHW"))
    assert len({ref.series for ref in found}) == 2
    assert len({ref.series for ref in found[:3]}) == 1


@pytest.mark.parametrize("axes", ["HW", "NHWX", "HHW", "NH", "hwn"])
def test_axes_that_are_none_are_refused(axes):
    if axes == "HW":
        assert check({"data.axes": axes}).data.axes == "HW"
        return
    with pytest.raises(UserError, match="such as HWN"):
        check({"data.axes": axes})
