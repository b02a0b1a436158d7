"""Runs on DICOM and PNG together: the cache on disk, 2.5D, windows, sources, in one command."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dino_x.config.options import WindowOptions
from dino_x.data.loading import loader as loader_module
from dino_x.evaluation.backbone import load_backbone
from dino_x.training import images as images_module
from tests.conftest import draw_film
from tests.data.conftest import PATIENT, make_dicom_file
from tests.training.runs import losses, pretrain

SMALL = ("--effective-batch", 16, "--micro-batch", 8, "--steps", 2)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A folder of 12 slices of CT in DICOM, 6 of MR, and 10 films in PNG."""
    folder, rng = tmp_path_factory.mktemp("mixed"), np.random.default_rng(1)
    for kind, count in (("CT", 12), ("MR", 6)):
        (folder / kind).mkdir()
        for number in range(count):
            pixels = draw_film(rng).astype(np.int16) * 8
            hu = {"RescaleSlope": 1, "RescaleIntercept": -1024} if kind == "CT" else {}
            make_dicom_file(
                folder / kind / f"{number}.dcm",
                pixels,
                Modality=kind,
                PixelSpacing=[0.5, 0.7],
                **hu,
            )
    (folder / "films").mkdir()
    for number in range(10):
        Image.fromarray(draw_film(rng)).save(folder / "films" / f"{number}.png")
    return folder


@pytest.fixture
def known(monkeypatch):
    """What the headers of the mixed folder say of series, positions and patients."""
    build = images_module.build_index

    def build_index(*arguments, **named):
        index = build(*arguments, **named)
        for i, row in enumerate(index.rows):
            kind = row.path.parent.name
            if kind != "films":
                index.rows[i] = replace(
                    row, series=kind, patient=kind, position_mm=2.0 * int(row.path.stem),
                    modality=kind,
                )  # fmt: skip
        return index

    monkeypatch.setattr(images_module, "build_index", build_index)


@pytest.fixture
def decoded(monkeypatch):
    """How many images loaders decode from now on."""
    read, seen = loader_module.registry.read, []
    monkeypatch.setattr(loader_module.registry, "read", lambda ref: seen.append(ref) or read(ref))
    return seen


def test_a_run_with_the_cache_is_the_run_without_it(mixed, tmp_path, decoded, capsys):
    cache = ("--cache", tmp_path / "cache")
    assert pretrain(mixed, tmp_path / "plain", *SMALL, data__verify="headers") == 0
    assert pretrain(mixed, tmp_path / "first", *SMALL, *cache, data__verify="headers") == 0
    assert "0 of 28 images are in it" in capsys.readouterr().out
    grey = len(decoded)
    assert pretrain(mixed, tmp_path / "second", *SMALL, *cache, data__verify="headers") == 0
    assert "28 of 28 images are in it" in capsys.readouterr().out
    assert losses(tmp_path / "plain") == losses(tmp_path / "first") == losses(tmp_path / "second")
    assert len(decoded) - grey == 28, "only to see whether the images are grey"


def test_a_run_is_resumed_with_a_cache_it_did_not_begin_with(mixed, tmp_path):
    run = tmp_path / "run"
    assert pretrain(mixed, run, *SMALL, checkpoint__every=1) == 0
    whole = losses(run)
    (run / "checkpoints" / "step-00000002.pt").unlink()
    more = ("--resume", "--cache", tmp_path / "cache")
    assert pretrain(mixed, run, *SMALL, *more, checkpoint__every=1, data__cache_gb=1) == 0
    assert losses(run) == whole


def test_windows_of_ct_are_drawn_unless_they_are_fixed(mixed, tmp_path):
    for ct in ("random", "fixed"):
        assert pretrain(mixed / "CT", tmp_path / ct, *SMALL, windows__ct=ct) == 0
    first, second = losses(tmp_path / "random"), losses(tmp_path / "fixed")
    assert first[0] != second[0]


@pytest.mark.usefixtures("known")
def test_slices_with_neighbours_train_and_the_model_says_so(mixed, tmp_path):
    run = tmp_path / "run"
    assert pretrain(mixed, run, *SMALL, "--cache", tmp_path / "cache", data__slices=3) == 0
    stated = json.loads((run / "model" / "preprocessor_config.json").read_text())
    assert stated["dino_x_slices"] == 3
    assert stated["dino_x_windows"] == {"ct": "random", "xray": "file", "mr": [0.5, 99.5]}
    prepared = load_backbone(run).preparation
    assert prepared.slices == 3
    assert prepared.windows == WindowOptions()


@pytest.mark.usefixtures("known")
def test_an_uneven_volume_is_used_in_2d_and_refused_in_2_5d(mixed, tmp_path, capsys):
    gone = mixed / "MR" / "3.dcm"
    kept = gone.read_bytes()
    gone.unlink()
    try:
        assert pretrain(mixed, tmp_path / "2d", *SMALL) == 0
        assert "images    27" in capsys.readouterr().out
        assert pretrain(mixed, tmp_path / "2.5d", *SMALL, data__slices=3) == 0
        assert "images    22, 5 files skipped (see skipped.csv)" in capsys.readouterr().out
    finally:
        gone.write_bytes(kept)
    skipped = (tmp_path / "2.5d" / "skipped.csv").read_text()
    assert skipped.count("2.5D needs slices that are evenly spaced") == 5


def test_crops_in_mm_train_and_nothing_of_a_patient_is_written(mixed, tmp_path):
    millimetres = {"views__global_scale_mm": "[15,25]", "views__local_scale_mm": "[5,10]"}
    flags = (*SMALL, "--cache", tmp_path / "cache")
    assert pretrain(mixed, tmp_path / "run", *flags, **millimetres, data__spacing_mm=1) == 0
    values = [value.encode() for value in PATIENT.values()]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(file.suffix == ".pixels" for file in files)
    for file in files:
        content = file.read_bytes()
        assert not any(value in content for value in values), file


def test_weights_of_sources_are_checked_against_the_paths(mixed, tmp_path, capsys):
    assert pretrain(mixed, tmp_path / "run", *SMALL, data__source_weights="[1,2]") == 2
    assert "source_weights has 2 numbers for 1 paths of data" in capsys.readouterr().err


def test_a_cache_in_a_file_is_refused(mixed, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert pretrain(mixed, tmp_path / "run", *SMALL, "--cache", tmp_path / "file") == 2
    assert "as cache" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
