"""One run on DICOM, NIfTI and PNG together, from one command, with nothing prepared."""

import nibabel
import numpy as np
import pytest
from PIL import Image

from tests.conftest import draw_film
from tests.data.conftest import make_dicom_file
from tests.training.runs import losses, metrics, pretrain

SLICES, FILMS = 8, 6


@pytest.fixture
def hospital(tmp_path):
    """A series of CT in DICOM, a volume in NIfTI, a few films in PNG, and a broken file."""
    folder, rng = tmp_path / "hospital", np.random.default_rng(2)
    for name in ("ct", "mr", "films"):
        (folder / name).mkdir(parents=True)
    for number in range(SLICES):
        make_dicom_file(
            folder / "ct" / f"{SLICES - number}.dcm",  # not in the order of their positions
            draw_film(rng).astype(np.int16) * 8,
            Modality="CT",
            PatientID="77",
            SeriesInstanceUID="1.2.3.4",
            PixelSpacing=[0.5, 0.7],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[0, 0, 3.0 * number],
            RescaleSlope=1,
            RescaleIntercept=-1024,
        )
    volume = np.stack([draw_film(rng) for _ in range(SLICES)], axis=2).astype(np.float32)
    nibabel.save(
        nibabel.Nifti1Image(volume, np.diag([1.0, 1.0, 2.0, 1.0])), folder / "mr" / "scan.nii.gz"
    )
    for number in range(FILMS):
        Image.fromarray(draw_film(rng)).save(folder / "films" / f"{number}.png")
    (folder / "films" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder


@pytest.mark.parametrize("slices", [1, 3])
def test_dicom_nifti_and_png_train_together(hospital, tmp_path, capsys, slices):
    flags = ("--effective-batch", 16, "--micro-batch", 8, "--steps", 2)
    assert pretrain(hospital, tmp_path / "run", *flags, data__slices=slices) == 0
    images = 2 * SLICES + FILMS
    assert f"images    {images}, 1 file skipped" in capsys.readouterr().out
    assert len(metrics(tmp_path / "run")) == 2
    assert np.isfinite(losses(tmp_path / "run")).all()
    assert "broken.png" in (tmp_path / "run" / "skipped.csv").read_text()
