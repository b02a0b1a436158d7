"""Masks find their images, and what does not fit is one clear line before any work."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from dino_x.data.image import ImageRef
from dino_x.data.index.index import build_index
from dino_x.data.index.splits import Item
from dino_x.errors import UserError
from dino_x.evaluation.masks import has_masks, load_masks, read_mask, volume_of

from .conftest import patient_rows, write_csv, write_image


def save_mask(path, values, palette=False, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(values, dtype=np.uint8))
    if palette:
        picture.putpalette([7, 7, 7, 200, 0, 0, 0, 200, 0])
    picture.save(path, **how)


def square_mask(value=255):
    mask = np.zeros((40, 56), dtype=np.uint8)
    mask[10:30, 20:40] = value
    return mask


def masked_rows(side_of=None):
    rows = [row | {"mask": f"masks/{row['path']}"} for row in patient_rows()]
    for row in rows if side_of else ():
        row["split"] = side_of(int(row["patient"].removeprefix("Doe")))
    return rows


@pytest.fixture
def data(tmp_path):
    """Images in ``films`` and their masks in ``masks``."""
    for seed, row in enumerate(patient_rows()):
        write_image(tmp_path / "films" / row["path"], seed)
        save_mask(tmp_path / "masks" / row["path"], square_mask())
    return tmp_path


def load(data, masks, labels=None):
    films = [data / "films"]
    return load_masks(masks, labels, build_index(films, verify="headers").rows, films)


def pairs(masked):
    return {
        (ref.path.name, mask.path.name) for ref, mask in zip(masked.refs, masked.masks, strict=True)
    }


def test_a_table_gives_masks_patients_and_split(data):
    def side_of(patient):
        return "test" if patient >= 7 else ("val" if patient >= 5 else "train")

    masked = load(data, write_csv(data / "table.csv", masked_rows(side_of)))
    assert pairs(masked) == {(row["path"], row["path"]) for row in patient_rows()}
    assert masked.validation == "given"
    assert masked.split_by == "given"
    assert masked.patients_known
    sides = {what: set(masked.patients[masked.side == what]) for what in ("fit", "choose", "test")}
    assert {what: len(names) for what, names in sides.items()} == {"fit": 5, "choose": 2, "test": 3}
    assert sides["choose"] == {"Doe5", "Doe6"}
    assert (masked.names, masked.values) == (["foreground"], [255])
    assert not masked.warnings


def test_a_folder_gives_masks_of_the_same_name_whatever_their_suffix(data):
    for row in patient_rows()[:4]:
        mask = data / "masks" / row["path"]
        Image.open(mask).save(mask.with_suffix(".bmp"))
        mask.unlink()
    masked = load(data, data / "masks")
    assert {mask.path.stem for mask in masked.masks} == {ref.path.stem for ref in masked.refs}
    assert len(masked.refs) == 20
    assert masked.split_by == "image"
    assert "patients are not known" in masked.warnings[0]


def test_the_labels_give_a_folder_of_masks_its_patients(data):
    labels = write_csv(data / "films" / "labels.csv", patient_rows())
    masked = load(data, data / "masks", labels)
    assert masked.split_by == "patient"
    assert masked.validation == "patient"
    sides = [set(masked.patients[masked.side == what]) for what in ("fit", "choose", "test")]
    assert all(sides)
    assert len(set.union(*sides)) == sum(map(len, sides)) == 10


def test_images_without_a_mask_are_left_out_and_counted(data):
    (data / "masks" / "p00_0.png").unlink()
    assert load(data, data / "masks").left_out == {"images without a mask": 1}
    rows = masked_rows()
    rows[0]["mask"] = rows[1]["mask"] = ""
    masked = load(data, write_csv(data / "table.csv", rows))
    assert masked.left_out == {"images without a mask": 2}


def test_the_values_are_those_of_the_file(tmp_path):
    from dino_x.data.readers.registry import refs

    values = np.random.default_rng(0).integers(3, size=(9, 13))
    save_mask(tmp_path / "grey.png", values)
    save_mask(tmp_path / "palette.png", values, palette=True)
    save_mask(tmp_path / "rgb.png", np.repeat(values[:, :, None], 3, axis=2))
    for name in ("grey", "palette", "rgb"):
        np.testing.assert_array_equal(read_mask(refs(tmp_path / f"{name}.png")[0]), values)


def test_several_classes_are_called_by_their_values(data):
    for row in patient_rows():
        mask = square_mask(4)
        mask[:5] = 2
        save_mask(data / "masks" / row["path"], mask)
    masked = load(data, data / "masks")
    assert (masked.names, masked.values) == (["2", "4"], [2, 4])


def test_a_class_too_rare_for_a_made_validation_set_is_fitted_all_the_same(data):
    labels = write_csv(data / "films" / "labels.csv", patient_rows())
    before = load(data, data / "masks", labels)
    name = before.refs[int(np.flatnonzero(before.side == "choose")[0])].path.name
    save_mask(data / "masks" / name, square_mask(9))
    masked = load(data, data / "masks", labels)
    assert masked.validation == "none"
    assert "choose" not in masked.side
    assert masked.values == [9, 255]


def test_a_table_of_labels_may_have_masks(data):
    assert has_masks(write_csv(data / "table.csv", masked_rows()))
    assert not has_masks(write_csv(data / "labels.csv", patient_rows()))
    empty = [row | {"mask": ""} for row in patient_rows()]
    assert not has_masks(write_csv(data / "empty.csv", empty))
    assert not has_masks("folder")
    assert not has_masks(None)
    assert not has_masks(data / "nowhere.csv")


def break_mask(data, **changes):
    mask = data / "masks" / "p03_0.png"
    values = square_mask()
    if "size" in changes:
        values = values[: changes["size"]]
    if "colour" in changes:
        values = np.stack([values, values // 2, values], axis=2)
    if "noise" in changes:
        values = np.random.default_rng(0).integers(256, size=values.shape)
    save_mask(mask, values)
    if "text" in changes:
        mask.write_text("no image")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 39}, r"p03_0\.png is 56 x 39 px, but its image is 56 x 40 px"),
        ({"colour": True}, r"p03_0\.png is a colour image: a mask has one value a pixel"),
        ({"noise": True}, r"p03_0\.png has 2\d\d different values: is it an image"),
        ({"text": True}, r"p03_0\.png cannot be read: not an image"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(data, changes, message):
    break_mask(data, **changes)
    with pytest.raises(UserError, match=message) as error:
        load(data, write_csv(data / "table.csv", masked_rows()))
    assert "\n" not in str(error.value)


def test_a_mask_saved_as_jpeg_is_refused(data):
    rows = masked_rows()
    rows[0]["mask"] = "masks/lossy.jpg"
    save_mask(data / "masks" / "lossy.jpg", square_mask(), quality=50)
    with pytest.raises(UserError, match=r"lossy\.jpg has \d+ different values.*saved as JPEG"):
        load(data, write_csv(data / "table.csv", rows))


def by_patient(patient):
    return "test" if patient >= 7 else "train"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[0].update(mask="masks/gone.png"),
         r"the mask of row 2 does not exist: 'masks/gone\.png'"),
        (lambda rows: rows[1].update(split="test"),
         r"1 of 10 patients are in more than one split \(the patient of row 2, train"),
        (lambda rows: [row.update(split="train") for row in rows], "no image of test has a mask"),
        (lambda rows: [row.update(mask="") for row in rows], "no image of train has a mask"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_used_is_refused(data, change, message):
    rows = masked_rows(by_patient)
    change(rows)
    with pytest.raises(UserError, match=message) as error:
        load(data, write_csv(data / "table.csv", rows))
    assert "Doe" not in str(error.value)


def test_a_class_that_train_does_not_have_is_refused(data):
    save_mask(data / "masks" / "p09_0.png", square_mask(3))
    table = write_csv(data / "table.csv", masked_rows(by_patient))
    with pytest.raises(UserError, match="no mask of train has the value 3, which test has"):
        load(data, table)


def test_empty_masks_are_refused(data):
    for row in patient_rows():
        save_mask(data / "masks" / row["path"], np.zeros((40, 56)))
    with pytest.raises(UserError, match="the masks of train are all empty"):
        load(data, data / "masks")


def test_names_that_match_no_image_are_refused(data, tmp_path):
    save_mask(tmp_path / "other" / "x.png", square_mask())
    with pytest.raises(UserError, match="no mask in .*other is called as an image is"):
        load(data, tmp_path / "other")


def test_a_folder_of_masks_that_holds_the_images_is_refused(data):
    with pytest.raises(UserError, match="all images are below the folder of masks"):
        load(data, data)
    with pytest.raises(UserError, match="no such file or folder of masks: .*nowhere"):
        load(data, data / "nowhere")


def test_two_masks_of_one_name_are_refused(data):
    save_mask(data / "masks" / "more" / "p00_0.png", square_mask())
    assert len(load(data, data / "masks").refs) == 20  # the one that lies where the image does
    (data / "masks" / "p00_0.png").rename(data / "masks" / "more" / "p00_0.bmp")
    with pytest.raises(UserError, match="2 masks below .* are called 'p00_0'"):
        load(data, data / "masks")


def test_the_slices_of_a_file_and_of_a_series_are_one_volume(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(3):
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
            values = rng.integers(2, size=(6, 5, 4)).astype(np.uint8)
            place = tmp_path / folder / f"{number}.nii"
            nib.save(nib.Nifti1Image(values, np.eye(4)), place)
        side = "test" if number == 2 else "train"
        rows.append({"path": f"images/{number}.nii", "mask": f"masks/{number}.nii",
                     "patient": str(number), "split": side})  # fmt: skip
    refs = build_index([tmp_path / "images"]).rows
    masked = load_masks(write_csv(tmp_path / "table.csv", rows), None, refs, [tmp_path])
    assert len(set(masked.volumes)) == 3
    assert len(masked.volumes) == len(refs) > 3
    item = Item(tmp_path / "a.dcm", "a.dcm", "", None)
    slice_, film = (
        ImageRef(path=item.file, height=5, width=4, series="s", position_mm=place)
        for place in (1.0, None)
    )
    assert volume_of(slice_, item, several=False) == "series s"
    assert volume_of(film, item, several=False) == "image a.dcm", "two films of a series are two"
    assert volume_of(film, replace(item, volume="v"), several=False) == "volume v"
