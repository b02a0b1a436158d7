import nibabel
import numpy as np
import pytest

from dino_x.data.image import Reading, Unreadable
from dino_x.data.readers.registry import looks_like_image, read, refs
from tests.data.readers.volumes import AXES, CODES, SHAPE, check_slices, turned


@pytest.fixture
def write(tmp_path):
    def write(values, name="a.mgz", affine=None):
        path = tmp_path / name
        nibabel.save(nibabel.MGHImage(values, np.eye(4) if affine is None else affine), path)
        return path

    return write


@pytest.mark.parametrize("axis", AXES)
def test_volumes_of_every_orientation_are_seen_alike(write, rng, axis):
    canonical = rng.integers(0, 900, SHAPE, dtype=np.int16)
    for code in CODES:
        stored, affine = turned(canonical, code)
        found = refs(write(stored, affine=affine), Reading(axis))
        check_slices(read, found, canonical, axis)


@pytest.mark.parametrize("name", ["a.mgh", "a.mgz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_values_are_those_of_nibabel(write, rng, dtype, name):
    values = (rng.normal(size=(*SHAPE, 2)) * 20 + 100).astype(dtype)
    path = write(values, name)
    found = refs(path)
    assert len({ref.series for ref in found}) == 2
    wanted = nibabel.load(path).get_fdata()
    np.testing.assert_allclose(read(found[6]).pixels[0], wanted[::-1, ::-1, 2, 1].T, rtol=1e-6)


def test_what_freesurfer_labels_is_a_segmentation(write, rng):
    values = rng.integers(0, 99, SHAPE, dtype=np.int32)
    kinds = {name: refs(write(values, name))[0].kind for name in
             ("T1.mgz", "brain.mgz", "aseg.mgz", "aparc+aseg.mgz", "lh.ribbon.mgz")}  # fmt: skip
    assert kinds == {
        "T1.mgz": None,
        "brain.mgz": None,
        "aseg.mgz": "segmentation",
        "aparc+aseg.mgz": "segmentation",
        "lh.ribbon.mgz": "segmentation",
    }


def test_it_is_told_by_content(write, rng):
    path = write(rng.integers(0, 99, SHAPE, dtype=np.int16))
    plain = path.rename(path.with_name("scan"))
    assert looks_like_image(plain)
    assert refs(plain)[0].format == "MGH"


@pytest.mark.parametrize("name", ["a.mgh", "a.mgz"])
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_truncated(write, rng, name, share):
    path = write(rng.normal(size=(20, 20, 20)).astype(np.float32), name)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(Unreadable, match="truncated|damaged"):
        read(path)


@pytest.mark.parametrize(
    ("at", "content", "reason"),
    [
        (4, b"\x00\x00\x75\x30" * 3, "truncated"),
        (30, bytes(4), "orientation is not valid"),
        (30, b"\x7f\xc0\x00\x00", "orientation is not valid"),
    ],
)
def test_a_header_that_cannot_be_true_is_refused(write, at, content, reason):
    path = write(np.zeros(SHAPE, np.int16), "a.mgh")
    whole = bytearray(path.read_bytes())
    whole[at : at + len(content)] = content
    path.write_bytes(whole)
    with pytest.raises(Unreadable, match=reason):
        refs(path)
