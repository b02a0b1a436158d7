"""Outside of DINO-X, images are prepared as in training, or a run's folder is refused."""

import json
import shutil

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

import dino_x
from dino_x.cli import main
from dino_x.errors import UserError
from tests.data.conftest import _make_dicom
from tests.evaluation.conftest import save_tiny
from tests.tiny import image_processor
from tests.training.runs import pretrain

QUICK = ("--effective-batch", 8, "--micro-batch", 8, "--steps", 1, "--centering", "sinkhorn")


def eight_bits(folder):
    rng = np.random.default_rng(0)
    for number in range(8):
        pixels = rng.integers(0, 255, (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def sixteen_bits(folder):
    rng = np.random.default_rng(0)
    for number in range(8):
        pixels = rng.integers(0, 4000, (40, 40), dtype=np.uint16)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def ct(folder):
    rng = np.random.default_rng(0)
    for number in range(8):
        pixels = rng.integers(0, 2000, (40, 40), dtype=np.uint16)
        file = _make_dicom(pixels, Modality="CT", RescaleSlope=1, RescaleIntercept=-1024)
        file.save_as(folder / f"{number}.dcm", enforce_file_format=True)


def volumes(folder):
    rng = np.random.default_rng(0)
    values = rng.normal(100, 30, (40, 40, 12)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / "1.nii.gz")


def run_on(write, tmp_path, **settings):
    """The run, and the folder of its images."""
    images, out = tmp_path / "images", tmp_path / "run"
    images.mkdir()
    write(images)
    settings |= {"report__page": True, "model__layerscale": 0.5, "model__init": "fan_in"}
    assert pretrain(images, out, *QUICK, **settings) == 0  # features that follow the image
    return out, images


@pytest.mark.parametrize("channels", [1, 3])
def test_of_8_bit_pictures_transformers_gives_our_features(tmp_path, channels):
    out, images = run_on(eight_bits, tmp_path, model__channels=channels)
    found = dino_x.load(out).embed(images)
    processor = image_processor(out / "model", backend="pil")
    network = AutoModel.from_pretrained(out / "model").eval()
    mode = "L" if channels == 1 else "RGB"
    assert f'convert("{mode}")' in (out / "report.html").read_text().replace("&#34;", '"')
    for row, ref in zip(found.cls, found.images, strict=True):
        pixels = processor(Image.open(ref.path).convert(mode), return_tensors="pt")
        with torch.no_grad():
            outside = network(**pixels).pooler_output[0]
        assert torch.cosine_similarity(outside, torch.from_numpy(row), dim=0) > 0.9999


def with_one_of_colour(folder):
    eight_bits(folder)
    pixels = np.random.default_rng(1).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    pixels[..., 0] //= 4  # little red, so that its luma is not its mean
    Image.fromarray(pixels).save(folder / "1-colour.png")


def test_a_colour_image_among_grey_ones_is_grey_in_training_and_after_it(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("dino_x.data.index.index.GREY_SAMPLE", 4)
    monkeypatch.setattr("dino_x.commands.announce.GREY_SAMPLE", 4)
    out, images = run_on(with_one_of_colour, tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert "grey no colours in 4 images looked at: an image that has some becomes grey" in said
    picture = Image.open(images / "1-colour.png")
    others = {"colour": picture, "luma": picture.convert("L"), "red": picture.getchannel(0)}
    places = {}
    for name, one in others.items():
        places[name] = tmp_path / f"{name}.png"
        one.save(places[name])
    model = dino_x.load(out)
    embedded = {name: torch.from_numpy(model.embed(path).cls[0]) for name, path in places.items()}
    shown = {name: model.images(path)[0] for name, path in places.items()}

    def alike(first, second):
        return float(torch.cosine_similarity(first.flatten(), second.flatten(), dim=0))

    assert alike(embedded["colour"], embedded["luma"]) > 0.9999
    assert alike(embedded["colour"], embedded["red"]) < 0.999
    torch.testing.assert_close(shown["colour"], shown["luma"], rtol=0, atol=0.02)
    assert main(["export", str(out), "--to", str(tmp_path / "to"), "--format", "transformers"]) == 0
    assert alike(
        torch.from_numpy(dino_x.load(tmp_path / "to").embed(places["colour"]).cls[0]),
        embedded["colour"],
    ) > 0.9999  # fmt: skip
    card = (tmp_path / "to" / "README.md").read_text()
    assert 'Image.open("image.png").convert("L").convert("RGB")' in card
    assert "an image with colours becomes grey first" in card


@pytest.mark.parametrize(
    ("write", "settings"),
    [(sixteen_bits, {}), (ct, {}), (volumes, {}), (volumes, {"data__slices": 3})],
)
def test_what_a_processor_would_do_wrongly_it_refuses(tmp_path, write, settings):
    out, images = run_on(write, tmp_path, **settings)
    with pytest.raises(ValueError, match="image processor"):
        image_processor(out / "model", backend="pil")
    page = (out / "report.html").read_text()
    assert "dino_x.load" in page
    assert "AutoImageProcessor" not in page
    to = tmp_path / "exported"
    assert main(["export", str(out), "--to", str(to), "--format", "transformers"]) == 0
    card = (to / "README.md").read_text()
    assert f'dino_x.load("{to.name}")' in card
    assert "8-bit pictures" in card
    with pytest.raises(ValueError, match="image processor"):
        image_processor(to, backend="pil")
    own, exported = dino_x.load(out).embed(images), dino_x.load(to).embed(images)
    assert own.cls.shape[0] >= 8
    np.testing.assert_allclose(exported.cls, own.cls, atol=1e-5)


def test_of_pictures_the_processor_is_one_of_transformers(tmp_path):
    out, _ = run_on(eight_bits, tmp_path)
    stated = json.loads((out / "model" / "preprocessor_config.json").read_text())
    assert stated["image_processor_type"] == "ViTImageProcessor"


def arrays(folder):
    rng = np.random.default_rng(0)
    for number in range(8):
        np.save(folder / f"{number}.npy", rng.integers(0, 255, (40, 36, 5), dtype=np.uint8))


@pytest.mark.parametrize(
    ("write", "settings", "told"),
    [
        (volumes, {"data__modality": "CT"}, "files that name no modality are CT"),
        (volumes, {"data__slice_axis": "coronal"}, "volumes are cut into coronal slices"),
        (arrays, {"data__axes": "HWC", "model__channels": 5}, "name their axes are HWC"),
    ],
)
def test_an_export_reads_files_as_its_run_was_told_to(tmp_path, write, settings, told):
    out, images = run_on(write, tmp_path, **settings)
    to, copied = tmp_path / "exported", tmp_path / "copied"
    assert main(["export", str(out), "--to", str(to), "--format", "transformers"]) == 0
    assert told in (to / "README.md").read_text()
    shutil.copytree(out / "model", copied)
    expected = dino_x.load(out).embed(images)
    for folder in (to, copied):
        found = dino_x.load(folder).embed(images)
        assert [ref.frame for ref in found.images] == [ref.frame for ref in expected.images]
        np.testing.assert_allclose(found.cls, expected.cls, atol=1e-5)


@pytest.mark.parametrize("said", [[1], {"slice_axis": "up"}, {"modality": 3}, {"axes": "XY"}])
def test_a_reading_that_is_none_is_one_line(tmp_path, said):
    save_tiny(tmp_path / "model")
    file = tmp_path / "model" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dino_x_reading": said}))
    with pytest.raises(UserError, match=r"preprocessor_config.json cannot be read"):
        dino_x.load(tmp_path / "model")
