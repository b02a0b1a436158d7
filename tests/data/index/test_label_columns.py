"""Labels beside the images of Parquet files, as Hugging Face's datasets have them."""

import pytest

from dino_x.data.index.index import build_index
from dino_x.data.index.labels import load_labels
from dino_x.errors import UserError
from tests.data.packing import NAMES, described, pack_labelled


def load(folder, **more):
    return load_labels("column", build_index([folder], verify="headers").rows, [folder], **more)


def by_place(labelled):
    """The label and the side of each image by its path in the folder."""
    return {
        "/".join(ref.path.parts[-2:]): (label, "test" if test else "train")
        for ref, label, test in zip(labelled.refs, labelled.labels, labelled.is_test, strict=True)
    }


def test_classes_have_their_names_and_splits_are_those_of_the_files(tmp_path):
    pack_labelled(tmp_path / "train-00000-of-00002.parquet", [0, 1, 2, 0, 1, 2, 1])
    pack_labelled(tmp_path / "train-00001-of-00002.parquet", [2, -1, None, 0])
    pack_labelled(tmp_path / "test-00000-of-00001.parquet", [0, 1, 2])
    labelled = load(tmp_path)
    found = by_place(labelled)
    assert found["train-00000-of-00002.parquet/6.png"] == ("effusion", "train")
    assert found["train-00001-of-00002.parquet/0.png"] == ("mass", "train")
    assert found["test-00000-of-00001.parquet/1.png"] == ("effusion", "test")
    assert len(found) == 12
    assert labelled.left_out == {"images with an empty label": 2}
    assert labelled.split_by == "given"


def test_a_split_in_a_folder_or_a_column_and_patients_and_one_that_is_made(tmp_path):
    for split in ("train", "validation"):
        pack_labelled(tmp_path / "named" / split / "0000.parquet", [0, 1, 2, 2])
    assert load(tmp_path / "named").tested == "val"

    sides = ["train", "Testing"] * 6
    one = tmp_path / "one" / "all.parquet"
    pack_labelled(one, [0, 0, 1, 1, 2, 2] * 2, split=sides, patient=[f"p{n}" for n in range(12)])
    labelled = load(one.parent)
    assert labelled.split_by == "given"
    assert labelled.patients_known
    assert [test for _, test in by_place(labelled).values()].count("test") == 6

    pack_labelled(
        tmp_path / "made" / "train.parquet", [0, 1] * 10, group=[n // 4 for n in range(20)]
    )
    labelled = load(tmp_path / "made")
    assert labelled.split_by == "patient"
    tested = set(labelled.patients[labelled.is_test])
    assert not tested & set(labelled.patients[labelled.is_train])
    assert len(labelled.refs) == 20


def test_several_labels_numbers_and_columns_of_0_and_1(tmp_path):
    lists = described(label={"feature": {"names": NAMES, "_type": "ClassLabel"}, "_type": "List"})
    several = [[0], [1, 2], [], [2]] * 4
    pack_labelled(tmp_path / "a" / "x.parquet", several, lists, bright=[9] * 16)
    targets = load(tmp_path / "a").targets
    assert targets.kind == "several"
    assert set(targets.names) == set(NAMES)
    assert int(targets.values_NL.sum()) == 16

    ages = [float(20 + n) for n in range(40)]
    pack_labelled(tmp_path / "b" / "x.parquet", ages, None, "age", bright=[9] * 40)
    targets = load(tmp_path / "b", label_column="age").targets
    assert targets.kind == "numbers"
    assert set(targets.values_NL[:, 0]) == set(ages)

    pack_labelled(tmp_path / "c" / "x.parquet", [1, 0] * 8, None, "mass", bright=[9] * 16,
          fluid=[True, True, False, False] * 4)  # fmt: skip
    targets = load(tmp_path / "c", label_column="mass,fluid").targets
    assert targets.names == ("fluid", "mass")
    assert targets.values_NL.sum(axis=0).tolist() == [8, 8]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("lable", "has no column 'lable'; did you mean 'label'"),
        ("label,fluid", "has no column 'fluid'"),
        ("image", "the column 'image' holds struct.*, and neither words, numbers nor lists"),
    ],
)
def test_a_column_that_is_not_there_or_holds_something_else(tmp_path, column, message):
    pack_labelled(tmp_path / "x.parquet", [0, 1] * 6)
    with pytest.raises(UserError, match=message) as refused:
        load(tmp_path, label_column=column)
    assert "\n" not in str(refused.value)


def test_files_that_are_named_after_splits_in_part_and_labels_of_two_kinds(tmp_path):
    for name in ("train-0", "test-0", "more"):
        pack_labelled(tmp_path / "a" / f"{name}.parquet", [0, 1] * 6)
    with pytest.raises(UserError, match="such as test-0.parquet, and others are not, such as more"):
        load(tmp_path / "a")
    pack_labelled(tmp_path / "b" / "train.parquet", [0, 1] * 6)
    pack_labelled(tmp_path / "b" / "test.parquet", [0, 1] * 6, metadata=None)
    with pytest.raises(UserError, match="train.parquet are words and those in test.parquet are"):
        load(tmp_path / "b")


def test_images_that_are_in_no_parquet_file(films):
    with pytest.raises(UserError, match="no image is in a Parquet file"):
        load(films)


@pytest.mark.parametrize("text", [b"no json", b"[]", b'{"info": {"features": {"label": 3}}}'])
def test_metadata_that_say_nothing_leave_numbers(tmp_path, text):
    pack_labelled(tmp_path / "x.parquet", [0, 1] * 6, metadata={b"huggingface": text})
    assert set(load(tmp_path).labels) == {"0", "1"}
