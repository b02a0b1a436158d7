"""The evaluation while training: which images, which figures, and that no test image is used."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from dino_x.config.resolve import Facts, resolve
from dino_x.data.index.labels import Labelled
from dino_x.data.index.splits import Item, make_split
from dino_x.data.readers.registry import ImageRef
from dino_x.training.online import labelled_rows, retrieval_top1
from tests.training.runs import metrics, pretrain


def labelled(patients, images_each=2, tested=10):
    """Images of two classes, the class being the patient's, the last patients tested."""
    count = patients * images_each
    refs = [ImageRef(path=Path(f"{n}.png"), height=9, width=9) for n in range(count)]
    owner = np.repeat(np.arange(patients), images_each)
    return Labelled(
        refs, np.where(owner % 2, "ill", "well"), owner >= patients - tested,
        np.zeros(count, dtype=bool),
        owner.astype(str), True, "test", "given", {}, [],
    )  # fmt: skip


def test_queries_are_whole_patients_of_the_training_side_only():
    data = labelled(60)
    rows = [ref for ref, tested in zip(data.refs, data.is_test, strict=True) if not tested]
    found = labelled_rows(data, rows, 512, seed=0)
    assert found is not None

    def patients(numbers):
        where = {ref: str(p) for ref, p in zip(data.refs, data.patients, strict=True)}
        return {where[rows[number]] for number in numbers}

    tested = set(data.patients[data.is_test])
    references, queries = patients(found.references), patients(found.queries)
    assert not references & queries
    assert not (references | queries) & tested
    assert len(references | queries) == 50, "nobody is left out where there is room"
    assert 0.6 < len(references) / 50 < 0.8


def test_tested_images_stay_out_even_if_they_are_trained_on():
    """``data.hold_out=false`` leaves them in the index."""
    data = labelled(60)
    found = labelled_rows(data, data.refs, 512, seed=0)
    assert found is not None
    assert not data.is_test[np.concatenate([found.references, found.queries])].any()


def test_its_cut_is_the_one_that_evaluations_make():
    data = labelled(30, tested=0)
    found = labelled_rows(data, data.refs, 512, seed=0)
    items = [
        Item(ref.path, "", str(label), str(patient))
        for ref, label, patient in zip(data.refs, data.labels, data.patients, strict=True)
    ]
    sides = np.array(make_split(items))
    assert found is not None
    assert np.flatnonzero(sides == "train").tolist() == found.references.tolist()


def test_many_images_are_thinned_out_the_same_way_each_time():
    data = labelled(200)
    one, again, other = (labelled_rows(data, data.refs, 20, seed) for seed in (0, 0, 1))
    assert one is not None
    assert again is not None
    assert other is not None
    assert len(one.references) == len(one.queries) == 20
    assert one.references.tolist() == again.references.tolist()
    assert one.references.tolist() != other.references.tolist()
    classes = np.where(data.labels == "ill", 0, 1)
    assert one.reference_classes.tolist() == classes[one.references].tolist()


def test_a_class_of_one_patient_leaves_nothing_to_measure():
    """One class on both sides is not enough: retrieval is used instead."""
    assert labelled_rows(labelled(2, tested=0), labelled(2, tested=0).refs, 512, seed=0) is None


def test_retrieval_counts_the_first_hit_and_ties_against_it():
    views = torch.randn(40, 8)
    assert retrieval_top1(views, 3 * views) == 1
    assert retrieval_top1(views, views.roll(1, 0)) == 0
    assert retrieval_top1(torch.ones(40, 8), torch.ones(40, 8)) == 0, "a point finds nothing"
    half = views.clone()
    half[:20] = half[:20].roll(1, 0)
    assert retrieval_top1(views, half) == 0.5


def test_retrieval_in_portions_is_the_same(monkeypatch):
    rng = torch.Generator().manual_seed(1)
    gallery = torch.randn(37, 4, generator=rng)
    queries = gallery + torch.randn(37, 4, generator=rng)
    whole = retrieval_top1(gallery, queries)
    assert 0 < whole < 0.5
    monkeypatch.setattr("dino_x.training.online.SEARCH_ELEMENTS", 100)
    assert retrieval_top1(gallery, queries) == whole


@pytest.mark.parametrize(
    ("steps", "batch", "images", "every"),
    [
        (120, 256, 1600, 12),  # 10 times
        (100_000, 256, 10**6, 1000),  # at least every 1,000
        (300, 16, 10**4, 160),  # seldom where a step is small: it would cost more than 1 in 20
        (3, 8, 40, 25),  # so only the first and the last
    ],
)
def test_how_often_by_default(steps, batch, images, every):
    options = resolve({"train.steps": steps, "train.effective_batch": batch}, Facts(images)).options
    assert options.online.every == every
    assert resolve({"online.every": 0}, Facts(10)).options.online.every == 0


def csv_of(films, path):
    """Labels with 10 of 40 patients tested: the films' folder is their class."""
    table = ["path,label,patient,split"]
    for number, film in enumerate(sorted(films.rglob("*.png"))):
        split = "test" if number % 4 == 0 else "train"
        table.append(f"{film.relative_to(films)},{film.parent.name},{number},{split}")
    path.write_text("\n".join(table))
    return path


def test_labels_make_it_knn_which_the_progress_shows(films, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dino_x.commands.pretrain.evaluate_run", lambda *arguments: None)
    out = tmp_path / "run"
    flags = ("--effective-batch", 8, "--micro-batch", 8, "--steps", 2, "--labels",
             csv_of(films, tmp_path / "labels.csv"))  # fmt: skip
    again = partial(pretrain, films, out, *flags, online__every=1, checkpoint__every=1)
    assert again() == 0
    lines = metrics(out)
    for line in lines:
        assert 0 <= line["online/knn_balanced_accuracy"] <= 1
        assert (line["online/images"], line["online/classes"]) == (20, 2)
    assert f"kNN {lines[-1]['online/knn_balanced_accuracy']:.3f}" in capsys.readouterr().out
    (out / "checkpoints" / "step-00000002.pt").unlink()
    assert again("--resume") == 0
    resumed = metrics(out)[-1]
    assert resumed["online/knn_balanced_accuracy"] == lines[-1]["online/knn_balanced_accuracy"]
