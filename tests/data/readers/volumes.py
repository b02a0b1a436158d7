"""A volume in every orientation, and its slices as they are looked at."""

import itertools

import numpy as np

SHAPE = (5, 7, 4)
CODES = [
    "".join(code)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for code in itertools.product(*order)
]
AXES = ("axial", "coronal", "sagittal")
SIZES = (2.0, 3.0, 4.0)  # of a voxel in mm: to the right, to anterior, to superior
ORIGIN = (-10.0, 20.0, 5.0)


def seen(volume, axis, number):
    """A slice of a canonical volume as it is looked at: a loop over its pixels."""
    right, front, top = (side - 1 for side in volume.shape)
    rows, columns = {"axial": (1, 0), "coronal": (2, 0), "sagittal": (2, 1)}[axis]
    image = np.empty((volume.shape[rows], volume.shape[columns]))
    for row, column in np.ndindex(*image.shape):
        if axis == "axial":
            image[row, column] = volume[right - column, front - row, number]
        elif axis == "coronal":
            image[row, column] = volume[right - column, number, top - row]
        else:
            image[row, column] = volume[number, front - column, top - row]
    return image


def turned(canonical, code):
    """A canonical volume as it is stored with axes to where letters say.

    Returns: the stored values, and the affine from stored voxels to the patient's right, anterior
        and superior, [4, 4].
    """
    places = ["RAS".find(letter) if letter in "RAS" else "LPI".find(letter) for letter in code]
    values = canonical.transpose([*places, *range(3, canonical.ndim)])
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    affine[:3, 3] = ORIGIN
    for axis, (place, letter) in enumerate(zip(places, code, strict=True)):
        step = SIZES[place]
        if letter in "LPI":
            values = np.flip(values, axis)
            affine[place, 3] += step * (canonical.shape[place] - 1)
            step = -step
        affine[place, axis] = step
    return np.ascontiguousarray(values), affine


def check_slices(read, found, canonical, axis):
    """Every slice has the values, the spacing and the position of a canonical volume."""
    along = {"axial": 2, "coronal": 1, "sagittal": 0}[axis]
    rows, columns = {"axial": (1, 0), "coronal": (2, 0), "sagittal": (2, 1)}[axis]
    assert [ref.frame for ref in found] == list(range(canonical.shape[along]))
    for number, ref in enumerate(found):
        image = read(ref)
        np.testing.assert_allclose(image.pixels[0], seen(canonical, axis, number), rtol=1e-6)
        assert image.pixels.shape == (1, ref.height, ref.width)
        assert ref.spacing_mm == (SIZES[rows], SIZES[columns])
        assert ref.thickness_mm == SIZES[along]
        assert ref.position_mm == ORIGIN[along] + number * SIZES[along]
