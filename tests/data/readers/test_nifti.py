import gzip
import threading
from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff

from dino_x.data.image import Reading, Unreadable
from dino_x.data.readers import packed, registry, volume
from dino_x.data.readers.registry import looks_like_image, read, refs
from dino_x.data.storage.unpacked import VolumeCache
from tests.data.readers.volumes import CODES, SHAPE, seen


@pytest.fixture
def write(tmp_path):
    """Write an array as NIfTI, with voxels of 2 x 3 x 4 mm in the axes that it names."""

    def write(values, name="a.nii.gz", codes="RAS", header=None, kind=nibabel.Nifti1Image):
        to_canonical = axcodes2ornt(codes)
        sizes = np.array([2.0, 3.0, 4.0, 1.0])  # of the canonical axes
        affine = np.diag(sizes)
        affine[:3, 3] = -10.0, 20.0, 5.0
        stored = affine @ np.linalg.inv(inv_ornt_aff(to_canonical, values.shape[:3]))
        path = tmp_path / name
        nibabel.save(kind(values, stored, header), path)
        return path

    return write


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("codes", CODES)
def test_slices_are_nibabels_canonical_volume_as_it_is_looked_at(write, rng, codes, axis):
    path = write(rng.normal(size=SHAPE).astype(np.float32), codes=codes)
    canonical = nibabel.as_closest_canonical(nibabel.load(path))
    volume, zooms = canonical.get_fdata(), canonical.header.get_zooms()
    found = refs(path, Reading(axis))
    along = {"axial": 2, "coronal": 1, "sagittal": 0}[axis]
    rows, columns = {"axial": (1, 0), "coronal": (2, 0), "sagittal": (2, 1)}[axis]
    assert [ref.frame for ref in found] == list(range(volume.shape[along]))
    for number, ref in enumerate(found):
        image, wanted = read(ref), seen(volume, axis, number)
        assert image.pixels.shape == (1, ref.height, ref.width)
        np.testing.assert_allclose(image.pixels[0], wanted, rtol=1e-6)
        assert image.spacing_mm == ref.spacing_mm == pytest.approx((zooms[rows], zooms[columns]))
        assert ref.thickness_mm == pytest.approx(zooms[along])
        voxel = [0, 0, 0, 1]
        voxel[along] = number
        assert ref.position_mm == pytest.approx((canonical.affine @ voxel)[along])


def test_the_patients_right_is_on_the_left_and_anterior_on_top(write):
    volume = np.zeros(SHAPE, np.uint8)
    volume[-1, -1, 0] = 200  # most to the right and to anterior, in the lowest slice
    path = write(volume)
    image = read(refs(path)[0]).pixels[0]
    assert image[0, 0] == 200
    assert image.sum() == 200


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, ">i2", np.float32, np.float64])
def test_values_are_scaled_as_nibabel_does(write, rng, dtype, name, kind):
    values = (rng.normal(size=SHAPE) * 50 + 100).astype(dtype)
    path = write(values, name, kind=kind)
    header = kind.header_class(endianness=">" if dtype == ">i2" else "<")
    header.set_data_dtype(np.dtype(dtype))
    image = kind(values, np.diag([2.0, 3, 4, 1]), header)
    image.header.set_slope_inter(0.37, -12.5)
    nibabel.save(image, path)
    wanted = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata()
    got = np.stack([read(ref).pixels[0] for ref in refs(path)], axis=-1)
    np.testing.assert_allclose(got.transpose(1, 0, 2)[::-1, ::-1], wanted, rtol=1e-6, atol=1e-6)
    (slope,) = {ref.slope for ref in refs(path)}
    assert slope == pytest.approx(nibabel.load(path).dataobj.slope)


def test_time_is_the_last_dimension_and_each_volume_a_series(write, rng):
    values = rng.integers(0, 1000, (*SHAPE, 3), dtype=np.int16)
    found = refs(write(values))
    assert len(found) == SHAPE[2] * 3
    assert len({ref.series for ref in found}) == 3
    assert len({ref.series for ref in found[: SHAPE[2]]}) == 1
    np.testing.assert_array_equal(
        read(found[SHAPE[2] + 2]).pixels[0], seen(values[..., 1], "axial", 2)
    )
    assert found[SHAPE[2] + 2].position_mm == found[2].position_mm


def test_a_plane_is_a_volume_of_one_slice(tmp_path):
    values = np.arange(12, dtype=np.int16).reshape(4, 3)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    (ref,) = refs(tmp_path / "a.nii")
    np.testing.assert_array_equal(read(ref).pixels[0], values[::-1, ::-1].T)


def test_metres_are_millimetres(write):
    header = nibabel.Nifti1Header()
    header.set_xyzt_units("meter")
    (ref, *_) = refs(write(np.zeros(SHAPE, np.int16), header=header))
    assert ref.spacing_mm == pytest.approx((3000, 2000))


@pytest.mark.parametrize(
    ("modality", "window"), [("CT", (-1000, 1000)), ("MR", "percentiles"), (None, "percentiles")]
)
def test_window_follows_the_modality_that_is_said(write, rng, modality, window):
    values = rng.integers(-1000, 2000, SHAPE, dtype=np.int16)
    (ref, *_) = refs(write(values), Reading(modality=modality))
    image = read(ref)
    assert ref.modality == image.modality == modality
    if window == "percentiles":
        window = tuple(np.percentile(values[..., 0], (0.5, 99.5)))
    assert image.window == pytest.approx(window)


def test_it_is_told_by_content_whatever_it_is_called(write, rng):
    values = rng.integers(0, 9, SHAPE, dtype=np.int16)
    for name in ("a.nii", "b.nii.gz"):
        path = write(values, name)
        plain = path.rename(path.with_name(f"{name[0]}-scan"))
        assert looks_like_image(plain)
        np.testing.assert_array_equal(read(plain).pixels[0], seen(values, "axial", 0))


def test_a_compressed_volume_is_unpacked_once(write, rng, monkeypatch):
    path = write(rng.integers(0, 9, (6, 6, 30), dtype=np.int16))
    unpacked = []
    unpack = volume._unpack
    monkeypatch.setattr(volume, "_unpack", lambda *given: unpacked.append(1) or unpack(*given))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, refs(path)))
    assert len(unpacked) == 1


def test_volumes_are_dropped_oldest_first_and_broken_ones_remembered():
    cache = VolumeCache(limit_bytes=250)
    made = []

    def of(which):
        return cache.get(which, lambda: made.append(which) or np.full(100, which, np.uint8))

    for which in (1, 2, 1, 3, 1, 2):
        assert (of(which) == which).all()
    assert made == [1, 2, 3, 2]
    assert len(cache) == 2

    def broken():
        made.append("broken")
        raise Unreadable("truncated NIfTI")

    for _ in range(2):
        with pytest.raises(Unreadable, match="truncated"):
            cache.get("b", broken)
    assert made.count("broken") == 1


def test_two_threads_wait_for_one_unpacking():
    cache, started, go = VolumeCache(1000), threading.Event(), threading.Event()
    made = []

    def slow():
        started.set()
        go.wait(5)
        made.append(1)
        return np.zeros(1)

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(cache.get, "a", slow)
        started.wait(5)
        other = pool.submit(cache.get, "a", slow)
        go.set()
        assert one.result(5) is other.result(5)
    assert made == [1]


def edited(path, **fields):
    """Write a NIfTI-1 header anew, lies and all."""
    content = path.read_bytes()
    packed = path.suffix == ".gz"
    content = bytearray(gzip.decompress(content) if packed else content)
    header = np.frombuffer(content, nibabel.nifti1.header_dtype, 1)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(gzip.compress(bytes(content)) if packed else bytes(content))


BOMB = [3, 1000, 1000, 300, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("a.nii", {"dim": [3, 5, 7, 5, 1, 1, 1, 1]}, r"truncated: \d+ of \d+ bytes"),
        ("a.nii.gz", {"dim": BOMB}, "claims more than there is"),
        ("a.nii.gz", {"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, "more than"),
        ("a.nii", {"dim": [3, 5, -7, 4, 1, 1, 1, 1]}, "no pixels|damaged"),
        ("a.nii", {"dim": [5, 5, 7, 2, 1, 2, 1, 1]}, "more than four dimensions"),
        ("a.nii", {"datatype": 128, "bitpix": 24}, "colour or complex"),
        ("a.nii", {"datatype": 32, "bitpix": 64}, "colour or complex"),
        ("a.nii", {"datatype": 7777}, "damaged"),
        ("a.nii", {"sform_code": 1, "srow_x": [0, 0, 0, 0]}, "orientation is not valid"),
        ("a.nii", {"sform_code": 1, "srow_x": [np.nan] * 4}, "orientation is not valid|damaged"),
        ("a.nii", {"magic": b"ni1"}, "two files .* join them into a .nii"),
        ("a.nii", {"vox_offset": 1e9}, "truncated"),
    ],
)
def test_a_header_that_cannot_be_true_is_refused(write, name, fields, reason):
    path = write(np.zeros(SHAPE, np.int16), name)
    edited(path, **fields)
    with pytest.raises(Unreadable, match=reason):
        read(path)


def test_a_bomb_is_refused_before_it_is_unpacked(write, monkeypatch):
    path = write(np.zeros((100, 100, 100), np.int16))
    monkeypatch.setattr(volume, "MAX_UNPACKED", 2**20)
    with pytest.raises(Unreadable, match=r"unpacks to 1 MB, more than the 1 MB.*gunzip"):
        refs(path)


def test_no_more_is_unpacked_than_the_header_says(write, monkeypatch):
    """Behind two small slices follow 50 MB of zeros."""
    path = write(np.ones((5, 7, 2), np.int16))
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"\0" * 50_000_000))
    got = 0

    class Counting(gzip.GzipFile):
        def readinto(self, buffer):
            nonlocal got
            count = super().readinto(buffer)
            got += count
            return count

    monkeypatch.setattr(packed.gzip, "GzipFile", Counting)
    assert read(path).pixels.sum() == 35
    assert got < 10_000


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_truncated(write, rng, name, share):
    path = write(rng.normal(size=(20, 20, 20)), name)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(Unreadable, match="truncated|damaged"):
        read(path)


def test_a_wrong_checksum_is_damage(write, rng):
    path = write(rng.normal(size=(20, 20, 20)))
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    with pytest.raises(Unreadable, match="damaged NIfTI"):
        read(path)


def test_gzip_of_something_else_is_not_nifti(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(b"words " * 200))
    with pytest.raises(Unreadable, match="not a NIfTI file"):
        refs(path)
    path = path.rename(tmp_path / "a.txt.gz")
    assert not looks_like_image(path)


def test_texts_of_the_header_stay_in_it(write):
    header = nibabel.Nifti1Header()
    header["descrip"], header["db_name"] = b"Zebedee^Quixote", b"PID-771144"
    path = write(np.zeros(SHAPE, np.int16), header=header)
    (ref, *_) = registry.refs(path)
    assert "Zebedee" not in repr(ref)
    assert "771144" not in repr(ref)
