import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from dino_x.data.index import index as index_module
from dino_x.data.index.finding import find_files
from dino_x.data.index.index import Index, Skipped, build_index, is_grey, write_skipped
from dino_x.data.readers.registry import refs
from dino_x.errors import UserError


def names(index: Index) -> list[str]:
    return [row.path.name for row in index.rows]


def truncate(path: Path, share: float = 0.7) -> Path:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path


def test_folders_are_walked_and_rows_sorted_by_path(write_png, tmp_path):
    for name in ("b/2.png", "b/10.png", "a/z.png", "c.png", "B.png"):
        write_png(name)
    found = [str(row.path.relative_to(tmp_path)) for row in build_index([tmp_path]).rows]
    assert found == ["B.png", "a/z.png", "b/10.png", "b/2.png", "c.png"]


@pytest.mark.parametrize("workers", [1, 5])
def test_order_does_not_depend_on_the_order_of_paths_or_threads(write_png, tmp_path, workers):
    for number in range(20):
        write_png(f"{number % 3}/{number}.png", number)
    found = build_index([tmp_path / "2", tmp_path / "0", tmp_path / "1"], workers=workers).rows
    assert [replace(row, source=0) for row in found] == build_index([tmp_path]).rows


def test_rows_say_under_which_path_they_were_found(write_png, tmp_path):
    for name in ("b/1.png", "a/1.png", "a/c/2.png"):
        write_png(name)
    rows = build_index([tmp_path / "b", tmp_path / "a" / "c", tmp_path / "a"]).rows
    assert [(row.path.parent.name, row.source) for row in rows] == [("a", 2), ("c", 1), ("b", 0)]


def test_each_file_counts_once(write_png, tmp_path):
    file = write_png("a/1.png")
    (tmp_path / "a" / "link.png").symlink_to(file)
    index = build_index([tmp_path, tmp_path / "a", file, tmp_path / "a" / ".." / "a"])
    assert len(index) == 1


@pytest.mark.parametrize("target", [".", "..", "../a"])
def test_loops_of_links_end(write_png, tmp_path, target):
    write_png("a/1.png")
    (tmp_path / "a" / "loop").symlink_to(target, target_is_directory=True)
    assert names(build_index([tmp_path])) == ["1.png"]


def test_a_link_to_itself_is_listed(write_png, tmp_path):
    for number in range(12):
        write_png(f"{number}.png", number)
    (tmp_path / "self.png").symlink_to("self.png")
    (skipped,) = build_index([tmp_path]).skipped
    assert (skipped.path.name, skipped.reason) == (
        "self.png",
        "cannot be opened: Too many levels of symbolic links",
    )


def test_linked_folders_are_followed(write_png, tmp_path):
    write_png("elsewhere/1.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert names(build_index([tmp_path / "data"])) == ["1.png"]


def test_frames_are_rows(write_dicom, tmp_path):
    write_dicom(np.zeros((3, 4, 5), dtype=np.uint8), NumberOfFrames=3)
    index = build_index([tmp_path])
    assert [row.frame for row in index.rows] == [0, 1, 2]
    assert index.largest_side == 5


def test_what_claims_no_image_is_passed_over_in_silence(write_png, tmp_path):
    write_png("1.png")
    for name in ("labels.csv", "a.json", "notes.txt", "README.md", "LICENSE", "x.pdf", "y.xyz"):
        (tmp_path / name).write_bytes(b"path,label\n" * 30)
    for name in (".hidden.png", "Thumbs.db", "DICOMDIR"):
        (tmp_path / name).write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    write_png(".cache/2.png")
    os.mkfifo(tmp_path / "pipe.png")
    index = build_index([tmp_path])
    assert names(index) == ["1.png"]
    assert index.skipped == []


def test_images_are_found_whatever_they_are_called(write_png, write_dicom, tmp_path):
    write_png("1.png").rename(tmp_path / "scan.0001")
    write_dicom(np.eye(4, dtype=np.uint8), "IM0001")
    write_dicom(np.eye(4, dtype=np.uint8), "1.2.840.113")
    assert names(build_index([tmp_path])) == ["1.2.840.113", "IM0001", "scan.0001"]


def test_what_claims_to_be_an_image_and_is_none_is_listed(write_png, tmp_path):
    for number in range(40):
        write_png(f"{number:02}.png", number)
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "volume.nii.gz").write_bytes(b"\x1f\x8b" + b"\0" * 40)
    (tmp_path / "gone.dcm").symlink_to(tmp_path / "nowhere")
    index = build_index([tmp_path])
    assert len(index) == 40
    assert [(skip.path.name, skip.reason) for skip in index.skipped] == [
        ("gone.dcm", "cannot be opened: No such file or directory"),
        ("text.png", "not an image"),
        ("volume.nii.gz", "damaged NIfTI"),
    ]


@pytest.mark.parametrize(
    ("verify", "limit", "found"),
    [("all", 0, True), ("headers", 10**6, False), ("auto", 100, True), ("auto", 20, False)],
)
def test_truncated_files_are_found_if_images_are_verified(
    write_png, tmp_path, monkeypatch, verify, limit, found
):
    monkeypatch.setattr(index_module, "VERIFY_UP_TO", limit)
    for number in range(21):
        write_png(f"{number:02}.png", number)
    truncate(tmp_path / "07.png")
    index = build_index([tmp_path], verify=verify)
    assert len(index) == (20 if found else 21)
    wanted = [Skipped(tmp_path / "07.png", "truncated image file")]
    assert index.skipped == (wanted if found else [])
    assert ("07.png" in names(index)) != found


def test_unknown_verify_is_refused(tmp_path):
    with pytest.raises(ValueError, match="auto, all, headers"):
        build_index([tmp_path], verify="some")


def test_progress_counts_files_and_then_images(write_png, tmp_path):
    for number in range(3):
        write_png(f"{number}.png")
    calls = []
    build_index([tmp_path], on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)] * 2


def test_missing_path_names_what_is_near(write_png, tmp_path):
    write_png("images/1.png")
    with pytest.raises(UserError, match="imagse does not exist; did you mean 'images'"):
        build_index([tmp_path / "imagse"])
    with pytest.raises(UserError, match="nowhere/at/all does not exist$"):
        build_index([tmp_path / "nowhere/at/all"])


def test_empty_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(UserError, match="no images in .*: looked for PNG, JPEG, TIFF, DICOM, NIf"):
        build_index([tmp_path])


def test_no_readable_image_names_count_and_first_reason(tmp_path):
    for name in ("b.png", "a.png"):
        (tmp_path / name).write_text("not an image")
    with pytest.raises(UserError, match="no readable image among 2 files in .*a.png: not an image"):
        build_index([tmp_path])


@pytest.mark.parametrize(("broken", "error"), [(2, False), (3, True)])
def test_more_than_1_in_10_unreadable_is_an_error(write_png, tmp_path, broken, error):
    for number in range(20):
        write_png(f"{number:02}.png", number)
    for number in range(broken):
        truncate(tmp_path / f"{number:02}.png")
    if not error:
        assert len(build_index([tmp_path]).skipped) == broken
        return
    with pytest.raises(
        UserError, match="3 of 20 .* more than 1 in 10.*00.png: truncated"
    ) as raised:
        build_index([tmp_path])
    assert "\n" not in str(raised.value)


def test_file_named_directly_counts_whatever_it_is(tmp_path):
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(UserError, match=r"notes.txt: not an image"):
        build_index([tmp_path / "notes.txt"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_closed_folder_is_listed(write_png, tmp_path):
    write_png("closed/1.png").parent.chmod(0)
    assert [file.path for file in find_files([tmp_path])] == [tmp_path / "closed"]


def test_skipped_table(tmp_path):
    skipped = [Skipped(Path("a,b.png"), "truncated image file"), Skipped(Path("c"), "no pixels")]
    write_skipped(skipped, tmp_path / "skipped.csv")
    with (tmp_path / "skipped.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["path", "reason"],
        ["a,b.png", "truncated image file"],
        ["c", "no pixels"],
    ]


def test_no_patient_value_is_in_rows_reasons_or_errors(write_dicom, tmp_path, patient):
    paths = [write_dicom(np.eye(40, dtype=np.uint8), f"{number:02}.dcm") for number in range(30)]
    truncate(paths[3])
    index = build_index([tmp_path])
    assert len(index.skipped) == 1
    for path in paths:
        truncate(path)
    with pytest.raises(UserError) as raised:
        build_index([tmp_path])
    for value in patient.values():
        assert value not in f"{index}{raised.value}"


def test_grey_is_one_channel_or_three_equal(write_png, tmp_path):
    grey = [refs(write_png(f"{number}.png", number))[0] for number in range(5)]
    plane = np.random.default_rng(0).integers(0, 250, (12, 10, 1), dtype=np.uint8)
    nearly = np.concatenate([plane, plane + 2, plane], axis=2)
    Pillow.fromarray(nearly).save(tmp_path / "nearly.png")
    tinted = np.concatenate([plane, plane + 5, plane], axis=2)
    Pillow.fromarray(tinted).save(tmp_path / "tinted.png")
    assert is_grey(grey)
    assert is_grey([*grey, *refs(tmp_path / "nearly.png")])
    assert not is_grey([*grey, *refs(tmp_path / "tinted.png")])


def test_images_of_nan_alone_are_counted(tmp_path, write_png):
    for number in range(3):
        values = np.full((12, 10), np.nan if number else 1.0, dtype=np.float32)
        np.save(tmp_path / f"{number}.npy", values)
    write_png("1.png")
    index = build_index([tmp_path])
    assert len(index.rows) == 4
    assert index.notes == ["2 images hold no finite value (NaN alone), so they are black"]
    assert build_index([tmp_path], verify="headers").notes == []


def test_grey_looks_at_64_evenly_spread(write_png, monkeypatch):
    (row,) = refs(write_png("1.png"))
    looked: list[int] = []
    rows = [row] * 6301
    monkeypatch.setattr(index_module, "_row_is_grey", lambda *_: looked.append(1) or True)
    assert is_grey(rows)
    assert len(looked) == 64


def test_unreadable_image_has_no_say_in_grey(write_png):
    grey = refs(write_png("1.png")) + refs(write_png("2.png"))
    truncate(grey[0].path)
    assert is_grey(grey)
