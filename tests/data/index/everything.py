"""A folder with everything in it: images, masks, reports, archives, junk and damage."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import nibabel
import numpy as np
import tifffile
from PIL import Image as Pillow
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from tests.data.conftest import make_dicom_file

_PREFIX = "1.2.840.10008.5.1.4.1.1."
_CT = {"Modality": "CT", "SOPClassUID": _PREFIX + "2", "PixelSpacing": [0.7, 0.7],
       "SliceThickness": 5, "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
       "RescaleSlope": 1, "RescaleIntercept": -1024, "BodyPartExamined": "CHEST",
       "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}  # fmt: skip


def make_everything(folder: Path) -> None:
    """Write the folder. Nothing in it is random or depends on the time."""
    for name in ("ct", "mr/imagesTr", "mr/labelsTr", "films", "volumes", "archives", "other"):
        (folder / name).mkdir(parents=True)
    _write_ct(folder / "ct")
    _write_volumes(folder / "volumes", folder / "mr")
    _write_films(folder / "films")
    _write_archives(folder / "archives")
    _write_others(folder / "other")


def _picture(number: int, shape: tuple[int, ...] = (64, 56)) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def _write_ct(folder: Path) -> None:
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 2000, (64, 64), dtype=np.uint16)
        patient, place = divmod(number, 4)
        identity = {"PatientID": f"P{patient}", "SeriesInstanceUID": f"1.2.{patient}"}
        position = {"ImagePositionPatient": [0, 0, 5 * place]}
        make_dicom_file(folder / f"{number}.dcm", pixels, **_CT | identity | position)
    scout = _CT | {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "PatientID": "P0"}
    make_dicom_file(folder / "scout.dcm", pixels, **scout)
    make_dicom_file(folder / "nobody.dcm", pixels, **_CT | {"PatientID": "ANONYMOUS"})
    (folder / "copy.dcm").write_bytes((folder / "1.dcm").read_bytes())
    (folder / "cut.dcm").write_bytes((folder / "2.dcm").read_bytes()[:4000])
    for name, modality, sop_class in (("sr", "SR", "88.11"), ("rs", "RTSTRUCT", "481.3")):
        _write_report(folder / f"{name}.dcm", modality, _PREFIX + sop_class)
    (folder / "DICOMDIR").write_bytes(b"")


def _write_report(path: Path, modality: str, sop_class: str) -> None:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.Modality = modality
    dataset.save_as(path, enforce_file_format=True)


def _write_volumes(volumes: Path, mr: Path) -> None:
    values = np.random.default_rng(0).integers(0, 900, (48, 40, 6), dtype=np.int16)
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(values, affine), mr / "imagesTr" / "brain_0000.nii.gz")
    nibabel.save(nibabel.Nifti1Image(values % 3, affine), mr / "labelsTr" / "brain.nii.gz")
    nibabel.save(nibabel.MGHImage(values.astype(np.float32), affine), volumes / "T1.mgz")
    nibabel.save(nibabel.MGHImage(values.astype(np.int32), affine), volumes / "aseg.mgz")
    nrrd = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 48 40 6\nspacings: 1 1 3\nendian: little\n"
    raw = values.astype("<i2").tobytes("F")
    (volumes / "scan.nrrd").write_bytes(nrrd + b"encoding: raw\n\n" + raw)
    (volumes / "scan-label.nrrd").write_bytes(
        nrrd + b"encoding: gzip\n\n" + gzip.compress(raw, mtime=0)
    )
    (volumes / "scan.mhd").write_text(
        "NDims = 3\nDimSize = 48 40 6\nElementSpacing = 1 1 3\nElementType = MET_SHORT\n"
        "ElementDataFile = scan.raw\n"
    )
    (volumes / "scan.raw").write_bytes(raw)
    np.save(volumes / "frames.npy", _picture(1, (5, 40, 48)))
    np.save(volumes / "unclear.npy", _picture(2, (96, 96, 20)))


def _write_films(folder: Path) -> None:
    for number in range(30, 50):
        Pillow.fromarray(_picture(number)).save(folder / f"{number}.png")
    Pillow.fromarray(_picture(9)).save(folder / "9.jpg")
    Pillow.fromarray(_picture(8, (64, 56, 3))).save(folder / "photo.png")
    tifffile.imwrite(folder / "pages.tif", np.stack([_picture(3), _picture(4)]), metadata=None)
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "web.webp").write_bytes(b"RIFF\0\0\0\0WEBPVP8 ")


def _write_archives(folder: Path) -> None:
    for name, mode in (("films.tar", "w"), ("more.tar.gz", "w:gz")):
        with tarfile.open(folder / name, mode) as tar:
            for number in range(20, 23):
                file = io.BytesIO()
                Pillow.fromarray(_picture(number)).save(file, "PNG")
                info = tarfile.TarInfo(f"{number}.png")
                info.size = len(file.getvalue())
                file.seek(0)
                tar.addfile(info, file)
            tar.addfile(tarfile.TarInfo("about.json"))
    (folder / "old.zip").write_bytes(b"PK\3\4")


def _write_others(folder: Path) -> None:
    for name in ("table.csv", "notes.csv", "README", "model.pt", "brain.mnc", "a.dcm.gz"):
        (folder / name).write_bytes(b"something else")
    (folder / ".DS_Store").write_bytes(b"")
