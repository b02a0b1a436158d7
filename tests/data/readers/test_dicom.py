import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image as Pillow
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, apply_modality_lut
from pydicom.uid import JPEGBaseline8Bit

from dino_x.data.readers.registry import Unreadable, read, refs
from tests.data.conftest import transcode

BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files"  # never downloads


def expected(path: Path) -> np.ndarray:
    """What pydicom itself makes of a file: [..., H, W], after its modality LUT."""
    dataset = pydicom.dcmread(path, force=True)
    return apply_modality_lut(dataset.pixel_array, dataset)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
@pytest.mark.parametrize(
    "syntax",
    [
        "ImplicitVRLittleEndian",
        "ExplicitVRLittleEndian",
        "ExplicitVRBigEndian",
        "DeflatedExplicitVRLittleEndian",
        "JPEGLosslessProcess14_1",
        "JPEGLSLossless",
        "JPEG2000Lossless",
        "RLELossless",
    ],
)
def test_values_are_exact_in_every_encoding(write_dicom, rng, dtype, syntax):
    limits = np.iinfo(dtype)
    stored = rng.integers(limits.min, limits.max, (11, 18), dtype=dtype, endpoint=True)
    path = transcode(write_dicom(stored, RescaleSlope=0.37, RescaleIntercept=-12.5), syntax)
    (ref,) = refs(path)
    assert (ref.height, ref.width) == (11, 18)
    image = read(ref)
    assert image.pixels.dtype == np.float32
    np.testing.assert_allclose(image.pixels[0], stored * 0.37 - 12.5, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "MR_small.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_RLE.dcm",
        "rtdose.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_implicit.dcm",
        "693_J2KI.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "image_dfl.dcm",
        "rtdose_rle.dcm",
    ],
)
def test_bundled_files_equal_pydicom(name):
    frames = refs(BUNDLED / name)
    wanted = expected(BUNDLED / name).reshape(len(frames), frames[0].height, frames[0].width)
    got = np.concatenate([read(ref).pixels for ref in frames])
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "examples_rgb_color.dcm",
        "examples_ybr_color.dcm",
        "SC_rgb_rle_16bit.dcm",
        "SC_rgb_rle.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
        "examples_jpeg2k.dcm",
        "SC_rgb_small_odd_big_endian.dcm",
        "SC_rgb_jls_lossy_line.dcm",
        "ExplVR_BigEnd.dcm",
    ],
)
def test_colour_becomes_rgb(name):
    dataset = pydicom.dcmread(BUNDLED / name)
    wanted = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns, 3)[0]
    image = read(BUNDLED / name)
    np.testing.assert_array_equal(image.pixels, wanted.transpose(2, 0, 1))
    assert image.window == ((0, 65535) if "16bit" in name else (0, 255))


def test_file_encoded_otherwise_than_it_says_is_read_in_silence():
    """This one names an explicit encoding and has an implicit one, of which pydicom warns."""
    script = (
        "from dino_x.data.readers.registry import *; print(read(Path(sys.argv[1])).pixels.shape)"
    )
    command = [sys.executable, "-c", f"import sys; from pathlib import Path; {script}"]
    ran = subprocess.run(
        [*command, BUNDLED / "SC_rgb_jpeg.dcm"], capture_output=True, text=True, check=True
    )
    assert (ran.stdout, ran.stderr) == ("(3, 256, 256)\n", "")


def test_palette_colours_are_those_of_pydicom():
    dataset = pydicom.dcmread(BUNDLED / "examples_palette.dcm")
    image = read(BUNDLED / "examples_palette.dcm")
    wanted = apply_color_lut(dataset.pixel_array, dataset)
    assert wanted.dtype == np.uint16
    np.testing.assert_array_equal(image.pixels, wanted.transpose(2, 0, 1))
    assert image.window == (0, 65535)


@pytest.mark.parametrize(
    ("bits", "white", "segmented"),  # the length of an 8-bit segment cannot say 256
    [(8, 255, False), (16, 255, False), (16, 65535, False), (16, 65535, True)],
)
def test_palettes_of_8_and_16_bits_and_in_segments(write_dicom, bits, white, segmented):
    """Some writers keep 8-bit colours in entries of 16 bits."""
    dtype = np.uint8 if bits == 8 else np.uint16
    ramp = np.linspace(0, white, 256).astype(dtype)
    palette = {}
    for colour, table in (("Red", ramp), ("Green", ramp[::-1]), ("Blue", ramp // 2)):
        palette[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        if segmented:  # one discrete segment: opcode 0, length, entries
            table = np.concatenate([np.array([0, 256], dtype=np.uint16), table])
            palette[f"Segmented{colour}PaletteColorLookupTableData"] = table.tobytes()
        else:
            palette[f"{colour}PaletteColorLookupTableData"] = table.tobytes()
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = write_dicom(stored, PhotometricInterpretation="PALETTE COLOR", **palette)
    image = read(path)
    wanted = np.stack([ramp[stored], ramp[::-1][stored], (ramp // 2)[stored]])
    np.testing.assert_array_equal(image.pixels, wanted)
    assert image.window == (0, white)


def test_jpeg_baseline_grey(write_dicom, tmp_path):
    smooth = np.add.outer(np.arange(32), np.arange(24)).astype(np.uint8)
    Pillow.fromarray(smooth).save(tmp_path / "frame.jpg", quality=95)
    path = write_dicom(
        smooth,
        PixelData=encapsulate([(tmp_path / "frame.jpg").read_bytes()]),
        TransferSyntaxUID=JPEGBaseline8Bit,
    )
    assert np.abs(read(path).pixels[0] - smooth).max() <= 2


def test_frames_of_a_file_are_images(write_dicom, rng):
    stored = rng.integers(0, 4096, (3, 6, 5), dtype=np.uint16)
    path = write_dicom(stored, NumberOfFrames=3)
    frames = refs(path)
    assert [ref.frame for ref in frames] == [0, 1, 2]
    for ref in frames:
        np.testing.assert_array_equal(read(ref).pixels[0], stored[ref.frame])


def test_rescale_spacing_and_window_may_differ_by_frame(write_dicom):
    def group(slope, center):
        transform, measures, window, item = Dataset(), Dataset(), Dataset(), Dataset()
        transform.RescaleSlope, transform.RescaleIntercept = slope, 10
        measures.PixelSpacing = [slope, 2 * slope]
        window.WindowCenter, window.WindowWidth, window.VOILUTFunction = center, 4, "LINEAR_EXACT"
        item.PixelValueTransformationSequence = [transform]
        item.PixelMeasuresSequence = [measures]
        item.FrameVOILUTSequence = [window]
        return item

    stored = np.arange(8, dtype=np.uint16).reshape(2, 2, 2)
    frames = [group(1, 12), group(3, 25)]
    path = write_dicom(
        stored, NumberOfFrames=2, Modality="XA", PerFrameFunctionalGroupsSequence=frames
    )
    images = [read(ref) for ref in refs(path)]
    np.testing.assert_array_equal(images[0].pixels[0], stored[0] + 10)
    np.testing.assert_array_equal(images[1].pixels[0], 3 * stored[1] + 10)
    assert [image.spacing_mm for image in images] == [(1, 2), (3, 6)]
    assert [image.window for image in images] == [(10, 14), (23, 27)]


def test_frames_without_a_group_of_their_own_have_the_values_of_the_file(write_dicom):
    transform, item = Dataset(), Dataset()
    transform.RescaleSlope, transform.RescaleIntercept = 5, 0
    item.PixelValueTransformationSequence = [transform]
    stored = np.arange(8, dtype=np.uint16).reshape(2, 2, 2)
    rescale = {"RescaleSlope": 2, "RescaleIntercept": 0}
    path = write_dicom(stored, NumberOfFrames=2, PerFrameFunctionalGroupsSequence=[item], **rescale)
    np.testing.assert_array_equal(read(refs(path)[0]).pixels[0], 5 * stored[0])
    np.testing.assert_array_equal(read(refs(path)[1]).pixels[0], 2 * stored[1])


def test_groups_shared_by_all_frames_hold_for_each(write_dicom):
    transform, shared = Dataset(), Dataset()
    transform.RescaleSlope, transform.RescaleIntercept = 2, -1
    shared.PixelValueTransformationSequence = [transform]
    stored = np.arange(8, dtype=np.uint16).reshape(2, 2, 2)
    path = write_dicom(stored, NumberOfFrames=2, SharedFunctionalGroupsSequence=[shared])
    np.testing.assert_array_equal(read(refs(path)[1]).pixels[0], 2 * stored[1] - 1)


def test_modality_lut_sequence(write_dicom):
    table = Dataset()
    table.LUTDescriptor = [4, 0, 16]
    table.ModalityLUTType = "OD"
    table.add_new("LUTData", "US", [0, 100, 300, 900])
    stored = np.array([[0, 1], [2, 3]], dtype=np.uint8)
    path = write_dicom(stored, ModalityLUTSequence=[table])
    np.testing.assert_array_equal(read(path).pixels[0], [[0, 100], [300, 900]])


def test_monochrome1_is_turned_around_with_its_window(write_dicom):
    stored = np.array([[0, 100], [1000, 4000]], dtype=np.uint16)
    window = {"WindowCenter": 3000, "WindowWidth": 1000, "VOILUTFunction": "LINEAR_EXACT"}
    path = write_dicom(stored, Modality="DX", PhotometricInterpretation="MONOCHROME1", **window)
    image = read(path)
    np.testing.assert_array_equal(image.pixels[0], [[4000, 3900], [3000, 0]])
    assert image.window == (500, 1500)


@pytest.mark.parametrize(
    ("elements", "window"),
    [
        ({"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0}, (-1000, 1000)),
        ({"Modality": "DX", "WindowCenter": [50, 9], "WindowWidth": [41, 9]}, (29.5, 69.5)),
        ({"Modality": "MR", "WindowCenter": 50, "WindowWidth": 41}, "percentiles"),
        ({"Modality": "CT"}, "percentiles"),  # no rescale: these are not Hounsfield units
        ({"Modality": "DX", "WindowCenter": 5000, "WindowWidth": 41}, "percentiles"),
        ({"Modality": "DX", "WindowCenter": 50, "WindowWidth": 0}, "percentiles"),
        ({"Modality": "DX", "WindowCenter": None, "WindowWidth": 41}, "percentiles"),
    ],
)
def test_window_follows_the_modality(write_dicom, elements, window):
    stored = np.arange(100, dtype=np.uint16).reshape(10, 10)
    image = read(write_dicom(stored, **elements))
    if window == "percentiles":
        window = tuple(np.percentile(stored, (0.5, 99.5)))
    assert image.window == pytest.approx(window)
    assert image.modality == elements["Modality"]


def test_8_bits_are_0_to_255_unless_rescaled(write_dicom):
    stored = np.arange(100, dtype=np.uint8).reshape(10, 10)
    assert read(write_dicom(stored, Modality="US")).window == (0, 255)
    rescaled = read(write_dicom(stored, Modality="PT", RescaleSlope=50, RescaleIntercept=0))
    assert rescaled.window == pytest.approx(tuple(np.percentile(50.0 * stored, (0.5, 99.5))))


def test_padding_has_no_say_in_percentiles(write_dicom):
    stored = np.full((20, 20), -2000, dtype=np.int16)
    stored[5:, 5:] = np.arange(225).reshape(15, 15)
    image = read(write_dicom(stored, Modality="MR", PixelPaddingValue=-2000))
    assert image.window == pytest.approx(tuple(np.percentile(np.arange(225), (0.5, 99.5))))
    assert image.pixels.min() == -2000


@pytest.mark.parametrize(
    ("elements", "spacing"),
    [
        ({"PixelSpacing": [0.5, 0.25], "ImagerPixelSpacing": [1, 1]}, (0.5, 0.25)),
        ({"ImagerPixelSpacing": [0.2, 0.1]}, (0.2, 0.1)),
        ({"PixelSpacing": [0, 1]}, None),
        ({"PixelSpacing": [1, 0]}, None),
        ({"PixelSpacing": None}, None),
    ],
)
def test_spacing(write_dicom, elements, spacing):
    assert read(write_dicom(np.eye(4, dtype=np.uint8), **elements)).spacing_mm == spacing


@pytest.mark.parametrize("value", [0, 7, 65535])
def test_constant_image_is_read(write_dicom, value):
    image = read(write_dicom(np.full((4, 4), value, dtype=np.uint16)))
    low, high = image.window
    assert low == value
    assert high > low


def test_not_finite_values_are_read(write_dicom):
    values = np.array([[np.nan, 1], [np.inf, 3]], dtype=np.float32)
    integer_only = ("PixelRepresentation", "BitsStored", "HighBit", "PixelData")
    elements = dict.fromkeys(integer_only) | {"FloatPixelData": values.tobytes()}
    image = read(write_dicom(values, **elements))
    np.testing.assert_array_equal(image.pixels[0], values)
    assert 1 <= image.window[0] < image.window[1] <= 3


@pytest.mark.parametrize("explicit", [True, False])
def test_neither_preamble_nor_meta_header_is_needed(tmp_path, make_dicom, rng, explicit):
    stored = rng.integers(0, 4096, (8, 9), dtype=np.uint16)
    dataset = make_dicom(stored)
    del dataset.file_meta
    path = tmp_path / "IM0001"
    dataset.save_as(path, implicit_vr=not explicit, little_endian=True)
    assert path.read_bytes()[:2] == b"\x08\x00"
    np.testing.assert_array_equal(read(path).pixels[0], stored)


def same_as_pydicom(path):
    """Whether all images of a file equal what pydicom makes of it; a reason if it is refused."""
    try:
        frames = refs(path)
        images = [read(ref) for ref in frames]
    except Unreadable as reason:
        return str(reason)
    dataset = pydicom.dcmread(path, force=True)
    stored = dataset.pixel_array
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        wanted = apply_color_lut(stored, dataset)
    else:
        wanted = apply_modality_lut(stored, dataset)
    wanted = wanted.astype(np.float64)
    if images[0].pixels.shape[0] == 3:
        wanted = wanted.reshape(len(images), *wanted.shape[-3:]).transpose(0, 3, 1, 2)
    wanted = wanted.reshape(len(images), -1, frames[0].height, frames[0].width)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        mirror = wanted.min(axis=(2, 3)) + wanted.max(axis=(2, 3))
        wanted = mirror[:, :, None, None] - wanted
    for image, frame in zip(images, wanted, strict=True):
        np.testing.assert_allclose(image.pixels, frame, rtol=1e-6, atol=1e-6, err_msg=path.name)
    return "read"


# Of pydicom's files that have pixels: what is refused, and why. pydicom does not read these either.
REFUSED = {
    "JPEG-lossy.dcm": "lossy JPEG of 12 bits is not supported",
    "JPGExtended.dcm": "lossy JPEG of 12 bits is not supported",
    "JPEG2000-embedded-sequence-delimiter.dcm": "truncated or damaged: .* no valid header",
    "MR_truncated.dcm": "truncated: 8,130 of 8,192 bytes",
    "badVR.dcm": "damaged DICOM header",
    "meta_missing_tsyntax.dcm": "no pixels",
    "nested_priv_SQ.dcm": "no pixels",
}


def test_every_file_of_pydicom_with_pixels_is_read_or_refused_with_a_reason():
    read_files = 0
    for path in sorted(BUNDLED.rglob("*")):
        if not path.is_file():
            continue
        try:
            dataset = pydicom.dcmread(path, force=True)
            has_pixels = any(word in dataset for word in ("PixelData", "FloatPixelData"))
        except Exception:
            has_pixels = False
        if has_pixels:
            reason = same_as_pydicom(path)
            if path.name in REFUSED:
                assert re.search(REFUSED[path.name], reason), (path.name, reason)
            else:
                assert reason == "read", (path.name, reason)
                read_files += 1
    assert read_files > 40
