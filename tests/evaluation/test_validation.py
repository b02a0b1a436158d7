"""What choices are made on: patients that nothing is fitted on, in folds where images are few."""

from dataclasses import replace

import numpy as np
import pytest

from dino_x.data.index.label_kinds import Targets
from dino_x.evaluation import validation as module
from dino_x.evaluation.validation import FEW, folds_of, validation
from tests.evaluation.labelled import labelled_images


def many(images, classes=2, of_patient=3, tested=30, sides=None):
    """Images of patients with three images each, whose class is the patient's."""
    patients = [str(number // of_patient) for number in range(images)]
    labels = ["abcdef"[int(patient) % classes] for patient in patients]
    sides = sides or ["test" if number >= images - tested else "train" for number in range(images)]
    return labelled_images(labels, sides, patients)


def names(labelled, rows):
    return set(labelled.patients[rows].tolist())


def test_few_images_are_cut_into_folds_of_whole_patients():
    labelled = many(150, tested=48)
    parts = validation(labelled)
    assert (parts.how, len(parts.folds)) == ("patient", 5)
    assert (parts.fitted == labelled.is_train).all()
    assert (sum(fold.choose.astype(int) for fold in parts.folds) == labelled.is_train).all()
    for fold in parts.folds:
        assert not names(labelled, fold.fit) & names(labelled, fold.choose)
        assert (fold.fit | fold.choose == labelled.is_train).all()
        assert len(names(labelled, fold.choose)) in (6, 7, 8)
        counts = [int((labelled.labels[fold.choose] == label).sum()) for label in "ab"]
        assert set(counts) <= {9, 12}


@pytest.mark.parametrize(("labels", "folds"), [(1, 5), (10, 5), (11, 1)])
def test_several_labels_are_cut_into_folds_while_that_costs_little(labels, folds):
    targets = Targets("several", tuple("abcdefghijk"[:labels]), np.zeros((130, labels)))
    labelled = replace(many(130, of_patient=1), targets=targets, labels=np.full(130, "all"))
    assert len(validation(labelled).folds) == folds


def test_folds_depend_on_no_order():
    labelled = many(90)
    turned = np.random.default_rng(0).permutation(90)
    other = labelled_images(
        labelled.labels[turned],
        np.where(labelled.is_test[turned], "test", "train"),
        labelled.patients[turned],
    )
    for one, two in zip(validation(labelled).folds, validation(other).folds, strict=True):
        assert names(labelled, one.choose) == names(other, two.choose)


def test_a_rare_class_is_fitted_on_in_every_fold():
    labelled = many(90)
    labelled.labels[:6] = "c"  # two patients
    for fold in folds_of(labelled, labelled.is_train):
        assert set(labelled.labels[fold.fit]) == {"a", "b", "c"}
    labelled.labels[3:6] = "a"  # one patient
    assert folds_of(labelled, labelled.is_train) == ()


def test_four_patients_give_four_folds():
    labelled = many(12 + 6, tested=6)
    assert len(validation(labelled).folds) == 4


def test_of_many_images_a_fifth_of_the_patients_is_set_aside(monkeypatch):
    monkeypatch.setattr(module, "MOST_FOLDED", 80)
    labelled = many(120)
    parts = validation(labelled)
    (fold,) = parts.folds
    assert parts.how == "patient"
    assert not names(labelled, fold.fit) & names(labelled, fold.choose)
    assert names(labelled, fold.fit | fold.choose) == {str(patient) for patient in range(30)}
    assert len(names(labelled, fold.choose)) == 6
    for rows in (fold.fit, fold.choose):
        assert set(labelled.labels[rows]) == {"a", "b"}


@pytest.mark.parametrize(
    ("val", "how"), [(2 * FEW, "given"), (2 * FEW - 2, "patient"), (0, "patient")]
)
def test_a_given_val_is_what_is_chosen_on_unless_it_is_very_small(val, how):
    sides = ["val"] * val + ["train"] * (60 - val) + ["test"] * 10
    labelled = many(70, of_patient=1, sides=sides)
    parts = validation(labelled)
    assert parts.how == how
    assert (parts.fitted == ~labelled.is_test).all()
    if how == "given":
        (fold,) = parts.folds
        assert (fold.choose == labelled.is_val).all()
        assert (fold.fit == labelled.is_train).all()
    else:
        assert len(parts.folds) == 5


def test_a_val_of_one_class_is_no_help_and_is_not_fitted_on():
    labelled = many(70, of_patient=1, sides=["val", "train"] * 30 + ["test"] * 10)
    parts = validation(labelled)
    assert set(labelled.labels[labelled.is_val]) == {"a"}
    assert parts.how == "none"  # train has one class, too
    labelled.labels[1:60:4] = "a"
    parts = validation(labelled)
    assert (parts.how, len(parts.folds)) == ("patient", 5)
    assert (parts.fitted == labelled.is_train).all()
