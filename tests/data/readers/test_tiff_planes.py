"""TIFF files that name their axes: levels, positions, and images that lie in several files."""

import struct

import numpy as np
import pytest
import tifffile

from dino_x.data.image import Unreadable
from dino_x.data.readers.registry import read, refs

UUIDS = [f"urn:uuid:0000000{number}-1111-2222-3333-444444444444" for number in range(3)]


@pytest.fixture
def values(rng):
    """Times, slices, channels, rows and columns."""
    return rng.integers(0, 4000, (2, 3, 2, 20, 24)).astype(np.uint16)


def check(path, wanted):
    found = refs(path)
    assert len(found) == len(wanted)
    for ref, image in zip(found, wanted, strict=True):
        image = image[None] if image.ndim == 2 else image
        assert ref.channels == len(image)
        np.testing.assert_array_equal(read(ref).pixels, image)


def test_a_palette_whose_entries_use_the_lower_8_bits_is_not_black(tmp_path, rng):
    stored = rng.integers(0, 256, (12, 14), dtype=np.uint8)
    colours = rng.integers(0, 256, (3, 256)).astype(np.uint16)
    for name, table in (("16", colours * 257), ("8", colours)):
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, stored, photometric="palette", colormap=table)
        check(path, [colours[:, stored]])


def test_channels_of_a_pyramid_are_those_of_one_image(tmp_path, values):
    path = tmp_path / "a.ome.tif"
    channels = values[0, 0]
    with tifffile.TiffWriter(path, ome=True) as file:
        how = {"tile": (16, 16), "photometric": "minisblack"}
        file.write(channels, subifds=1, metadata={"axes": "CYX"}, **how)
        file.write(channels[:, ::2, ::2], subfiletype=1, **how)
    check(path, [channels])


def test_several_images_of_one_file_keep_their_channels(tmp_path, values):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path) as file:
        for image in values:
            file.write(image, metadata={"axes": "ZCYX"}, photometric="minisblack")
    check(path, [values[image, z] for image in range(2) for z in range(3)])


def test_several_images_with_channels_that_differ_are_refused(tmp_path, values):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(values[0, 0], metadata={"axes": "CYX"}, photometric="minisblack")
        file.write(values[0, :, 0], metadata={"axes": "ZYX"}, photometric="minisblack")
    with pytest.raises(Unreadable, match="channels that differ: save each as a file"):
        refs(path)


def write_ome(path, pages, images, own):
    """A file with a header that describes images, each a list of (file, IFD) of its channels."""
    described = ""
    for number, planes in enumerate(images):
        places = "".join(
            f'<TiffData FirstC="{c}" FirstZ="0" FirstT="0" IFD="{page}" PlaneCount="1">'
            f'<UUID FileName="{file}.ome.tif">{UUIDS[file]}</UUID></TiffData>'
            for c, (file, page) in enumerate(planes)
        )
        channels = "".join(
            f'<Channel ID="Channel:{number}:{c}" SamplesPerPixel="1"/>' for c in range(len(planes))
        )
        described += (
            f'<Image ID="Image:{number}"><Pixels ID="Pixels:{number}" DimensionOrder="XYCZT"'
            f' Type="uint16" SizeX="24" SizeY="20" SizeC="{len(planes)}" SizeZ="1" SizeT="1"'
            f' BigEndian="false">{channels}{places}</Pixels></Image>'
        )
    schema = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    uuid = "" if own is None else f' UUID="{UUIDS[own]}"'
    header = f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{schema}"{uuid}>{described}</OME>'
    with tifffile.TiffWriter(path, ome=False) as file:
        for number, page in enumerate(pages):
            description = None if number else header
            file.write(page, description=description, metadata=None, photometric="minisblack")


@pytest.mark.parametrize("both", [True, False], ids=["both there", "one alone"])
def test_an_image_whose_channels_lie_in_several_files_is_refused(tmp_path, values, both):
    images = [[(0, 0), (1, 0)]]
    for number in (0, 1) if both else (1,):
        path = tmp_path / f"{number}.ome.tif"
        write_ome(path, [values[0, 0, number]], images, number)
    with pytest.raises(Unreadable, match=r"names other files \(1 of 2 planes are in this one\)"):
        refs(tmp_path / "1.ome.tif")


@pytest.mark.parametrize("name", ["1.ome.tif", "renamed.tif"])
def test_images_that_lie_in_other_files_are_those_of_these_files(tmp_path, values, name):
    """As Micro-Manager writes positions: each file describes all, and holds one."""
    images = [[(0, 0), (0, 1)], [(1, 0), (1, 1)]]
    write_ome(tmp_path / "0.ome.tif", values[0, 0], images, 0)
    write_ome(tmp_path / name, values[0, 1], images, 1)
    check(tmp_path / "0.ome.tif", [values[0, 0]])
    check(tmp_path / name, [values[0, 1]])


def test_pages_that_may_be_channels_and_are_not_described_are_refused(tmp_path, values):
    path = tmp_path / "renamed.tif"
    write_ome(path, values[0, 0], [[(0, 0), (0, 1)]], None)
    with pytest.raises(Unreadable, match="does not describe its pages: save it as one file"):
        refs(path)


def test_16_bit_cmyk_names_what_it_is(tmp_path, rng):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, rng.integers(0, 65536, (8, 9, 4)).astype(np.uint16), photometric="separated"
    )
    with pytest.raises(Unreadable, match="^CMYK or YCbCr TIFF of 16 bits is not supported"):
        read(path)


def metamorph(path, planes, whole=True):
    """A MetaMorph stack: one header, and the other planes follow the first one's values."""
    stored = planes if whole else planes[:-1]
    height, width = planes.shape[1:]
    values = stored.astype("<u2").tobytes()
    start = 8 + 2 + 12 * 11 + 4
    behind = start + len(values)
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, start), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 2 * height * width),
        (33628, 4, 1, behind), (33629, 5, len(planes), behind + 8),
    ]  # fmt: skip
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    head += b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    each = struct.pack("<6I", 1, 1, 2450000, 0, 2450000, 0)  # a distance, and two times
    path.write_bytes(head + values + bytes(8) + each * len(planes))


def test_planes_of_a_metamorph_stack_are_images(tmp_path, values):
    metamorph(tmp_path / "a.stk", values[0, :, 0])
    check(tmp_path / "a.stk", list(values[0, :, 0]))


def test_a_metamorph_stack_that_is_cut_off_is_refused(tmp_path, values):
    metamorph(tmp_path / "a.stk", np.tile(values[0, :, 0], (9, 1, 1)), whole=False)
    with pytest.raises(Unreadable, match="its stack has more images than there are bytes"):
        refs(tmp_path / "a.stk")


def test_white_is_zero_is_turned_around_where_some_values_are_none(tmp_path, rng):
    values = rng.random((8, 9)).astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="miniswhite")
    finite = np.isfinite(values)
    wanted = values[finite].max() + values[finite].min() - values
    np.testing.assert_allclose(read(path).pixels[0], wanted)
