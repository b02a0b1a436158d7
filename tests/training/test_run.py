"""What a run leaves behind, and that it is what it says."""

import csv
import json
import math
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoModel

from dino_x.cli import main
from tests.conftest import draw_film, tiny_settings
from tests.tiny import image_processor
from tests.training.runs import losses, metrics, pretrain, weights

QUICK = ("--effective-batch", 8, "--micro-batch", 4, "--steps", 3, "--centering", "sinkhorn")


@pytest.fixture(scope="module")
def run(films, tmp_path_factory):
    """A finished run of three steps, with the classes being the folders."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert pretrain(films, out, *QUICK, "--labels", "folder", report__page=True) == 0
    return out


def test_everything_promised_is_there_and_nothing_else(run):
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "facts.json", "metrics.jsonl", "checkpoints", "model", "evaluation.json",
        "skipped.csv", "tensorboard", "snapshots", "report.html", "micro_batch.json",
        "trained_on.keys", "split.csv", "train.log", "environment.json",
    }  # fmt: skip
    assert {path.name for path in (run / "model").iterdir()} == {
        "config.json", "model.safetensors", "preprocessor_config.json",
    }  # fmt: skip
    assert not list(run.rglob("*.partial"))


def test_the_model_loads_with_automodel_and_gives_the_teachers_features(run):
    from dino_x.config.presets import check
    from dino_x.model.teacher import build_student

    options = check(_dotted(run))
    network = build_student(options)
    teacher = {
        name.removeprefix(".teacher."): value
        for name, value in weights(run, 3).items()
        if name.startswith(".teacher.")
    }
    network.load_state_dict(teacher)
    crops = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        inside, _ = network(crops, None, None)
        outside = AutoModel.from_pretrained(run / "model")(crops).pooler_output
    torch.testing.assert_close(outside, inside, rtol=0, atol=1e-6)


def _dotted(run):
    from dino_x.config.presets import dotted

    return dotted(yaml.safe_load((run / "config.yaml").read_text()))


def test_the_image_processor_loads_and_prepares_as_training_did(run):
    processor = image_processor(run / "model", backend="pil")
    film = Image.fromarray(np.full((50, 70), 255, np.uint8)).convert("RGB")
    pixels = processor(film, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    torch.testing.assert_close(pixels, torch.full_like(pixels, (1 - 0.5) / 0.25))


def test_its_settings_repeat_it(run, tmp_path):
    config = str(run / "config.yaml")
    assert main(["pretrain", "--config", config, "--out", str(tmp_path / "again")]) == 0
    assert losses(tmp_path / "again") == losses(run)


def test_each_step_is_recorded_once_with_the_numbers_of_its_loss(run):
    steps = metrics(run)
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert [step["images"] for step in steps] == [8, 16, 24]
    for step in steps:
        parts = step["dino"] + 0.5 * step["ibot"] + 0.1 * step["koleo"]
        assert step["loss"] == pytest.approx(parts, rel=1e-5)
        assert abs(step["dino"] - math.log(61)) < 0.2  # an untrained head is at log K
        assert step["images_per_second"] > 0
        assert step["memory_gib"] > 0


def test_tensorboard_has_the_same_numbers(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    for name in ("loss", "lr", "gradient_norm"):
        found = [event.value for event in board.Scalars(name)]
        assert found == pytest.approx([step[name] for step in metrics(run)], rel=1e-6)


def test_labels_are_evaluated_at_the_end(run):
    result = json.loads((run / "evaluation.json").read_text())
    assert set(result["results"]) == {"model", "random", "pixels"}
    assert list(result["verdicts"]) == ["knn", "linear"]
    linear = result["results"]["model"]["linear"]["all"]["balanced_accuracy"]
    assert 0 <= linear["low"] <= linear["value"] <= linear["high"] <= 1


def test_the_other_commands_take_the_run(run, films, tmp_path, capsys):
    floor = ["batch-floor", "--model", str(run), "--data", str(films), "--repeats", "2"]
    assert main([*floor, "--out", str(tmp_path / "floor")]) == 0
    assert {path.name for path in (tmp_path / "floor").iterdir()} == {
        "batch_floor.json", "batch_floor.png",
    }  # fmt: skip
    evaluate = ["evaluate", "--model", str(run), "--data", str(films), "--labels", "folder"]
    evaluate += ["--tasks", "knn", "linear"]
    assert main([*evaluate, "--out", str(tmp_path / "evaluation.json")]) == 0
    again = json.loads((tmp_path / "evaluation.json").read_text())["results"]
    assert again == json.loads((run / "evaluation.json").read_text())["results"]
    assert main(["options"]) == 0
    assert "optim.lr  " in capsys.readouterr().out


def test_images_that_are_tested_on_are_not_trained_on(films, tmp_path, monkeypatch):
    """By patient: 30 of the 40 films are reference, 10 are tested on."""
    from dino_x.data.readers import registry

    paths = sorted(films.rglob("*.png"))
    table = ["path,label,patient,split"]
    for number, path in enumerate(paths):
        split = "test" if number % 4 == 0 else "train"
        table.append(f"{path.relative_to(films)},{path.parent.name},{number},{split}")
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(table))
    settings = {"data__verify": "headers", "data__cache_mb": 0}
    flags = ("--effective-batch", 30, "--micro-batch", 15, "--steps", 3, "--labels", labels)
    seen, read = set(), registry.read
    monkeypatch.setattr(
        "dino_x.data.loading.loader.registry.read", lambda ref: (seen.add(ref.path), read(ref))[1]
    )
    monkeypatch.setattr("dino_x.commands.pretrain.evaluate_run", lambda *arguments: None)
    monkeypatch.setattr("dino_x.training.prepare.is_grey", lambda *_: True)
    monkeypatch.setattr("dino_x.training.prepare.is_plain", lambda *_: True)
    assert pretrain(films, tmp_path / "run", *flags, **settings) == 0
    assert seen == {path for number, path in enumerate(paths) if number % 4}
    seen.clear()
    assert pretrain(films, tmp_path / "all", *flags, **settings, data__hold_out="false") == 0
    assert seen == set(paths)


def test_old_checkpoints_are_removed(films, tmp_path):
    settings = {"checkpoint__every": 1, "checkpoint__keep": 2}
    assert pretrain(films, tmp_path / "run", *QUICK, **settings) == 0
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("*.pt")) == [
        "step-00000002.pt", "step-00000003.pt",
    ]  # fmt: skip


def test_a_trained_model_is_a_start_for_another_run(run, films, tmp_path):
    settings = [s for s in tiny_settings() if not s.startswith("model.")]
    arguments = ["pretrain", "--data", str(films), "--out", str(tmp_path / "next")]
    flags = [*map(str, QUICK), "--model", str(run / "model"), *settings]
    assert main([*arguments, *flags, "optim.lr=1e-12"]) == 0
    before, after = (AutoModel.from_pretrained(r / "model") for r in (run, tmp_path / "next"))
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-6, msg=name)


def test_dicom_and_png_of_many_kinds_train_together(films, tmp_path):
    from dino_x.demo import demo_folder

    rng = np.random.default_rng(3)
    wide = draw_film(rng, 30, 90).astype(np.uint16) * 200
    Image.fromarray(wide).save(tmp_path / "wide16.png")
    Image.fromarray(np.stack([draw_film(rng)] * 3, -1)).save(tmp_path / "rgb.jpg")
    Image.fromarray(draw_film(rng, 70, 20)).save(tmp_path / "tall.tif")
    data = [str(films), str(tmp_path), str(demo_folder() / "mri")]
    out = tmp_path / "run"
    flags = [*map(str, QUICK), *tiny_settings()]
    assert main(["pretrain", "--data", *data, "--out", str(out), *flags]) == 0
    assert json.loads((out / "facts.json").read_text())["images"] == 45
    with (out / "skipped.csv").open() as file:
        assert list(csv.reader(file)) == [["path", "reason"]]


@pytest.mark.parametrize("local_crops", [0, 2])
@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_no_local_crops_and_no_masks_are_possible(films, tmp_path, local_crops, probability):
    settings = {"views__local_crops": local_crops, "masks__probability": probability}
    assert pretrain(films, tmp_path / "run", *QUICK, **settings) == 0
    assert all(("ibot" in step) == (probability > 0) for step in metrics(tmp_path / "run"))


def test_terms_without_weight_are_not_computed(films, tmp_path):
    settings = {"loss__ibot_weight": 0, "loss__koleo_weight": 0}
    assert pretrain(films, tmp_path / "run", *QUICK, **settings) == 0
    for step in metrics(tmp_path / "run"):
        assert {"ibot", "koleo"}.isdisjoint(step)
        assert step["loss"] == pytest.approx(step["dino"])


@pytest.mark.parametrize("size", [1, 2, 8])
def test_workers_and_cache_change_nothing(films, tmp_path, size):
    settings = {"data__workers": size, "data__cache_mb": 0 if size == 1 else 100}
    out = tmp_path / "run"
    assert pretrain(films, out, *QUICK, **settings) == 0
    reference = tmp_path / "reference"
    assert pretrain(films, reference, *QUICK) == 0
    assert losses(out) == losses(reference)


def test_a_killed_runs_half_line_is_dropped_on_resume(films, tmp_path):
    settings = {"checkpoint__every": 1, "checkpoint__keep": 9}
    out = tmp_path / "run"
    again = partial(pretrain, films, out, *QUICK, **settings)
    assert again() == 0
    before = losses(out)
    (out / "checkpoints" / "step-00000003.pt").unlink()
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert again("--resume") == 0
    assert losses(out) == before
