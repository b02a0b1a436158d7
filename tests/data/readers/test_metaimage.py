import zlib

import numpy as np
import pytest

from dino_x.data.image import Reading, Unreadable
from dino_x.data.readers import packed as packed_values
from dino_x.data.readers import volume
from dino_x.data.readers.registry import looks_like_image, read, refs
from dino_x.data.readers.several_files import values_in
from tests.data.readers.volumes import AXES, CODES, SHAPE, check_slices, turned

TYPES = {"i1": "MET_CHAR", "u1": "MET_UCHAR", "i2": "MET_SHORT", "u2": "MET_USHORT",
         "i4": "MET_INT", "u4": "MET_UINT", "i8": "MET_LONG_LONG", "u8": "MET_ULONG_LONG",
         "f4": "MET_FLOAT", "f8": "MET_DOUBLE"}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    """Write values, first axis fastest, with fields of a header beside those that are needed."""

    def write(values, name="a.mha", data="LOCAL", packing="", big=False, **fields):
        stored = np.asarray(values)
        stored = stored.astype(stored.dtype.newbyteorder(">" if big else "<"))
        content = stored.tobytes("F")
        if packing == "zlib":
            content = zlib.compress(content)
        if packing == "text":
            content = "\n".join(str(value) for value in stored.ravel("F")).encode()
        known = {
            "ObjectType": "Image",
            "NDims": stored.ndim - ("ElementNumberOfChannels" in fields),
            "BinaryData": packing != "text",
            "BinaryDataByteOrderMSB": big,
            "CompressedData": packing == "zlib",
            "DimSize": " ".join(
                map(str, stored.shape[-3:] if "ElementNumberOfChannels" in fields else stored.shape)
            ),
            "ElementType": TYPES[stored.dtype.str[1:]],
        }
        lines = [f"{key} = {value}" for key, value in (known | fields).items()]
        header = "\n".join([*lines, f"ElementDataFile = {data}\n"]).encode()
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if data == "LOCAL":
            path.write_bytes(header + content)
        else:
            path.write_bytes(header)
            (path.parent / data).write_bytes(content)
        return path

    return write


def directions(affine):
    """The fields that say where the axes of an affine go, as ITK writes them."""
    lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
    sizes = np.linalg.norm(lps[:, :3], axis=0)
    return {
        "TransformMatrix": " ".join(map(repr, (lps[:, :3] / sizes).T.ravel().tolist())),
        "Offset": " ".join(map(repr, lps[:, 3].tolist())),
        "ElementSpacing": " ".join(map(repr, sizes.tolist())),
    }


@pytest.mark.parametrize("axis", AXES)
def test_volumes_of_every_orientation_are_seen_alike(write, rng, axis):
    canonical = rng.integers(-900, 900, SHAPE, dtype=np.int16)
    for code in CODES:
        stored, affine = turned(canonical, code)
        found = refs(write(stored, **directions(affine)), Reading(axis))
        check_slices(read, found, canonical, axis)


def test_other_names_of_fields_are_known(write, rng):
    canonical = rng.integers(-900, 900, SHAPE, dtype=np.int16)
    stored, affine = turned(canonical, "SRA")
    fields = directions(affine)
    for turn, origin in (("Rotation", "Position"), ("Orientation", "Origin")):
        names = {"TransformMatrix": turn, "Offset": origin, "ElementSpacing": "ElementSize"}
        path = write(stored, **{names[name]: text for name, text in fields.items()})
        check_slices(read, refs(path), canonical, "axial")


@pytest.mark.parametrize("packing", ["", "zlib", "text"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_values_of_every_type_are_as_stored(write, rng, dtype, big, packing):
    values = (rng.normal(size=SHAPE) * 60).astype(dtype)
    if dtype[0] != "f":
        limits = np.iinfo(dtype)
        values[0, 0, 0], values[1, 0, 0] = limits.min, limits.max
    for number, ref in enumerate(refs(write(values, big=big, packing=packing))):
        np.testing.assert_allclose(read(ref).pixels[0], values[:, :, number].T, rtol=1e-6)
    assert (ref.bits, ref.spacing_mm) == (8 * values.itemsize, None)


@pytest.mark.parametrize(("packing", "data"), [("", "a.raw"), ("zlib", "a.zraw")])
def test_values_in_another_file(write, rng, packing, data):
    values = rng.integers(0, 99, SHAPE, dtype=np.int16)
    path = write(values, "a.mhd", data, packing, ElementSpacing="2 3 4")
    found = refs(path)
    assert values_in(path) == path.parent / data
    assert found[0].spacing_mm == (3, 2)
    np.testing.assert_array_equal(read(found[1]).pixels[0], values[:, :, 1].T)


def test_what_stands_in_front_of_the_values_is_passed_over(write, rng):
    values = rng.integers(0, 99, SHAPE, dtype=np.int16)
    for skip, front in ((5, b"front"), (-1, b"anything")):
        path = write(values, "a.mhd", "a.raw", HeaderSize=skip)
        (path.parent / "a.raw").write_bytes(front + values.tobytes("F"))
        np.testing.assert_array_equal(read(path).pixels[0], values[:, :, 0].T)


def test_intensities_are_those_that_the_file_asks_for(write, rng):
    values = rng.integers(0, 99, SHAPE, dtype=np.uint8)
    name = "ElementToIntensityFunction"
    path = write(values, **{f"{name}Slope": 2, f"{name}Offset": -1024})
    np.testing.assert_array_equal(read(path).pixels[0], values[:, :, 0].T * 2.0 - 1024)
    assert (refs(path)[0].slope, refs(path)[0].intercept) == (2, -1024)


def test_long_has_four_bytes_or_as_many_as_are_there(write, rng):
    values = rng.integers(-99, 99, SHAPE)
    for dtype in (np.int32, np.int64):
        path = write(values.astype(dtype), ElementType="MET_LONG")
        np.testing.assert_array_equal(read(path).pixels[0], values[:, :, 0].T)


def test_channels_are_kept(write, rng):
    values = rng.integers(0, 256, (5, *SHAPE), dtype=np.uint8)
    path = write(values, ElementNumberOfChannels=5)
    assert {ref.channels for ref in refs(path)} == {5}
    np.testing.assert_array_equal(read(path).pixels, values[..., 0].transpose(0, 2, 1))


def test_a_plane_is_shown_as_it_is_stored(write, rng):
    values = rng.integers(0, 256, (6, 4), dtype=np.uint8)
    path = write(values, ElementSpacing="0.5 0.25", TransformMatrix="-1 0 0 1")
    (ref,) = refs(path, Reading("coronal"))
    image = read(ref)
    np.testing.assert_array_equal(image.pixels[0], values.T)
    assert ref.spacing_mm == (0.25, 0.5)
    assert image.window == (0, 255)


def test_the_last_of_four_dimensions_is_time(write, rng):
    values = rng.integers(0, 99, (*SHAPE, 3), dtype=np.int16)
    matrix = " ".join(str(int(number)) for number in np.eye(4).ravel())
    found = refs(write(values, TransformMatrix=matrix, ElementSpacing="1 2 3 4"))
    assert len({ref.series for ref in found}) == 3
    np.testing.assert_array_equal(read(found[6]).pixels[0], values[:, :, 2, 1].T)


def test_its_modality_is_that_of_the_file(write, rng):
    path = write(rng.integers(-1000, 900, SHAPE, dtype=np.int16), Modality="MET_MOD_CT")
    assert refs(path, Reading(modality="MR"))[0].modality == "CT"
    assert read(path).window == (-1000, 1000)


def test_label_maps_and_displacements_are_named(write, rng):
    values = rng.integers(0, 3, SHAPE, dtype=np.uint8)
    assert refs(write(values))[0].kind is None
    assert refs(write(values, "CT-label.mha"))[0].kind == "segmentation"
    field = rng.normal(size=(3, *SHAPE)).astype(np.float32)
    assert refs(write(field, ElementNumberOfChannels=3))[0].kind == "map"


def test_it_is_told_by_content_and_by_name_if_a_comment_comes_first(write, rng):
    path = write(rng.integers(0, 9, SHAPE, dtype=np.int16))
    plain = path.rename(path.with_name("scan"))
    assert looks_like_image(plain)
    plain.write_bytes(b"Comment = words\n" + plain.read_bytes())
    assert not looks_like_image(plain)
    assert refs(plain.rename(path))[0].format == "MetaImage"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"ObjectType": "Tube"}, "not an image|another object"),
        ({"NDims": 5}, "two to four dimensions"),
        ({"NDims": 2}, "its numbers are not valid"),
        ({"DimSize": "5 7 400"}, r"truncated: [\d,]+ of [\d,]+ bytes"),
        ({"DimSize": "5 7 0"}, "no pixels"),
        ({"DimSize": "5 7 -4"}, "no pixels"),
        ({"DimSize": "5 7 many"}, "its numbers are not valid"),
        ({"DimSize": "90000 90000 90000"}, "truncated"),
        ({"ElementNumberOfChannels": 0, "NDims": 3, "DimSize": "5 7 4"}, "no pixels"),
        ({"ElementType": "MET_STRING"}, "ElementType is not supported: save it as MET_FLOAT"),
        ({"TransformMatrix": "0 0 0 0 0 0 0 0 0"}, "orientation is not valid"),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "orientation is not valid"),
        ({"TransformMatrix": "nan 0 0 0 1 0 0 0 1"}, "orientation is not valid"),
        ({"TransformMatrix": "1 0 0 1"}, "its numbers are not valid"),
        ({"HeaderSize": -7}, "HeaderSize is not valid"),
        ({"HeaderSize": 10**12}, "HeaderSize is not valid"),
    ],
)
def test_a_header_that_cannot_be_true_is_refused(write, fields, reason):
    with pytest.raises(Unreadable, match=reason):
        refs(write(np.zeros(SHAPE, np.int16), **fields))


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ("../secret.raw", "outside its folder: put them beside it"),
        ("/etc/passwd", "outside its folder"),
        ("LIST", "several files is not supported: join them"),
        ("slice%03d.raw 1 9 1", "several files"),
        ("nowhere.raw", "names is missing"),
        ("", "has no name"),
    ],
)
def test_values_are_looked_for_beside_the_header_alone(write, named, reason, tmp_path):
    path = write(np.zeros(SHAPE, np.int16), "sub/a.mhd", "a.raw")
    (tmp_path / "secret.raw").write_bytes(bytes(1000))
    path.write_text(path.read_text().replace("a.raw", named))
    with pytest.raises(Unreadable, match=reason):
        refs(path)


def test_bombs_are_refused_before_they_are_unpacked(write, monkeypatch):
    path = write(np.zeros((100, 100, 100), np.int16), packing="zlib")
    monkeypatch.setattr(volume, "MAX_UNPACKED", 2**20)
    with pytest.raises(Unreadable, match=r"unpacks to 1 MB, more than the 1 MB.*compression"):
        refs(path)
    path = write(np.zeros(SHAPE, np.int16), packing="zlib", DimSize="900 900 900")
    with pytest.raises(Unreadable, match="claims more than there is"):
        refs(path)


def test_no_more_is_unpacked_than_the_header_says(write, monkeypatch):
    path = write(np.ones((5, 7, 2), np.int16), packing="zlib")
    head, _, packed = path.read_bytes().rpartition(b"LOCAL\n")
    path.write_bytes(head + b"LOCAL\n" + zlib.compress(zlib.decompress(packed) + bytes(50_000_000)))
    got = []
    whole = packed_values.Inflated.read

    def counted(self, count):
        data = whole(self, count)
        got.append(len(data))
        return data

    monkeypatch.setattr(packed_values.Inflated, "read", counted)
    assert read(path).pixels.sum() == 35
    assert sum(got) < 10_000


@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
@pytest.mark.parametrize("packing", ["", "zlib", "text"])
def test_truncated(write, rng, packing, share):
    path = write(rng.normal(size=(20, 20, 20)), packing=packing)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(Unreadable, match="truncated|damaged"):
        read(path)


def test_a_wrong_checksum_is_damage(write, rng):
    path = write(rng.normal(size=(20, 20, 20)), packing="zlib")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(Unreadable, match="damaged MetaImage"):
        read(path)


def test_texts_of_the_header_stay_in_it(write):
    texts = {"Comment": "Zebedee^Quixote", "Name": "PID-771144"}
    (ref, *_) = refs(write(np.zeros(SHAPE, np.int16), **texts))
    assert "Zebedee" not in repr(ref)
    assert "771144" not in repr(ref)
