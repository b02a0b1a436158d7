"""Which values a DICOM file's pixels have: bits, signs, rescale, units and padding."""

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from dino_x.data.readers.registry import read, refs
from dino_x.data.windowing import apply_window
from tests.data.conftest import transcode

CT = "1.2.840.10008.5.1.4.1.1.2"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


@pytest.fixture
def ramp():
    """Values of 12 bits that no flip or shift leaves as they are."""
    return np.linspace(0, 4095, 40 * 70).astype(np.uint16).reshape(40, 70)


def compressed(path, syntax):
    """Encode a file in place, with all bits of its values."""
    if isinstance(syntax, str) and not syntax.startswith("1."):
        return transcode(path, syntax)
    dataset = pydicom.dcmread(path)
    dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path)
    return path


def with_elements(path, **elements):
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


ENCODINGS = [None, RLELossless, JPEG2000Lossless, JPEGLSLossless, "JPEGLosslessProcess14_1"]


@pytest.mark.parametrize("syntax", ENCODINGS)
def test_bits_above_those_stored_mean_nothing(write_dicom, ramp, syntax):
    """An overlay in the four unused bits, as old scanners wrote it."""
    dirty = ramp.copy()
    dirty[3:6, 4:9] |= 0xF000
    path = write_dicom(dirty)
    if syntax:
        path = compressed(path, syntax)
    image = read(with_elements(path, BitsStored=12, HighBit=11))
    np.testing.assert_array_equal(image.pixels[0], ramp)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 12])
def test_values_go_on_above_bits_that_are_too_few(write_dicom, rng, bits, signed):
    """Two more bits are in use than it says: masked, bright parts would fold into dark ones."""
    y, x = np.mgrid[0:40, 0:60]
    values = (x * 2**bits / 16 + y + rng.normal(0, 2, x.shape)).clip(0).astype(np.int16)
    values = values - 2 ** (bits + 1) if signed else values.astype(np.uint16)
    path = with_elements(write_dicom(values), BitsStored=bits, HighBit=bits - 1)
    image = read(path)
    np.testing.assert_array_equal(image.pixels[0], values)
    assert image.window != (0, 255)


def test_an_overlay_is_none_of_the_values_whatever_it_lies_on(write_dicom, rng):
    for number in range(20):
        clean = rng.integers(0, 4096, (40, 60), dtype=np.uint16)
        if number % 2:
            clean = np.sort(clean, axis=1)
        dirty = clean.copy()
        top, left, bit = rng.integers(0, 30), rng.integers(0, 50), rng.integers(12, 16)
        dirty[top : top + 1 + number // 2, left : left + 9] |= np.uint16(1 << bit)
        image = read(with_elements(write_dicom(dirty), BitsStored=12, HighBit=11))
        np.testing.assert_array_equal(image.pixels[0], clean)


@pytest.mark.parametrize("syntax", ENCODINGS)
@pytest.mark.parametrize("colour", [False, True])
def test_eight_bits_of_which_five_are_stored(write_dicom, rng, syntax, colour):
    """GDCM would end the process."""
    values = rng.integers(0, 32, (40, 50, 3) if colour else (40, 50), dtype=np.uint8)
    path = write_dicom(values)
    if syntax:
        path = compressed(path, syntax)
    image = read(with_elements(path, BitsStored=5, HighBit=4))
    wanted = values.transpose(2, 0, 1) if colour else values[None]
    np.testing.assert_array_equal(image.pixels, wanted)


def test_frames_of_one_bit_may_end_within_a_byte(write_dicom, rng):
    masks = rng.integers(0, 2, (3, 7, 5), dtype=np.uint8)
    bits = np.packbits(masks.ravel(), bitorder="little").tobytes()
    one = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}
    path = write_dicom(masks, NumberOfFrames=3, PixelData=bits, **one)
    for ref, mask in zip(refs(path), masks, strict=True):
        np.testing.assert_array_equal(read(ref).pixels[0], mask)


@pytest.mark.parametrize("syntax", ENCODINGS)
def test_signs_survive_every_encoding(write_dicom, ramp, syntax):
    """Negative values of 12 bits, without their sign repeated in the upper four."""
    values = ramp.astype(np.int16) - 2048
    path = write_dicom((values.astype(np.int32) & 0xFFF).astype(np.uint16))
    if syntax:
        path = compressed(path, syntax)
    image = read(with_elements(path, BitsStored=12, HighBit=11, PixelRepresentation=1))
    np.testing.assert_array_equal(image.pixels[0], values)


def test_values_in_the_upper_bits_are_moved_down(write_dicom, ramp):
    path = write_dicom(ramp << 4, BitsStored=12, HighBit=15)
    np.testing.assert_array_equal(read(path).pixels[0], ramp)


def test_a_high_bit_that_is_not_true_changes_nothing(write_dicom, ramp):
    path = write_dicom(ramp, BitsStored=12, HighBit=15)
    np.testing.assert_array_equal(read(path).pixels[0], ramp)


@pytest.mark.parametrize(
    ("elements", "wanted"),
    [
        ({"RescaleIntercept": "-1024"}, (1, -1024)),
        ({"RescaleIntercept": "-1024", "RescaleSlope": ""}, (1, -1024)),
        ({"RescaleIntercept": "-1024", "RescaleSlope": "0"}, (1, -1024)),
        ({"RescaleSlope": "2"}, (2, 0)),
        ({"RescaleSlope": "2", "RescaleIntercept": ""}, (2, 0)),
        ({"RescaleSlope": "0"}, (1, 0)),
        ({"RescaleSlope": "", "RescaleIntercept": ""}, (1, 0)),
    ],
)
def test_a_rescale_with_one_of_its_two_numbers(write_dicom, ramp, elements, wanted):
    slope, intercept = wanted
    path = write_dicom(ramp, Modality="CT", SOPClassUID=CT, **elements)
    np.testing.assert_array_equal(read(path).pixels[0], slope * ramp.astype(float) + intercept)
    (ref,) = refs(path)
    assert (ref.slope or 1, ref.intercept or 0) == wanted


def test_an_intercept_alone_gives_hounsfield_units(write_dicom, ramp):
    path = write_dicom(ramp, Modality="CT", SOPClassUID=CT, RescaleIntercept="-1024")
    assert read(path).window == (-1000, 1000)


RESCALE = {"RescaleSlope": "1", "RescaleIntercept": "-1024"}
SCREEN = ["DERIVED", "SECONDARY", "SCREEN SAVE"]


@pytest.mark.parametrize(
    ("elements", "hounsfield"),
    [
        ({}, True),
        ({"RescaleType": "HU"}, True),
        ({"RescaleType": "hu "}, True),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}, True),
        ({"ImageType": ["DERIVED", "PRIMARY", "MPR"]}, True),
        ({"RescaleType": "US"}, False),
        ({"RescaleType": "Z_EFF"}, False),
        ({"RescaleType": "EDW"}, False),
        ({"ImageType": SCREEN, "SOPClassUID": SECONDARY_CAPTURE}, False),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, False),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "RescaleType": "HU"}, True),
    ],
)
def test_rescale_type_and_image_type_decide_what_is_in_hounsfield_units(
    write_dicom, ramp, elements, hounsfield
):
    image = read(write_dicom(ramp, Modality="CT", **{"SOPClassUID": CT} | RESCALE | elements))
    assert (image.window == (-1000, 1000)) is hounsfield


def test_a_screenshot_of_eight_bits_is_not_in_hounsfield_units(write_dicom, rng):
    """A dose report: the page of a console, with the modality of its study."""
    page = rng.integers(0, 256, (9, 12), dtype=np.uint8)
    path = write_dicom(page, Modality="CT", RescaleSlope="1", RescaleIntercept="0")
    image = read(path)
    assert image.window == (0, 255)
    np.testing.assert_array_equal(image.pixels[0], page)


@pytest.fixture
def disc(ramp):
    """Values of a disc, and where it is not."""
    y, x = np.mgrid[0:48, 0:48]
    outside = (x - 24) ** 2 + (y - 24) ** 2 > 20**2
    return (300 + 5 * x + 3 * y).astype(np.int16), outside


PADDINGS = [
    ({"PixelPaddingValue": -2000}, [-2000]),
    ({"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1500}, [-2000, -1700, -1500]),
    ({"PixelPaddingValue": -1500, "PixelPaddingRangeLimit": -2000}, [-2000, -1700, -1500]),
    ({"PixelPaddingValue": 3000, "PixelPaddingRangeLimit": 4000}, [3000, 3500, 4000]),
    ({"PixelPaddingValue": 63536}, [-2000]),  # written without a sign
]


@pytest.mark.parametrize(("elements", "values"), PADDINGS)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_left_out_of_percentiles_and_shown_as_background(
    write_dicom, disc, elements, values, photometric
):
    stored, outside = disc
    inside = stored[~outside].astype(float)
    if photometric == "MONOCHROME1":
        inside = inside.min() + inside.max() - inside
    stored = stored.copy()
    stored[outside] = np.resize(values, outside.sum())
    path = write_dicom(stored, Modality="MR", PhotometricInterpretation=photometric)
    image = read(with_padding(path, elements))
    np.testing.assert_allclose(image.window, np.percentile(inside, (0.5, 99.5)), rtol=1e-6)
    np.testing.assert_allclose(image.pixels[0][~outside], inside)
    assert (apply_window(image.pixels, image.window)[0][outside] == 0).all()


def with_padding(path, elements):
    """Write padding with the VR that holds it, whatever the pixels are."""
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        tag = pydicom.tag.Tag(keyword)
        dataset.add_new(tag, "SS" if value < 0 else "US", value)
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("padding", [63536, -2000])
def test_padding_of_unsigned_ct_is_background(write_dicom, disc, padding):
    """Outside the field of view is -2000 without its sign, which is above all bone."""
    stored, outside = disc
    stored = stored.astype(np.uint16)
    stored[outside] = 63536
    path = write_dicom(stored, Modality="CT", SOPClassUID=CT, **RESCALE)
    image = read(with_padding(path, {"PixelPaddingValue": padding}))
    assert image.window == (-1000, 1000)
    assert (image.pixels[0][outside] <= -1000).all()
    np.testing.assert_array_equal(image.pixels[0][~outside], stored[~outside] - 1024.0)


def test_padding_that_no_value_can_have_is_none(write_dicom, ramp):
    path = write_dicom(ramp, BitsStored=12, HighBit=11)
    image = read(with_padding(path, {"PixelPaddingValue": 63536}))
    np.testing.assert_array_equal(image.pixels[0], ramp)


def test_an_image_that_is_all_padding_stays_as_it_is(write_dicom):
    path = write_dicom(np.full((5, 6), 7, np.uint16))
    assert (read(with_padding(path, {"PixelPaddingValue": 7})).pixels == 7).all()


def test_a_slope_of_zero_in_a_frame_is_none(write_dicom, ramp):
    transformation, frame = Dataset(), Dataset()
    transformation.RescaleSlope, transformation.RescaleIntercept = 0, -1024
    frame.PixelValueTransformationSequence = Sequence([transformation])
    path = write_dicom(
        ramp[None], NumberOfFrames=1, PerFrameFunctionalGroupsSequence=Sequence([frame])
    )
    np.testing.assert_array_equal(read(path).pixels[0], ramp.astype(float) - 1024)
