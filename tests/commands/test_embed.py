"""Features in a table: what evaluation sees, whatever interrupts them."""

import csv
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

import dino_x
from dino_x.cli import main
from dino_x.commands import feature_table
from dino_x.commands.feature_files import as_matrix
from dino_x.evaluation.knn import TEMPERATURE
from tests.evaluation.conftest import save_tiny, write_csv


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """60 images of two classes that overlap, in two folders; with labels and a split."""
    folder, rows = tmp_path_factory.mktemp("data"), []
    rng = np.random.default_rng(5)
    for n in range(60):
        path = f"{'ab'[n % 2]}/{n:02d}.png"
        level, waves = rng.uniform(100, 150), rng.uniform(0.1, 0.8)
        film = level + 40 * np.sin(waves * np.arange(56)) + rng.normal(0, 30, (40, 56))
        (folder / path).parent.mkdir(exist_ok=True)
        Image.fromarray(film.clip(0, 255).astype(np.uint8)).save(folder / path)
        label = "ill" if level + rng.normal(0, 8) > 125 else "well"
        rows.append({"path": path, "label": label, "split": "test" if n % 3 == 0 else "train"})
    write_csv(folder / "labels.csv", rows)
    return folder


def embed(model, data, out, *flags):
    return main(["embed", "--model", str(model), "--data", str(data), "--out", str(out), *flags])


@pytest.mark.parametrize("features", ["cls", "cls+mean"])
def test_knn_outside_gives_the_number_that_evaluate_prints(features, model, data, tmp_path):
    assert embed(model, data, tmp_path / "f.parquet") == 0
    table = pq.read_table(tmp_path / "f.parquet")
    with (data / "labels.csv").open() as file:
        labels = {row["path"]: row for row in csv.DictReader(file)}
    rows = [labels[path] for path in table["path"].to_pylist()]
    columns = ("cls", "mean_patch") if features == "cls+mean" else ("cls",)
    rows_MF = np.concatenate([as_matrix(table, column) for column in columns], axis=1)
    classes = np.array([row["label"] for row in rows])
    test = np.array([row["split"] == "test" for row in rows])
    knn = KNeighborsClassifier(
        10, metric="cosine", algorithm="brute", weights=lambda far: np.exp(-far / TEMPERATURE)
    ).fit(rows_MF[~test], classes[~test])
    outside = balanced_accuracy_score(classes[test], knn.predict(rows_MF[test]))

    result = dino_x.evaluate(
        model, data, data / "labels.csv", tasks=["knn"], features=features, device="cpu"
    )
    inside = result["results"]["model"]["knn"]["10"]["balanced_accuracy"]["value"]
    assert outside == pytest.approx(inside, abs=1e-9)
    assert 0.5 < inside < 1  # neither chance nor perfect: another k or weight would differ


def test_the_table_is_what_the_function_returns(model, data, tmp_path):
    found = dino_x.embed(model, data, device="cpu")
    assert embed(model, data, tmp_path / "f.csv", "--patches", str(tmp_path / "p.npy")) == 0
    with (tmp_path / "f.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [data / row["path"] for row in rows] == [image.path for image in found.images]
    assert {row["folder"] for row in rows} == {str(data)}
    cls_MD = np.array([[row[f"cls_{i}"] for i in range(32)] for row in rows], np.float32)
    mean_MD = np.array([[row[f"patch_{i}"] for i in range(32)] for row in rows], np.float32)
    np.testing.assert_array_equal(cls_MD, found.cls)
    np.testing.assert_array_equal(mean_MD, found.patches)
    grid_MPPD = np.load(tmp_path / "p.npy", mmap_mode="r")
    assert grid_MPPD.shape == (60, 4, 4, 32)
    mean_of_grid = grid_MPPD.astype(np.float32).mean(axis=(1, 2))
    np.testing.assert_allclose(mean_of_grid, found.patches, atol=2e-3)


def test_what_was_interrupted_is_continued_and_gives_the_same(model, data, tmp_path, monkeypatch):
    flags = ["--batch-size", "8"]
    whole = tmp_path / "whole.parquet", tmp_path / "whole.npy"
    assert embed(model, data, whole[0], "--patches", str(whole[1]), *flags) == 0

    monkeypatch.setattr(feature_table, "PART_BYTES", 1)  # each batch is a part
    written, real = [], feature_table.write_part

    def stop_at_fourth(*arguments):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(arguments[1])
        return real(*arguments)

    halved = tmp_path / "halved.parquet", tmp_path / "halved.npy"
    monkeypatch.setattr(feature_table, "write_part", stop_at_fourth)
    assert embed(model, data, halved[0], "--patches", str(halved[1]), *flags) == 130
    assert not halved[0].exists()
    monkeypatch.setattr(feature_table, "write_part", lambda *a: written.append(a[1]) or real(*a))
    assert embed(model, data, halved[0], "--patches", str(halved[1]), *flags) == 0
    assert written == [0, 8, 16, 24, 32, 40, 48, 56]  # no part was made twice
    assert pq.read_table(whole[0]).equals(pq.read_table(halved[0]))
    assert whole[1].read_bytes() == halved[1].read_bytes()
    assert not (tmp_path / "halved.parquet.parts").exists()


def test_images_that_cannot_be_decoded_are_listed(model, data, tmp_path):
    good = sorted((data / "a").glob("*.png"))
    (tmp_path / "d").mkdir()
    for file in good:
        (tmp_path / "d" / file.name).write_bytes(file.read_bytes())
    broken = tmp_path / "d" / good[3].name
    broken.write_bytes(broken.read_bytes()[:-600])  # its header is whole
    assert embed(model, tmp_path / "d", tmp_path / "f.parquet") == 0
    table = pq.read_table(tmp_path / "f.parquet")
    assert len(table) == len(good) - 1
    assert broken.name not in table["path"].to_pylist()
    assert str(broken) in (tmp_path / "f.skipped.csv").read_text()


@pytest.mark.parametrize(
    ("out", "flags", "message"),
    [
        ("f.txt", [], "ends in neither .parquet nor .csv"),
        ("nowhere/f.csv", [], "there is no folder"),
        ("f.csv", ["--patches", "p.zarr"], "must end in .npy"),
        ("f.csv", ["--batch-size", "0"], "less than 1"),
        ("taken.csv", [], "exists; remove it, or name another file"),
        ("f.csv", ["--where", "modality = 3"], "where"),
    ],
)
def test_bad_input_is_one_line(model, data, tmp_path, capsys, out, flags, message):
    (tmp_path / "taken.csv").write_text("mine")
    assert embed(model, data, tmp_path / out, *flags) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["taken.csv"]


def test_half_done_features_of_another_model_or_other_images_are_not_mixed(
    model, data, tmp_path, capsys
):
    out = tmp_path / "f.csv"
    parts = tmp_path / "f.csv.parts"
    parts.mkdir()
    (parts / "about.json").write_text('{"model": "", "images": "", "patches": false}')
    assert embed(model, data, out) == 2
    assert "holds the first features of another model; remove it" in capsys.readouterr().err
    assert (parts / "about.json").is_file()


def test_names_that_are_not_utf8_are_spelled_as_in_an_index(model, data, tmp_path):
    """One byte that is not UTF-8 must not cost the whole table."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    for film in sorted(data.rglob("*.png"))[:2]:
        shutil.copy(film, folder / os.fsdecode(b"\xff" + os.fsencode(film.name)))
    assert embed(model, folder, folder / "f.parquet") == 0
    with (folder / "f.parquet").open("rb") as file:
        rows = pq.read_table(file).to_pylist()
    assert all(row["path"].startswith("\\xff") for row in rows)
    assert all(row["folder"].endswith("caf\\xe9") for row in rows)
    assert embed(model, folder, folder / "f.csv") == 0
