"""Small images, made here, with what a test needs to know of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pytest
from PIL import Image as Pillow
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

# What must never be seen outside a file.
PATIENT = {
    "PatientName": "Zebedee^Quixote",
    "PatientID": "PID-771144",
    "PatientBirthDate": "19610817",
    "AccessionNumber": "ACC-990042",
}


@pytest.fixture
def patient() -> dict[str, str]:
    return PATIENT


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def make_dicom() -> Callable[..., Dataset]:
    return _make_dicom


@pytest.fixture
def write_dicom(tmp_path: Path) -> Callable[..., Path]:
    """Write pixels [H, W], [H, W, 3] or, with NumberOfFrames, [F, H, W], and return the path."""

    def write(pixels: np.ndarray, name: str = "image.dcm", **elements: Any) -> Path:
        path = tmp_path / name
        _make_dicom(pixels, **elements).save_as(path, enforce_file_format=True)
        return path

    return write


@pytest.fixture
def write_png(tmp_path: Path) -> Callable[..., Path]:
    """Write a uint8 image whose values tell it from others, and return the path."""

    def write(name: str, value: int = 0, shape: tuple[int, ...] = (12, 10)) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(value).integers(0, 256, shape, dtype=np.uint8)
        Pillow.fromarray(noise).save(path)
        return path

    return write


def make_dicom_file(path: Path, pixels: np.ndarray, **elements: Any) -> None:
    """Write pixels as DICOM, with `PATIENT` in its header."""
    _make_dicom(pixels, **elements).save_as(path, enforce_file_format=True)


def _make_dicom(pixels: np.ndarray, **elements: Any) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = elements.pop("TransferSyntaxUID", ExplicitVRLittleEndian)
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["test"])
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    bits = 8 * pixels.dtype.itemsize
    defaults = {
        **PATIENT,
        "Modality": "OT",
        "SamplesPerPixel": 3 if pixels.shape[-1] == 3 else 1,
        "PhotometricInterpretation": "RGB" if pixels.shape[-1] == 3 else "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    }
    size = pixels.shape[:2] if pixels.shape[-1] == 3 else pixels.shape[-2:]
    defaults["Rows"], defaults["Columns"] = size
    if pixels.shape[-1] == 3:
        defaults["PlanarConfiguration"] = 0
    for keyword, value in (defaults | elements).items():
        if value is not None:
            setattr(dataset, keyword, value)
    if "PixelData" not in dataset:
        dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
        dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    return dataset


def transcode(path: Path, syntax: str) -> Path:
    """Encode a file anew, by GDCM's name of a transfer syntax."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    encoded = path.with_name(f"{path.stem}-{syntax}.dcm")
    writer.SetFileName(str(encoded))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return encoded
