"""Headers that lack something, lie about their pixel data, or hold forms that are hardly used."""

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from openjpeg.utils import encode_array
from PIL import Image as Pillow
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from dino_x.data.image import Unreadable, remarks_in
from dino_x.data.readers.registry import read, refs
from tests.data.conftest import transcode


@pytest.fixture
def ramp():
    return np.arange(48 * 64, dtype=np.uint16).reshape(48, 64)


@pytest.fixture
def cine(ramp):
    return np.stack([ramp, ramp[::-1], ramp[:, ::-1]])


def changed(path, **elements):
    """The same file with other elements; None removes one."""
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


def compressed(path, syntax=RLELossless, **elements):
    dataset = pydicom.dcmread(path)
    dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path)
    return changed(path, **elements)


@pytest.mark.parametrize("bits", [7, 8])
def test_a_signed_image_of_8_bits_is_shown_between_its_own_values(write_dicom, bits):
    values = np.arange(-60, 60, dtype=np.int8).reshape(10, 12)
    image = read(write_dicom(values, Modality="US", BitsStored=bits))
    np.testing.assert_array_equal(image.pixels[0], values)
    assert -61 < image.window[0] < -58
    assert 57 < image.window[1] < 60


def table_of(data: bytes) -> tuple[list[int], int]:
    """The table of offsets of encapsulated data, and where its end is."""
    length = int.from_bytes(data[4:8], "little")
    return np.frombuffer(data[8 : 8 + length], "<u4").tolist(), 8 + length


@pytest.mark.parametrize(
    "edit",
    [
        lambda offsets: [0] * len(offsets),
        lambda offsets: [offsets[0], offsets[2], offsets[1]],
        lambda offsets: [offset + 5000 for offset in offsets],
        lambda offsets: [offset + 8 for offset in offsets],
        lambda offsets: offsets[:1],
        lambda offsets: [],
    ],
    ids=["zeros", "swapped", "absolute", "behind the item", "short", "empty"],
)
def test_a_wrong_table_of_offsets_changes_nothing(write_dicom, cine, edit):
    path = compressed(write_dicom(cine, NumberOfFrames=3))
    data = pydicom.dcmread(path).PixelData
    offsets, end = table_of(data)
    assert len(offsets) == 3
    table = np.array(edit(offsets), "<u4").tobytes()
    changed(path, PixelData=data[:4] + len(table).to_bytes(4, "little") + table + data[end:])
    for ref, frame in zip(refs(path), cine, strict=True):
        np.testing.assert_array_equal(read(ref).pixels[0], frame)


def test_a_wrong_extended_table_of_offsets_changes_nothing(write_dicom, cine):
    path = compressed(write_dicom(cine, NumberOfFrames=3))
    frames = list(generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=3))
    lengths = np.array([len(frame) for frame in frames], "<u8").tobytes()
    changed(
        path,
        PixelData=encapsulate(frames, has_bot=False),
        ExtendedOffsetTable=bytes(24),
        ExtendedOffsetTableLengths=lengths,
    )
    for ref, frame in zip(refs(path), cine, strict=True):
        np.testing.assert_array_equal(read(ref).pixels[0], frame)


@pytest.mark.parametrize("syntax", [None, "JPEG2000Lossless", "JPEGLSLossless"])
def test_compressed_frames_that_are_not_counted_are_remarked_on(write_dicom, cine, syntax):
    path = write_dicom(cine, NumberOfFrames=3, Modality="US")
    path = compressed(path) if syntax is None else transcode(path, syntax)
    assert refs(path)[0].remark is None
    (ref,) = refs(changed(path, NumberOfFrames=None))
    remark = "more pixel data than its number of frames: the first frames are read"
    assert remark in remarks_in(ref.remark)
    np.testing.assert_array_equal(read(ref).pixels[0], cine[0])


def test_a_frame_in_several_fragments_is_one(write_dicom, ramp):
    path = transcode(write_dicom(ramp), "JPEG2000Lossless")
    (frame,) = generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1)
    changed(path, PixelData=encapsulate([frame], fragments_per_frame=4))
    (ref,) = refs(path)
    assert ref.remark is None
    np.testing.assert_array_equal(read(ref).pixels[0], ramp)


@pytest.mark.parametrize("syntax", ["JPEGBaselineProcess1", JPEG2000Lossless, JPEGLSLossless])
def test_channels_of_a_compressed_image_are_those_of_its_header(write_dicom, rng, syntax):
    colours = rng.integers(0, 256, (64, 72, 3), dtype=np.uint8)
    path = write_dicom(colours)
    path = compressed(path, syntax) if isinstance(syntax, UID) else transcode(path, syntax)
    path = changed(path, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2")
    with pytest.raises(Unreadable, match=r"has 3 channels and the header says 1$"):
        refs(path)


@pytest.mark.parametrize("colours", ["HSV", "ARGB", "CMYK", "YBR_PARTIAL_422", "YBR_PARTIAL_420"])
def test_colours_that_nothing_turns_into_rgb_are_refused(write_dicom, rng, colours):
    pixels = rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)
    with pytest.raises(Unreadable, match=f"^colours as {colours} are not supported: save it as"):
        refs(write_dicom(pixels, PhotometricInterpretation=colours))


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"SamplesPerPixel": 4, "PixelData": bytes(4 * 4 * 6)}, "four samples a pixel are not"),
        ({"BitsAllocated": 24, "BitsStored": 24, "PixelData": bytes(72)}, "values of 24 bits are"),
    ],
)
def test_forms_that_are_not_read_are_not_called_damaged(write_dicom, elements, reason):
    with pytest.raises(Unreadable, match=f"^{reason}"):
        refs(write_dicom(np.zeros((4, 6), np.uint8), **elements))


@pytest.mark.parametrize(
    ("missing", "remark"),
    [
        ("PhotometricInterpretation", "no PhotometricInterpretation: read as MONOCHROME2 or RGB"),
        ("SamplesPerPixel", "no SamplesPerPixel: read as one channel"),
        ("PixelRepresentation", "no PixelRepresentation: values are read without a sign"),
        ("BitsStored", None),
        ("HighBit", None),
    ],
)
def test_a_header_that_lacks_an_element_is_read_as_others_read_it(
    write_dicom, ramp, missing, remark
):
    (ref,) = refs(write_dicom(ramp, **{missing: None}))
    np.testing.assert_array_equal(read(ref).pixels[0], ramp)
    assert ref.remark == remark


@pytest.mark.parametrize("missing", ["PhotometricInterpretation", "PlanarConfiguration"])
def test_colours_whose_header_lacks_an_element_are_read_as_others_read_them(
    write_dicom, rng, missing
):
    pixels = rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)
    (ref,) = refs(write_dicom(pixels, **{missing: None}))
    np.testing.assert_array_equal(read(ref).pixels, pixels.transpose(2, 0, 1))


def test_compressed_colours_without_a_name_are_refused(write_dicom, rng):
    path = compressed(write_dicom(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)))
    with pytest.raises(Unreadable, match="does not say what its colours are"):
        refs(changed(path, PhotometricInterpretation=None))


def test_a_jpeg_of_8_bits_in_a_header_of_16_is_read(write_dicom):
    values = np.full((16, 24), 100, np.uint8)
    values[:8] = 50
    encoded = io.BytesIO()
    Pillow.fromarray(values).save(encoded, "JPEG", quality=100)
    path = write_dicom(
        values.astype(np.uint16), BitsStored=8, HighBit=7, TransferSyntaxUID=JPEGBaseline8Bit,
        PixelData=encapsulate([encoded.getvalue()]),
    )  # fmt: skip
    image = read(path)
    np.testing.assert_allclose(image.pixels[0], values, atol=2)
    assert image.window == (0, 255)


def table(data, descriptor, vr="OW", **elements):
    item = Dataset()
    item.LUTDescriptor, item.ModalityLUTType = descriptor, "US"
    item.LUTData = data
    item["LUTData"].VR = vr
    return {"ModalityLUTSequence": Sequence([item]), **elements}


ENTRIES = 255 - np.arange(256)


@pytest.mark.parametrize(
    ("data", "descriptor", "vr"),
    [
        (ENTRIES.astype(np.uint8).tobytes(), [256, 0, 8], "OW"),
        (ENTRIES.astype("<u2").tobytes(), [256, 0, 8], "OW"),
        (ENTRIES.astype("<u2").tobytes(), [256, 0, 12], "OW"),
        (ENTRIES.tolist(), [256, 0, 14], "US"),
        (ENTRIES.astype("<u2").view(np.uint16).tolist(), [256, 0, 16], "US"),
    ],
    ids=["two a word", "one a word", "12 bits", "14 bits as numbers", "16 bits as numbers"],
)
def test_a_modality_lut_of_any_number_of_bits(write_dicom, data, descriptor, vr):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = write_dicom(values, Modality="CR", **table(data, descriptor, vr))
    np.testing.assert_array_equal(read(path).pixels[0], 255 - values.astype(float))


def test_a_modality_lut_of_the_whole_range_of_a_signed_type(write_dicom):
    values = np.array([[-32768, -1], [0, 32767]], np.int16)
    entries = np.arange(65536, dtype="<u2")[::-1]
    item = table(entries.tobytes(), [0, -32768, 16])
    item["ModalityLUTSequence"][0]["LUTDescriptor"].VR = "SS"
    pixels = read(write_dicom(values, **item)).pixels[0]
    np.testing.assert_array_equal(pixels, 65535 - (values.astype(float) + 32768))


def test_the_first_value_of_a_modality_lut_has_the_sign_of_the_values(write_dicom):
    """In a header that names no types it looks like a large number."""
    values = np.array([[-1000, -999], [0, 999]], np.int16)
    entries = np.arange(2000, dtype="<u2") * 3
    item = table(entries.tobytes(), [2000, 64536, 16])
    item["ModalityLUTSequence"][0]["LUTDescriptor"].VR = "US"
    path = write_dicom(values, TransferSyntaxUID=ImplicitVRLittleEndian, **item)
    np.testing.assert_array_equal(read(path).pixels[0], (values.astype(float) + 1000) * 3)


def test_a_modality_lut_that_is_cut_off_is_damage(write_dicom):
    path = write_dicom(np.zeros((4, 4), np.uint8), **table(bytes(100), [256, 0, 16]))
    with pytest.raises(Unreadable, match="its modality LUT has not as many entries"):
        read(path)


@pytest.mark.parametrize(
    ("photometric", "shape", "said"),
    [
        ("MONOCHROME1", "INVERSE", False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME2", "INVERSE ", True),
    ],
)
def test_a_presentation_lut_shape_that_contradicts_is_remarked_on(
    write_dicom, ramp, photometric, shape, said
):
    path = write_dicom(
        ramp, Modality="DX", PhotometricInterpretation=photometric, PresentationLUTShape=shape
    )
    (ref,) = refs(path)
    assert (ref.remark is not None) == said
    assert not said or ref.remark.startswith("PresentationLUTShape contradicts")
    wanted = ramp.max() - ramp if photometric == "MONOCHROME1" else ramp
    np.testing.assert_array_equal(read(ref).pixels[0], wanted)


def test_values_for_processing_and_missing_groups_are_remarked_on(write_dicom, cine):
    group = Dataset()
    group.PixelValueTransformationSequence = Sequence([Dataset()])
    group.PixelValueTransformationSequence[0].RescaleSlope = 2
    group.PixelValueTransformationSequence[0].RescaleIntercept = 0
    path = write_dicom(
        cine, NumberOfFrames=3, Modality="MG", PerFrameFunctionalGroupsSequence=Sequence([group]),
        SOPClassUID="1.2.840.10008.5.1.4.1.1.1.2.1", PatientID="ANONYMOUS",
    )  # fmt: skip
    assert remarks_in(refs(path)[0].remark) == [
        "not as many functional groups as frames: some have the values of the file",
        "values of a detector (FOR PROCESSING), not those that a display shows",
        "PatientID is a placeholder: patients are not known",
    ]


def test_monochrome1_is_turned_around_where_some_values_are_none(write_dicom):
    values = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    values[0, :3] = np.nan, np.inf, -np.inf
    path = write_dicom(
        np.zeros((6, 8), np.uint32), PhotometricInterpretation="MONOCHROME1", BitsStored=None,
        HighBit=None, PixelRepresentation=None, PixelData=b"", FloatPixelData=values.tobytes(),
    )  # fmt: skip
    changed(path, PixelData=None)
    finite = np.isfinite(values)
    wanted = values[finite].max() + values[finite].min() - values
    np.testing.assert_allclose(read(path).pixels[0], wanted, rtol=1e-5)


@pytest.mark.parametrize("named", ["YBR_RCT", "RGB", "YBR_FULL", "YBR_FULL_422"])
def test_a_codestream_that_becomes_rgb_is_not_turned_again(write_dicom, rng, named):
    """Some transcode from JPEG and leave the colours of before in the header."""
    colours = rng.integers(0, 256, (64, 72, 3), dtype=np.uint8)
    dataset = pydicom.dcmread(write_dicom(colours))
    codestream = encode_array(colours, photometric_interpretation=1, use_mct=True, bits_stored=8)
    dataset.PixelData = encapsulate([bytes(codestream)])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PhotometricInterpretation = named
    dataset.save_as(dataset.filename)
    np.testing.assert_array_equal(read(Path(dataset.filename)).pixels, colours.transpose(2, 0, 1))


def with_text(path, old, new):
    """The same file with other bytes in an element: pydicom writes no such numbers."""
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    return path


CT = {"Modality": "CT", "RescaleSlope": "1.5", "RescaleIntercept": "-1024.0", "BitsStored": 12}


@pytest.mark.parametrize(
    ("old", "new"), [(b"-1024.0 ", b"-1024,0 "), (b"1.5 ", b"1,5 "), (b"-1024.0 ", b"-1024.0\0")]
)
def test_a_rescale_with_a_decimal_comma_is_that_number(write_dicom, ramp, old, new):
    """Left out, it gave stored values in the window of Hounsfield units."""
    path = with_text(write_dicom(ramp, **CT), old, new)
    assert (refs(path)[0].slope, refs(path)[0].intercept) == (1.5, -1024)
    image = read(path)
    np.testing.assert_array_equal(image.pixels[0], ramp * 1.5 - 1024)
    assert image.window == (-1000, 1000)


@pytest.mark.parametrize("text", [b"unknown ", b"-1024 HU", b"NaN     ", b"1e999   "])
def test_a_rescale_that_is_no_number_is_refused(write_dicom, ramp, text):
    path = with_text(write_dicom(ramp, **CT), b"-1024.0 ", text)
    with pytest.raises(Unreadable, match="^damaged DICOM header: its rescale is no number$"):
        refs(path)


def test_lengths_with_a_decimal_comma_are_these_numbers(write_dicom, ramp):
    path = write_dicom(ramp, PixelSpacing=["0.75", "0.25"], WindowCenter="2000.0", WindowWidth="9")
    path = with_text(path, b"0.75\\0.25 ", b"0,75\\0,25 ")
    (ref,) = refs(with_text(path, b"2000.0", b"2000,0"))
    assert ref.spacing_mm == (0.75, 0.25)
    assert ref.window == (1995.5, 2003.5)


@pytest.mark.parametrize("unit", ["HU", "Hounsfield", "HOUNSFIELD UNITS"])
def test_hounsfield_units_by_their_whole_name(write_dicom, ramp, unit):
    assert read(write_dicom(ramp, **CT, RescaleType=unit)).window == (-1000, 1000)


@pytest.mark.parametrize(
    ("image_type", "modality", "kind"),
    [
        (["DERIVED", "SECONDARY", "OTHER", "CT_SOM5 PROT"], "CT", "screenshot"),
        (["DERIVED", "PRIMARY", "M", "T1", "MAP"], "MR", "map"),
    ],
)
def test_pages_of_text_and_maps_are_named(write_dicom, ramp, image_type, modality, kind):
    ct = "1.2.840.10008.5.1.4.1.1.2"
    path = write_dicom(ramp, Modality=modality, ImageType=image_type, SOPClassUID=ct)
    assert refs(path)[0].kind == kind
