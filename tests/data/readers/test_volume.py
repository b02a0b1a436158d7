"""What holds for volumes of every format."""

import nibabel
import numpy as np
import pytest

from dino_x.data.image import remarks_in
from dino_x.data.readers.registry import read, refs

MHD = "NDims = 3\nDimSize = 4 5 6\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
NRRD = "NRRD0004\ntype: int16\ndimension: 3\nsizes: 4 5 6\nspacings: 1 1 1\nendian: little\n"


@pytest.mark.parametrize("extra", [0, 2, 240])
@pytest.mark.parametrize("name", ["a.nii", "a.mha", "a.nrrd"])
def test_a_header_that_counts_half_of_the_values_is_remarked_on(tmp_path, rng, name, extra):
    values = rng.integers(0, 1000, (4, 5, 6)).astype("<i2")
    path = tmp_path / name
    if name == "a.nii":
        nibabel.save(nibabel.Nifti1Image(values, np.diag([-1, -1, 1, 1])), path)
    else:
        header = MHD if name == "a.mha" else f"{NRRD}encoding: raw\n\n"
        path.write_bytes(header.encode() + values.tobytes(order="F"))
    with path.open("ab") as file:
        file.write(bytes(extra))
    found = refs(path)
    remark = "twice the values that its header counts, or more: the first are read"
    assert (remark in remarks_in(found[0].remark)) == (extra == 240)
    np.testing.assert_array_equal(read(found[0]).pixels[0], values[:, :, 0].T)
