import pickle

import numpy as np
import pytest

from dino_x.data.image import Reading, Unreadable
from dino_x.data.readers.registry import read, refs


@pytest.fixture
def write(tmp_path):
    def write(values, **more):
        np.save(tmp_path / "a.npy", values, **more)
        return tmp_path / "a.npy"

    return write


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    "shape", [(5, 4), (5, 4, 1), (5, 4, 3), (2, 5, 4), (2, 5, 4, 1), (2, 5, 4, 3)]
)
@pytest.mark.parametrize("dtype", [np.uint8, ">u2", np.int32, np.float16, np.float64])
def test_every_shape_gives_its_images(write, rng, shape, dtype, order):
    values = np.asarray((rng.normal(size=shape) * 40 + 100).astype(dtype), order=order)
    stack = values[None] if len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 3)) else values
    stack = stack[..., None] if stack.ndim == 3 else stack
    found = refs(write(values))
    assert len(found) == len(stack)
    for ref, wanted in zip(found, stack, strict=True):
        image = read(ref)
        np.testing.assert_allclose(image.pixels, wanted.transpose(2, 0, 1), rtol=1e-6)
        assert (ref.height, ref.width) == wanted.shape[:2]
        assert (image.window == (0, 255)) == (dtype == np.uint8)
    assert len({ref.series for ref in found}) == 1
    assert (found[0].series is None) == (len(found) == 1)


def test_true_is_white(write):
    image = read(write(np.eye(3, dtype=bool)))
    assert image.pixels.max() == 255
    assert image.window == (0, 255)


def test_values_of_ct_are_hounsfield_units_if_it_is_said(write):
    path = write(np.linspace(-500, 100, 12).reshape(3, 4))
    assert read(refs(path, Reading(modality="CT"))[0]).window == (-1000, 1000)
    assert read(path).window != (-1000, 1000)


class Trap:
    def __reduce__(self):
        return print, ("pickled code ran",)


def test_pickles_are_never_loaded(tmp_path, capsys):
    path = tmp_path / "a.npy"
    np.save(path, np.array([[Trap()]], dtype=object), allow_pickle=True)
    with pytest.raises(Unreadable, match="whole or real numbers"):
        read(path)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(Unreadable, match="not an image"):
        read(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros(5), r"not \[H, W\]"),
        (np.zeros((0, 4)), r"not \[H, W\]"),
        (np.zeros((2, 3, 4, 5)), "set data.axes"),
        (np.zeros((2, 3), complex), "whole or real numbers"),
        (np.zeros((2, 3), "datetime64[s]"), "whole or real numbers"),
        (np.zeros((2, 3), [("a", "u1")]), "whole or real numbers"),
    ],
)
def test_what_is_no_image(write, values, reason):
    with pytest.raises(Unreadable, match=reason):
        refs(write(values))


def test_lies_about_the_size(write):
    path = write(np.zeros((5, 4)))
    content = path.read_bytes()
    for lie, reason in ((b"(999999999, 4)", "truncated: 160 of"), (b"(-5, -4)", "truncated")):
        shape = b"(5, 4)"
        padding = len(lie) - len(shape)
        head, tail = content.split(shape)
        path.write_bytes(head + lie + tail.replace(b" " * padding, b"", 1))
        with pytest.raises(Unreadable, match=reason):
            refs(path)
    path.write_bytes(content[:20])
    with pytest.raises(Unreadable, match="damaged"):
        refs(path)
