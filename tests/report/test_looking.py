"""Which images a report may look at: never what may show a patient's name."""

import numpy as np
import pytest
import tifffile

from dino_x.config.options import DataOptions
from dino_x.data.image import DEFAULT
from dino_x.data.index import large
from dino_x.data.index.catalog import update
from dino_x.report.looking import sample_refs
from dino_x.training.snapshots import may_show_names
from tests.data.conftest import make_dicom_file


@pytest.fixture
def folder(tmp_path, rng):
    """A film, a scout, a screen, and a slide with a photograph of its label."""
    folder = tmp_path / "data"
    folder.mkdir()
    pixels = rng.integers(0, 999, (8, 9), dtype=np.uint16)
    for name, words in {
        "film": ["ORIGINAL", "PRIMARY"],
        "scout": ["ORIGINAL", "PRIMARY", "LOCALIZER"],
        "screen": ["DERIVED", "SECONDARY", "SCREEN SAVE"],
    }.items():
        make_dicom_file(folder / f"{name}.dcm", pixels, Modality="CT", ImageType=words)
    picture = rng.integers(0, 255, (9, 7, 3), dtype=np.uint8)
    with tifffile.TiffWriter(folder / "slide.tif") as tiff:
        tiff.write(picture, photometric="rgb", metadata=None)
        tiff.write(picture, photometric="rgb", description="S\nlabel 9x7", metadata=None)
    return folder


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def drawn(path, **more):
    found = [sample_refs([str(path)], seed, **more) for seed in range(8)]
    return {(ref.path.name, ref.frame) for refs in found for ref in refs}


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("take", [[], ["all"], ["slide_label", "screenshot"]])
def test_labels_of_slides_and_screens_are_never_shown(folder, tmp_path, indexed, take):
    out = tmp_path / "i.parquet"
    update([folder], reading=DEFAULT, kept_in=out)
    names = drawn(out if indexed else folder, take=take)
    wanted = {("film.dcm", 0), ("slide.tif", 0)} | ({("scout.dcm", 0)} if "all" in take else set())
    assert names == wanted
    assert drawn(folder, take=take, where="height > 1") == wanted


@pytest.mark.parametrize("listed_up_to", [0, 1000])
@pytest.mark.parametrize("take", [[], ["all"]])
def test_labels_of_slides_and_screens_of_a_large_index_are_never_shown(
    folder, tmp_path, take, monkeypatch, listed_up_to
):
    out = tmp_path / "i.parquet"
    update([folder], reading=DEFAULT, kept_in=out)
    monkeypatch.setattr(large, "ROWS_FROM", 1)
    monkeypatch.setattr(large, "LISTED_UP_TO", listed_up_to)
    wanted = {("film.dcm", 0), ("slide.tif", 0)} | ({("scout.dcm", 0)} if "all" in take else set())
    assert drawn(out, take=take) == wanted
    assert drawn(out, take=take, where="height > 1") == wanted


@pytest.mark.parametrize(
    ("options", "may"),
    [
        ({}, False),
        ({"take": ["mask", "localizer"]}, False),
        ({"take": ["slide_label"]}, True),
        ({"take": ["all"]}, True),
        ({"where": 'kind == "screenshot"'}, True),
        ({"where": "height > 3"}, False),
    ],
)
def test_snapshots_keep_no_pictures_of_a_run_that_takes_these(options, may):
    assert may_show_names(DataOptions(**options)) is may
