"""The command: what it writes, what it says, what it refuses."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dino_x.audit.batch_floor import passes_for, queues_for
from dino_x.audit.distance import Queue
from dino_x.audit.rows import fit_prototypes, load_model, make_rows
from dino_x.audit.verdict import equivalent_batch, recommend, warnings_of
from dino_x.config.presets import check
from dino_x.config.resolve import with_values
from dino_x.data.index.index import build_index
from dino_x.errors import UserError
from dino_x.runs.folder import RunFolder
from dino_x.training.schedules import values_at
from tests.audit.conftest import measured
from tests.conftest import draw_film
from tests.data.conftest import make_dicom_file
from tests.evaluation.conftest import write_csv


def test_json_holds_the_result_and_names_no_file(of_run, tiny_run, films):
    result, _, out = of_run
    text = (out / "batch_floor.json").read_text()
    assert json.loads(text) == result
    assert sorted(file.name for file in out.iterdir()) == ["batch_floor.json", "batch_floor.png"]
    for name in (str(films), str(tiny_run), ".png", str(out)):
        assert name not in text


def test_a_run_is_measured_with_its_own_head_and_last_temperature(of_run, tiny_run):
    settings = of_run[0]["settings"]
    options = check(RunFolder(tiny_run).settings())
    assert settings["head"] == "the run's DINO head"
    assert (settings["step"], settings["prototypes"]) == (2, 61)
    assert settings["temperature"] == values_at(1, options).teacher_temperature
    state = torch.load(tiny_run / "checkpoints/step-00000002.pt", weights_only=True)
    model = load_model(tiny_run, "cpu")
    torch.testing.assert_close(model.prototypes_KD, state["teacher"]["dino_head.last_layer"])
    assert not torch.equal(model.prototypes_KD, state["student"]["dino_head.last_layer"])
    _, bottlenecks = model.network(torch.rand(3, 3, 32, 32))
    torch.testing.assert_close(bottlenecks.norm(dim=1), torch.ones(3))


def test_curves_are_there_for_all_and_rare_images(of_run):
    groups = of_run[0]["groups"]
    assert list(groups) == ["all", "rare"]
    assert (groups["all"]["images"], groups["rare"]["images"]) == (40, 4)
    for group in groups.values():
        assert [point["batch"] for point in group["curves"]["alone"]] == [8, 16, 32, 40]
        assert group["curves"]["alone"][-1]["distance"]["mean"] == 0


def test_the_figure_is_a_png_that_is_not_blank(of_run):
    with Image.open(of_run[2] / "batch_floor.png") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (780, 1170, 3)
    assert 0.02 < (pixels < 200).any(axis=2).mean() < 0.5
    orange = (np.abs(pixels.astype(int) - (0xC1, 0x44, 0x0E)) < 12).all(axis=2)
    assert orange.any(axis=0).mean() > 0.5  # the curve spans the figure


def test_the_table_and_the_sentence_are_printed(of_run):
    result, printed, _ = of_run
    assert "40 images, 61 prototypes" in printed
    lines = [line.split() for line in printed.splitlines() if "images" not in line]
    groups = result["groups"]
    for point, rare in zip(*(groups[name]["curves"]["alone"] for name in groups), strict=True):
        mean, low, high = (f"{point['distance'][key]:.3f}" for key in ("mean", "low", "high"))
        first, second = [line[1:] for line in lines if line[:1] == [str(point["batch"])]]
        assert first[:2] == [mean, f"{low}-{high}"]
        assert first[3] == f"{rare['distance']['mean']:.3f}"  # after the one queue there is
        assert second[:3] == [f"{p['entropy']['mean']:.2f}" if p else "|" for p in (point, 0, rare)]
    assert result["recommendation"][1:] in " ".join(printed.split())


def test_the_same_seed_gives_the_same_file(of_run, tiny_run, films, tmp_path):
    measured(tiny_run, films, tmp_path / "again")
    for name in ("batch_floor.json", "batch_floor.png"):
        assert (tmp_path / "again" / name).read_bytes() == (of_run[2] / name).read_bytes()


def test_an_earlier_result_is_replaced(tiny_run, films, tmp_path):
    (tmp_path / "batch_floor.json").write_text("old")
    measured(tiny_run, films, tmp_path, repeats=1)
    assert json.loads((tmp_path / "batch_floor.json").read_text())["images"] == 40


def test_a_bare_backbone_has_prototypes_fitted(bare_backbone, films, tmp_path):
    result, _ = measured(bare_backbone, films, tmp_path / "out", repeats=1)
    assert result["settings"]["head"] == "fitted prototypes"
    assert result["settings"]["prototypes"] == 40 * 2 // 8
    assert result["settings"]["step"] is None


def test_fitted_prototypes_are_unit_directions_of_the_clusters():
    draw = torch.Generator().manual_seed(0)
    centers = torch.nn.functional.normalize(torch.randn(2, 16, generator=draw), dim=1)
    rows = centers[torch.arange(16) % 2] + 0.02 * torch.randn(16, 16, generator=draw)
    fitted = fit_prototypes(torch.nn.functional.normalize(rows, dim=1), seed=0)
    assert fitted.shape == (2, 16)
    torch.testing.assert_close(fitted.norm(dim=1), torch.ones(2))
    assert ((centers @ fitted.T).amax(dim=1) > 0.98).all()


def test_a_class_from_folders_is_looked_at_apart(tiny_run, films, tmp_path):
    result, _ = measured(
        tiny_run, films, tmp_path / "out", labels="folder", rare_class="a", repeats=1
    )
    assert result["rare"] == "the class 'a'"
    assert result["groups"]["rare"]["images"] == 20


def test_a_class_from_a_table_and_no_patient_is_named(tiny_run, films, tmp_path):
    files = sorted(films.rglob("*.png"))
    rows = [
        {"path": str(file.relative_to(films)), "finding": "odd" if i % 8 < 2 else "usual",
         "patient": f"Doe{i}", "split": ("train", "test")[i % 2]}
        for i, file in enumerate(files)
    ]  # fmt: skip
    table = write_csv(tmp_path / "table.csv", rows)
    result, printed = measured(
        tiny_run, films, tmp_path / "out", labels=table, label_column="finding", repeats=1
    )
    assert (result["rare"], result["groups"]["rare"]["images"]) == ("the class 'odd'", 10)
    written = (tmp_path / "out/batch_floor.json").read_text()
    assert "Doe" not in written + printed
    assert "table" not in written


def test_a_queue_is_cut_to_what_the_images_can_fill_and_that_is_said(of_run):
    result, printed, _ = of_run
    assert result["queues"] == [{"asked": 1024, "rows": 240}]  # 4 passes over 40, less 40 beside
    assert "it is shown with 240 rows" in " ".join(printed.split())
    assert queues_for(5000, passes_for(5000)) == [Queue(1024, 1024), Queue(4096, 4096)]
    assert passes_for(2304) == 1
    assert passes_for(2303) == 2


def made_up(alone, queue, images=5000):
    def curve(points):
        return [{"batch": size, "distance": {"mean": value}} for size, value in points.items()]

    group = {
        "curves": {"alone": curve(alone), "4096": curve(queue)},
        "reference": {"entropy": 0.5},
    }
    return {
        "images": images, "queues": [{"asked": 4096, "rows": 4096}], "groups": {"all": group},
        "settings": {"passes": 1},
    }  # fmt: skip


def test_the_recommendation_names_the_batch_that_the_queue_stands_for():
    alone = {2**power: 2 ** (-power / 2) for power in range(3, 13)} | {5000: 0.0}
    result = made_up(alone, {16: 1234**-0.5})
    curves = result["groups"]["all"]["curves"]
    assert equivalent_batch(curves, "4096", 16) == pytest.approx(1234)
    assert equivalent_batch(curves, "4096", 32) is None
    assert recommend(result) == (
        "with 16 images a step and --queue 4096 the targets are as close to those of 5,000 images"
        " as with an effective batch of about 1,200 (total variation 0.028; 0.250 without the"
        " queue)"
    )


def test_an_equivalent_batch_is_no_larger_than_what_was_measured():
    curves = made_up({8: 0.5, 4096: 0.1, 5000: 0.0}, {8: 0.01})["groups"]["all"]["curves"]
    assert equivalent_batch(curves, "4096", 8) == pytest.approx(4096)
    assert (
        equivalent_batch(made_up({8: 0.0}, {8: 0.0})["groups"]["all"]["curves"], "4096", 8) is None
    )


def test_a_queue_that_does_not_help_is_not_recommended():
    result = made_up({8: 0.5, 16: 0.4, 32: 0.3, 5000: 0.0}, {16: 0.4})
    assert "a queue brings them no closer" in recommend(result)


def test_nearly_uniform_targets_are_warned_of():
    result = made_up({8: 0.5, 5000: 0.0}, {8: 0.4})
    assert warnings_of(result) == []
    result["groups"]["all"]["reference"]["entropy"] = 0.99
    assert "nearly uniform" in warnings_of(result)[0]


def test_fewer_images_than_the_smallest_batch(tiny_run, films, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for file in sorted((films / "a").iterdir())[:7]:
        shutil.copy(file, few)
    with pytest.raises(UserError, match=r"^7 images are fewer than the smallest batch, 8"):
        measured(tiny_run, few, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_checkpoint_has_no_head(tiny_run, films, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("step-*"))
    with pytest.raises(UserError, match=r"has no checkpoint, so there is no head.*--model .*model"):
        measured(run, films, tmp_path / "out")
    assert (
        measured(run / "model", films, tmp_path / "out", repeats=1)[0]["settings"]["step"] is None
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repeats": 0}, "--repeats 0 is less than 1"),
        ({"seed": -1}, "--seed -1 is negative"),
        ({"rare_class": "a"}, "--rare-class a needs --labels"),
    ],
)
def test_refused_settings(tiny_run, films, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        measured(tiny_run, films, tmp_path / "out", **settings)


def test_a_folder_that_is_no_model(films, tmp_path):
    with pytest.raises(UserError, match="is no model"):
        measured(films, films, tmp_path / "out")


def test_an_out_that_holds_other_files_is_left_alone(tiny_run, films, tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(UserError, match=r"holds other files, such as 'thesis\.txt'"):
        measured(tiny_run, films, tmp_path)
    with pytest.raises(UserError, match="is a file"):
        measured(tiny_run, films, tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "all of it"


def test_rows_of_ct_have_the_windows_of_a_run(tmp_path, tiny_run):
    """Each view its own: those of a run with one window for all are others."""
    folder, rng = tmp_path / "ct", np.random.default_rng(0)
    folder.mkdir()
    for number in range(9):
        make_dicom_file(
            folder / f"{number}.dcm", draw_film(rng).astype(np.int16) * 8, Modality="CT",
            RescaleSlope=1, RescaleIntercept=-1024,
        )  # fmt: skip
    index = build_index([folder])
    model = replace(load_model(tiny_run, "cpu"), network=lambda crops: (crops.flatten(1),) * 2)
    found = {}
    for ct in ("random", "fixed"):
        options = with_values(model.cutter.options, {"windows.ct": ct})
        own = replace(model, cutter=replace(model.cutter, options=options))
        found[ct] = make_rows(own, index, 1, 0, lambda done, total: None).bottlenecks_PNVD
        assert found[ct].shape[1:3] == (9, 2)
    assert (found["random"] - found["fixed"]).abs().mean() > 0.1
