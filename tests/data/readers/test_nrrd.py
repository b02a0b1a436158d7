import gzip
import os
import tarfile

import numpy as np
import pytest

from dino_x.data.image import DEFAULT, Reading, Unreadable
from dino_x.data.index.catalog import update
from dino_x.data.readers import volume
from dino_x.data.readers.registry import looks_like_image, read, refs
from dino_x.data.readers.several_files import values_in
from tests.data.readers.volumes import AXES, CODES, SHAPE, check_slices, seen, turned

TYPES = {
    "u1": "uchar", "i1": "int8", "i2": "short", "u2": "unsigned short", "i4": "int32_t",
    "u4": "uint", "i8": "long long int", "u8": "uint64", "f4": "float", "f8": "double",
}  # fmt: skip
SPACE = {"RAS": (1, 1, 1), "left-posterior-superior": (-1, -1, 1), "LAS": (-1, 1, 1)}


@pytest.fixture
def write(tmp_path):
    """Write values, first axis fastest, with fields of a header beside those that are needed."""

    def write(values, name="a.nrrd", encoding="raw", endian="little", more="", data=None, **fields):
        stored = np.asarray(values)
        stored = stored.astype(stored.dtype.newbyteorder("<" if endian == "little" else ">"))
        content = stored.tobytes("F")
        if encoding == "gzip":
            content = gzip.compress(content)
        if encoding == "ascii":
            content = " ".join(str(value) for value in stored.ravel("F")).encode() + b"\n"
        known = {
            "type": TYPES[stored.dtype.str[1:]],
            "dimension": stored.ndim,
            "sizes": " ".join(map(str, stored.shape)),
            "encoding": encoding,
            "endian": endian,
        }
        lines = [f"{key.replace('_', ' ')}: {value}" for key, value in (known | fields).items()]
        header = "\n".join(["NRRD0004", "# words", *lines]) + "\n" + more
        path = tmp_path / name
        if data is None:
            path.write_bytes(header.encode() + b"\n" + content)
        else:
            (tmp_path / data).parent.mkdir(exist_ok=True)
            path.write_text(header + f"data file: {data}\n")
            (tmp_path / data).write_bytes(content)
        return path

    return write


def directions(affine, signs=(1, 1, 1), before="", after=""):
    """The fields that say where the axes of an affine go, in a space of other signs."""
    turned = np.diag(signs) @ affine[:3]
    vectors = " ".join(f"({','.join(map(repr, column.tolist()))})" for column in turned[:, :3].T)
    origin = f"({','.join(map(repr, turned[:, 3].tolist()))})"
    return {"space_directions": f"{before} {vectors} {after}", "space_origin": origin}


@pytest.mark.parametrize("space", SPACE)
@pytest.mark.parametrize("axis", AXES)
def test_volumes_of_every_orientation_are_seen_alike(write, rng, axis, space):
    canonical = rng.integers(-900, 900, SHAPE, dtype=np.int16)
    for code in CODES:
        stored, affine = turned(canonical, code)
        path = write(stored, space=space, **directions(affine, SPACE[space]))
        check_slices(read, refs(path, Reading(axis)), canonical, axis)


def test_a_space_without_a_name_is_taken_for_itks_and_said(write, rng):
    canonical = rng.integers(0, 900, SHAPE, dtype=np.int16)
    stored, affine = turned(canonical, "PSL")
    lps = directions(affine, SPACE["left-posterior-superior"])
    for space in ({"space": "scanner-xyz"}, {"space_dimension": 3}):
        found = refs(write(stored, **space, **lps))
        check_slices(read, found, canonical, "axial")
        assert found[0].remark == "its space has no name: read as left-posterior-superior"
    assert refs(write(stored, space="LPS", **lps))[0].remark is None


@pytest.mark.parametrize("encoding", ["raw", "gzip", "ascii"])
@pytest.mark.parametrize("endian", ["little", "big"])
@pytest.mark.parametrize("dtype", TYPES)
def test_values_of_every_type_are_as_stored(write, rng, dtype, endian, encoding):
    values = (rng.normal(size=SHAPE) * 60).astype(dtype)
    if dtype[0] != "f":
        limits = np.iinfo(dtype)
        values[0, 0, 0], values[1, 0, 0] = limits.min, limits.max
    path = write(values, endian=endian, encoding=encoding, spacings="1 1 1")
    for number, ref in enumerate(refs(path)):
        # without orientation the first axis goes to the patient's left, the second to posterior
        np.testing.assert_allclose(read(ref).pixels[0], values[:, :, number].T, rtol=1e-6)
    assert ref.bits == 8 * values.itemsize


@pytest.mark.parametrize(
    ("encoding", "data"), [("raw", "a.raw"), ("gzip", "sub/a.raw.gz"), ("ascii", "a.txt")]
)
def test_values_in_another_file(write, rng, encoding, data):
    values = rng.integers(0, 99, SHAPE, dtype=np.int16)
    path = write(values, "a.nhdr", encoding, data=data, spacings="2 3 4")
    found = refs(path)
    assert values_in(path) == path.parent / data
    assert found[0].spacing_mm == (3, 2)
    np.testing.assert_array_equal(read(found[1]).pixels[0], values[:, :, 1].T)


def test_what_stands_in_front_of_the_values_is_passed_over(write, rng):
    values = rng.integers(0, 99, SHAPE, dtype=np.int16)
    for more, front, packed in (
        ("line skip: 2\nbyte skip: 3\n", b"a\nb\nxyz", False),
        ("byte skip: -1\n", b"any", False),
        ("line skip: 1\nbyte skip: 2\n", b"a\n", True),
    ):
        content = values.tobytes("F")
        content = gzip.compress(b"xy" + content) if packed else content
        path = write(values, "a.nhdr", "gzip" if packed else "raw", more=more, data="a.raw")
        (path.parent / "a.raw").write_bytes(front + content)
        np.testing.assert_array_equal(read(path).pixels[0], values[:, :, 0].T)


def test_a_plane_is_shown_as_it_is_stored(write, rng):
    values = rng.integers(0, 256, (6, 4), dtype=np.uint8)
    (ref,) = refs(write(values, space_directions="(0.5,0) (0,0.25)", space_dimension=2))
    image = read(ref)
    np.testing.assert_array_equal(image.pixels[0], values.T)
    assert (ref.height, ref.width, ref.series, ref.position_mm) == (4, 6, None, None)
    assert ref.spacing_mm == image.spacing_mm == (0.25, 0.5)
    assert image.window == (0, 255)
    (ref,) = refs(write(values), Reading("coronal"))
    assert (ref.height, ref.width, ref.spacing_mm) == (4, 6, None)


@pytest.mark.parametrize("first", [True, False])
def test_channels_are_kept_wherever_they_stand(write, rng, first):
    values = rng.integers(0, 256, (*SHAPE, 5), dtype=np.uint8)
    around = {"before": "none"} if first else {"after": "none"}
    kinds = "vector domain domain domain" if first else "domain domain domain vector"
    stored, affine = turned(values, "LPS")
    stored = np.moveaxis(stored, 3, 0) if first else stored
    path = write(stored, space="RAS", kinds=kinds, **directions(affine, **around))
    found = refs(path)
    assert {ref.channels for ref in found} == {5}
    for channel in range(5):
        np.testing.assert_array_equal(
            read(found[2]).pixels[channel], seen(values[..., channel], "axial", 2)
        )


def test_colours_have_eight_bits_and_alpha_lies_over_black(write, rng):
    values = rng.integers(0, 256, (3, 6, 5), dtype=np.uint8)
    image = read(write(values, kinds="RGB-color domain domain"))
    np.testing.assert_array_equal(image.pixels, values.transpose(0, 2, 1))
    assert image.window == (0, 255)
    values = rng.integers(0, 256, (4, 6, 5), dtype=np.uint8)
    path = write(values, kinds="RGBA-color domain domain")
    assert refs(path)[0].channels == 3
    wanted = values[:3].astype(float) * values[3] / 255
    np.testing.assert_allclose(read(path).pixels, wanted.transpose(0, 2, 1), rtol=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {"kinds": "domain domain domain list", "spacings": "2 3 4 nan"},
        {"kinds": "space space space time"},
        {"space": "left-posterior-superior-time",
         "space_directions": "(2,0,0,0) (0,3,0,0) (0,0,4,0) (0,0,0,1)"},
    ],
)  # fmt: skip
def test_times_and_lists_are_volumes(write, rng, fields):
    values = rng.integers(0, 99, (*SHAPE, 3), dtype=np.int16)
    found = refs(write(values, **fields))
    assert len(found) == 12
    assert len({ref.series for ref in found}) == 3
    np.testing.assert_array_equal(read(found[6]).pixels[0], values[:, :, 2, 1].T)


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        ((3, 8, 9), {}),
        ((8, 9, 3), {"type": "uchar"}),
        ((5, 7, 4, 6), {}),
        ((5, 7, 4, 6), {"kinds": "domain domain domain domain"}),
        ((5, 7, 4, 6), {"space": "LPS", "space_directions": "(1,0,0) (0,1,0) (0,0,1) none"}),
        ((5, 7, 4), {"space_dimension": 2, "space_directions": "none (1,0) (0,1)"}),
        ((5, 7, 4, 6), {"kinds": "vector vector domain domain"}),
        ((3, 7, 4), {"kinds": "RGBA-color domain domain"}),
    ],
)
def test_axes_that_nothing_explains_are_refused(write, shape, fields):
    with pytest.raises(Unreadable, match="does not say what its axes are: add a line"):
        refs(write(np.zeros(shape, np.int16), **fields))


def test_label_maps_and_directions_are_named(write, rng):
    values = rng.integers(0, 3, (5, 7, 6), dtype=np.uint8)
    key = "Segment0_ID:=Segment_1\nSegment0_Name:=Zebedee\n"
    assert refs(write(values))[0].kind is None
    for name, more in (("a.seg.nrrd", ""), ("CT-label.nrrd", ""), ("a.nrrd", key)):
        assert refs(write(values, name, more=more))[0].kind == "segmentation"
    assert refs(write(values * 0.5, "CT-label.nrrd"))[0].kind is None
    field = rng.normal(size=(3, *SHAPE)).astype(np.float32)
    assert refs(write(field, kinds="vector domain domain domain"))[0].kind == "map"
    tensor = rng.normal(size=(6, *SHAPE)).astype(np.float32)
    kinds = "3D-symmetric-matrix domain domain domain"
    assert refs(write(tensor, kinds=kinds))[0].kind == "map"


def test_metres_are_millimetres(write):
    units = {"space_units": '"m" "m" "m"', "space": "LPS"}
    ones = "(1,0,0) (0,2,0) (0,0,3)"
    (ref, *_) = refs(write(np.zeros(SHAPE, np.int16), space_directions=ones, **units))
    assert ref.spacing_mm == (2000, 1000)


def test_values_of_ct_are_hounsfield_units_if_it_is_said(write, rng):
    path = write(rng.integers(-1000, 900, SHAPE, dtype=np.int16), spacings="1 1 1")
    assert read(refs(path, Reading(modality="CT"))[0]).window == (-1000, 1000)
    assert read(path).window != (-1000, 1000)


def test_it_is_told_by_content(write, rng):
    path = write(rng.integers(0, 9, SHAPE, dtype=np.int16))
    plain = path.rename(path.with_name("scan"))
    assert looks_like_image(plain)
    assert refs(plain)[0].format == "NRRD"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"sizes": "5 7 400"}, r"truncated: [\d,]+ of [\d,]+ bytes"),
        ({"sizes": "5 7 0"}, "no pixels"),
        ({"sizes": "5 7"}, "its numbers are not valid"),
        ({"sizes": "5 7 many"}, "its numbers are not valid"),
        ({"sizes": "5.5 7 4"}, "its numbers are not valid"),
        ({"sizes": "90000 90000 90000"}, "truncated"),
        ({"sizes": "5 7 inf"}, "its numbers are not valid"),
        ({"dimension": 9}, "two to five dimensions"),
        ({"dimension": "nan"}, "damaged NRRD"),
        ({"type": "block"}, "type is not supported: save it as float"),
        ({"endian": "middle"}, "does not name its byte order: add"),
        ({"encoding": "bzip2"}, r"encoding is not supported: save it as gzip"),
        ({"kinds": "complex domain domain"}, "complex values"),
        ({"kinds": "domain domain"}, "its kinds are not valid"),
        ({"space_directions": "(1,0,0) (2,0,0) (0,0,1)"}, "orientation is not valid"),
        ({"space_directions": "(1,0,0) (0,0,0) (0,0,1)"}, "orientation is not valid"),
        ({"space_directions": "(1,0,0) (0,inf,0) (0,0,1)"}, "orientation is not valid"),
        ({"space_directions": "(1,0,0) (0,1,0)"}, "orientation is not valid"),
        ({"space_directions": "(1,0) (0,1) (1,1)"}, "orientation is not valid"),
        ({"space_origin": "(1,2)", "space_directions": "(1,0,0) (0,1,0) (0,0,1)"}, "orientation"),
        ({"byte_skip": 10**12}, "truncated"),
        ({"byte_skip": -2}, "skip is not valid"),
        ({"line_skip": 10**9}, "skip is not valid"),
    ],
)
def test_a_header_that_cannot_be_true_is_refused(write, fields, reason):
    with pytest.raises(Unreadable, match=reason):
        refs(write(np.zeros(SHAPE, np.int16), **fields))


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ("../secret.raw", "outside its folder: put them beside it"),
        ("sub/../../secret.raw", "outside its folder"),
        ("/etc/passwd", "outside its folder"),
        ("C:/secret.raw", "outside its folder"),
        ("\\\\host\\share\\secret.raw", "outside its folder"),
        ("LIST", "several files is not supported: join them"),
        ("slice%03d.raw 1 9 1", "several files"),
        ("nowhere.raw", "names is missing"),
        ("pipe", "names is missing"),
        (".", "names is missing"),
        ("a" * 5000, "names is missing"),
    ],
)
def test_values_are_looked_for_beside_the_header_alone(write, named, reason, tmp_path):
    path = write(np.zeros(SHAPE, np.int16), "sub/a.nhdr", data="sub/a.raw")
    (tmp_path / "secret.raw").write_bytes(bytes(1000))
    os.mkfifo(tmp_path / "sub" / "pipe")
    path.write_text(path.read_text().replace("sub/a.raw", named))
    with pytest.raises(Unreadable, match=reason):
        refs(path)


def test_values_in_another_file_of_an_archive_are_refused_with_a_way_out(write):
    path = write(np.zeros(SHAPE, np.int16), "a.nhdr", data="a.raw", spacings="1 1 1")
    with tarfile.open(path.parent / "a.tar", "w") as tar:
        tar.add(path, "a.nhdr")
        tar.add(path.parent / "a.raw", "a.raw")
    (record,) = update([path.parent / "a.tar"], reading=DEFAULT).table.records
    assert record.unusable is not None
    assert "not read from an archive: unpack it, or save header and values" in record.unusable


def test_bombs_are_refused_before_they_are_unpacked(write, monkeypatch):
    path = write(np.zeros((100, 100, 100), np.int16), encoding="gzip", spacings="1 1 1")
    monkeypatch.setattr(volume, "MAX_UNPACKED", 2**20)
    with pytest.raises(Unreadable, match=r"unpacks to 1 MB, more than the 1 MB.*unu save"):
        refs(path)
    path = write(np.zeros(SHAPE, np.int16), encoding="gzip", sizes="900 900 900")
    with pytest.raises(Unreadable, match="claims more than there is"):
        refs(path)
    path = write(np.zeros(SHAPE, np.int16), encoding="ascii", sizes="900 900 900")
    with pytest.raises(Unreadable, match="claims more than there is"):
        refs(path)


def test_a_header_without_end_is_refused(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\n" + b"# no end\n" * 300_000)
    with pytest.raises(Unreadable, match="it has no end"):
        refs(tmp_path / "a.nrrd")


@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
@pytest.mark.parametrize("encoding", ["raw", "gzip", "ascii"])
def test_truncated(write, rng, encoding, share):
    path = write(rng.normal(size=(20, 20, 20)), encoding=encoding, spacings="1 1 1")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(Unreadable, match="truncated|damaged"):
        read(path)


@pytest.mark.parametrize("text", ["1 2 x", "1 2 nan", "1 2 1e9", "1 2 " + "9" * 5000])
def test_text_that_is_no_number_of_its_type_is_damage(write, text):
    path = write(np.zeros((3, 1), np.int16), encoding="ascii")
    path.write_bytes(path.read_bytes()[:-6] + text.encode() + b"\n")
    with pytest.raises(Unreadable, match="damaged"):
        read(path)


def test_values_that_are_cut_off_after_their_header_was_read_are_a_reason(write, rng):
    path = write(rng.normal(size=SHAPE), "a.nhdr", data="a.raw", spacings="1 1 1")
    last = refs(path)[-1]
    (path.parent / "a.raw").write_bytes(b"few")
    with pytest.raises(Unreadable, match="truncated"):
        read(last)


def test_texts_of_the_header_stay_in_it(write):
    more = "content: Zebedee^Quixote\npatient:=PID-771144\n"
    (ref, *_) = refs(write(np.zeros(SHAPE, np.int16), more=more))
    assert "Zebedee" not in repr(ref)
    assert "771144" not in repr(ref)
