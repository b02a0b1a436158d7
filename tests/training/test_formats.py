"""One command trains on whatever lies in a folder."""

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from tests.conftest import draw_film
from tests.training.runs import losses, metrics, pretrain

QUICK = ("--effective-batch", 8, "--micro-batch", 4, "--steps", 2)


@pytest.fixture
def mixed(tmp_path):
    """Five images each of PNG, DICOM, NIfTI and NumPy."""
    rng = np.random.default_rng(2)
    films = [draw_film(rng) for _ in range(20)]
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number, film in enumerate(films[:5]):
        Image.fromarray(film).save(folder / f"{number}.png")
    for number, film in enumerate(films[5:10]):
        save_dicom(film.astype(np.uint16), folder / f"{number}.dcm")
    volume = np.stack(films[10:15], axis=2).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1, 1, 2, 1])), folder / "v.nii.gz")
    np.save(folder / "stack.npy", np.stack(films[15:]).astype(np.float32))
    return folder


def save_dicom(pixels, path):
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.Modality, dataset.SamplesPerPixel = "CT", 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 5, -1000
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path, enforce_file_format=True)


def test_dicom_nifti_png_and_numpy_train_together(mixed, tmp_path, capsys):
    """And from an index it is the same run; with a condition, fewer images take part."""
    assert pretrain(mixed, tmp_path / "run", *QUICK, "--index", tmp_path / "i.parquet") == 0
    assert "images    20" in capsys.readouterr().out
    assert len(metrics(tmp_path / "run")) == 2
    assert pretrain(tmp_path / "i.parquet", tmp_path / "again", *QUICK) == 0
    assert losses(tmp_path / "again") == losses(tmp_path / "run")
    capsys.readouterr()
    where = "format in ('NIfTI', 'DICOM') or height == 999"
    assert pretrain(mixed, tmp_path / "some", *QUICK, "--where", where) == 0
    assert "images    10" in capsys.readouterr().out


def test_a_condition_that_is_wrong_stops_before_the_run(mixed, tmp_path, capsys):
    out = tmp_path / "run"
    assert pretrain(mixed, out, *QUICK, "--where", "modalty == 'CT'") == 2
    assert "did you mean 'modality'" in capsys.readouterr().err
    assert pretrain(mixed, out, *QUICK, "--where", "modality == 'US'") == 2
    assert "is met by none of 20 images" in capsys.readouterr().err
    assert pretrain(mixed, out, *QUICK, "--set", "data.slice_axis=oblique") == 2
    assert "one of axial, coronal, sagittal" in capsys.readouterr().err
    assert not out.exists()
