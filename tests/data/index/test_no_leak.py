"""A split that is made leaks nothing: copies stay together, unreadable files move nothing."""

import shutil

import numpy as np
import pytest

from dino_x.data.index.content import apart, content_key, content_keys, joined
from dino_x.data.index.index import build_index
from dino_x.data.index.labels import load_labels
from dino_x.data.index.splits import Item, make_split, units_with_copies
from dino_x.errors import UserError
from tests.evaluation.conftest import write_csv, write_image


def folder_of_images(folder, count=40):
    """Images in two classes, each of another content."""
    for number in range(count):
        label = "ill" if number % 2 else "well"
        write_image(folder / label / f"{number:02d}.png", number, bright=label == "ill")
    return folder


def sides(labelled):
    pairs = zip(labelled.refs, labelled.is_test, strict=True)
    return {ref.path.name: bool(test) for ref, test in pairs}


def test_two_files_share_a_key_only_if_they_hold_the_same(tmp_path):
    rng = np.random.default_rng(0)
    content = {"small": rng.bytes(1000), "large": rng.bytes(700_000)}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / f"{name} copy").write_bytes(data)
        (tmp_path / f"{name} longer").write_bytes(data + b"x")
        (tmp_path / f"{name} other end").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    keys = {path.name: content_key(path) for path in tmp_path.iterdir()}
    assert len(set(keys.values())) == 6
    for name in content:
        assert keys[name] == keys[f"{name} copy"]
    assert content_keys([tmp_path / "missing"]) == {}


def test_keys_survive_being_kept_one_after_another():
    keys = [bytes(range(16)), bytes(16), bytes(range(16))]
    assert apart(joined(keys)) == set(keys)
    assert apart(joined([])) == set()
    with pytest.raises(ValueError, match="no keys"):
        apart(bytes(17))


def test_exact_copies_are_on_one_side_of_a_made_split(tmp_path):
    folder = folder_of_images(tmp_path / "images")
    for number in range(0, 40, 4):
        shutil.copy(folder / "well" / f"{number:02d}.png", folder / "well" / f"copy-{number}.png")
    labelled = load_labels("folder", build_index([folder], verify="headers").rows, [folder])
    side = sides(labelled)
    assert all(side[f"{n:02d}.png"] == side[f"copy-{n}.png"] for n in range(0, 40, 4))
    assert not any("copy" in warning for warning in labelled.warnings)


def test_patients_who_share_a_copy_through_others_are_one_unit(tmp_path):
    items = [Item(tmp_path / str(n), str(n), "a", patient) for n, patient in enumerate("pqrs")]
    shared = dict(zip((item.file for item in items), (b"1", b"1", b"2", b"3"), strict=True))
    extra = Item(tmp_path / "5", "5", "a", "q")  # the patient q has a copy of r's image, too
    shared[extra.file] = b"2"
    units = units_with_copies([*items, extra], shared)
    assert units[0] == units[1] == units[2] == units[4] != units[3]


def test_copies_across_a_given_split_are_counted(tmp_path):
    folder = folder_of_images(tmp_path / "images", 12)
    rows = [
        {"path": f"{label}/{number:02d}.png", "label": label,
         "split": "test" if number >= 8 else "train"}
        for number in range(12) for label in ["ill" if number % 2 else "well"]
    ]  # fmt: skip
    for number in (8, 9, 11):
        label = "ill" if number % 2 else "well"
        copy = f"{label}/{number - 8:02d}.png"
        shutil.copy(folder / copy, folder / label / f"{number:02d}.png")
    table = write_csv(folder / "labels.csv", rows)
    labelled = load_labels(table, build_index([folder], verify="headers").rows, [folder])
    assert any("3 of 4 tested files have an exact copy" in text for text in labelled.warnings)


def test_a_made_split_does_not_depend_on_what_can_be_decoded(tmp_path):
    folder = folder_of_images(tmp_path / "images")
    before = sides(load_labels("folder", build_index([folder]).rows, [folder]))
    for number in (3, 8, 10):
        file = folder / ("ill" if number % 2 else "well") / f"{number:02d}.png"
        file.write_bytes(file.read_bytes()[:-900])
    index = build_index([folder], verify="all")
    assert len(index.damaged) == 3
    labelled = load_labels("folder", index.rows, [folder], damaged=index.damaged)
    after = sides(labelled)
    assert len(after) == 37
    assert labelled.left_out["images that cannot be decoded"] == 3
    assert after == {name: side for name, side in before.items() if name in after}


def test_a_split_that_was_kept_is_taken_and_new_patients_are_split_beside_it():
    old = [Item(None, f"{n}", "ab"[n % 2], f"p{n}") for n in range(20)]
    kept = {item.key: "test" if n < 10 else "train" for n, item in enumerate(old)}
    new = [Item(None, f"new {n}", "ab"[n % 2], f"q{n}") for n in range(20)]
    more = Item(None, "more of p1", "b", "p1")
    found = make_split([*old, *new, more], kept=kept)
    assert found[:20] == [kept[item.key] for item in old]
    assert found[20:40] == make_split(new)
    assert found[40] == "test"


def test_a_patient_who_is_on_both_sides_of_a_kept_split_is_not_tested():
    items = [Item(None, "1", "a", "p"), Item(None, "2", "a", "p")]
    assert make_split(items, kept={"1": "train", "2": "test"}) == ["train", "train"]
    assert make_split(items, kept={"1": "test", "2": "train"}) == ["train", "train"]


@pytest.mark.parametrize("names", [("train", "test"), ("training", "validation", "test")])
def test_folders_called_after_splits_are_splits(tmp_path, names):
    for seed, (split, label) in enumerate((s, c) for s in names for c in ("ill", "well")):
        for number in range(2):
            write_image(tmp_path / split / label / f"{number}.png", 10 * seed + number)
    labelled = load_labels(
        "folder", build_index([tmp_path], verify="headers").rows, [tmp_path], with_val=True
    )
    assert labelled.classes == ["ill", "well"]
    assert labelled.split_by == "given"
    tested = {ref.path.parent.parent.name for ref in np.array(labelled.refs)[labelled.is_test]}
    assert tested == {"test"}
    assert labelled.is_val.sum() == (4 if len(names) == 3 else 0)


def test_folders_of_splits_beside_others_or_without_classes_are_asked_about(tmp_path):
    for place in ("train/ill", "test/ill", "extra/ill"):
        write_image(tmp_path / "mixed" / place / "1.png", 1)
    for place in ("train", "test", "test/ill"):
        write_image(tmp_path / "bare" / place / "1.png", 1)
    for name, told in (("mixed", "and others, such as 'extra'"), ("bare", "no folder of a class")):
        folder = tmp_path / name
        rows = build_index([folder], verify="headers").rows
        with pytest.raises(UserError, match=told):
            load_labels("folder", rows, [folder])


def test_one_class_that_is_called_like_a_split_stays_a_class(tmp_path):
    for seed, (label, number) in enumerate((c, n) for c in ("control", "test") for n in range(4)):
        write_image(tmp_path / label / f"{number}.png", seed)
    labelled = load_labels("folder", build_index([tmp_path], verify="headers").rows, [tmp_path])
    assert labelled.classes == ["control", "test"]


def places(root, *folders, each=4):
    for seed, folder in enumerate(folders):
        for number in range(each):
            write_image(root / folder / f"{number}.png", 10 * seed + number)


def from_folders(*roots):
    return load_labels("folder", build_index(list(roots), verify="headers").rows, list(roots))


@pytest.mark.parametrize(
    ("folders", "roots"),
    [
        (["{split}_set/{label}"], [""]),
        (["{label}/{split}"], [""]),  # the classes first
        (["{split}/{label}"], ["Training", "Testing"]),  # each named with --data
    ],
)
def test_splits_are_seen_wherever_folders_are_called_after_them(tmp_path, folders, roots):
    pairs = [(split, label) for split in ("Training", "Testing") for label in ("ill", "well")]
    places(tmp_path, *(folders[0].format(split=s, label=c) for s, c in pairs))
    labelled = from_folders(*(tmp_path / root for root in roots))
    assert labelled.classes == ["ill", "well"]
    assert labelled.split_by == "given"
    for ref, test in zip(labelled.refs, labelled.is_test, strict=True):
        assert test == ("Testing" in str(ref.path.relative_to(tmp_path)))


def test_folds_and_one_folder_around_the_classes_are_no_classes(tmp_path):
    places(tmp_path / "a", *(f"fold{n}/{label}" for n in range(1, 6) for label in ("x", "y")))
    with pytest.raises(UserError, match=r"called after folds \(fold1, fold2, fold3, ...\)"):
        from_folders(tmp_path / "a")
    places(tmp_path / "b", "chest/ill", "chest/well")
    with pytest.raises(UserError, match=r"in the one folder 'chest' .*name that folder, .*b/chest"):
        from_folders(tmp_path / "b")


def test_classes_with_a_word_of_a_split_stay_classes(tmp_path):
    places(tmp_path, "test positive", "test negative")
    assert from_folders(tmp_path).classes == ["test negative", "test positive"]
