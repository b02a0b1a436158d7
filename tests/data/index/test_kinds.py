"""What is no view of anatomy is named and left out; what is no image stops nothing."""

import nibabel
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from dino_x.data.image import DEFAULT
from dino_x.data.index.catalog import update
from dino_x.data.index.index import build_index
from dino_x.data.index.masks import UNSURE
from dino_x.data.index.summary import summary, unusable
from dino_x.errors import UserError
from tests.data.conftest import make_dicom_file

PREFIX = "1.2.840.10008.5.1.4.1.1."
CT, MR, SLIDE = PREFIX + "2", PREFIX + "4", PREFIX + "77.1.6"
SEGMENTATION, DOSE, CAPTURE, MAP = PREFIX + "66.4", PREFIX + "481.2", PREFIX + "7", PREFIX + "30"
REPORTS = {
    "SR": PREFIX + "88.11",
    "KO": PREFIX + "88.59",
    "PR": PREFIX + "11.1",
    "RTSTRUCT": PREFIX + "481.3",
    "RTPLAN": PREFIX + "481.5",
    "REG": PREFIX + "66.1",
    "ECG": PREFIX + "9.1.1",
    "DOC": PREFIX + "104.1",
}


def write_report(path, modality, sop_class):
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = sop_class or CT
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    if sop_class:
        dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID, dataset.Modality = "1.2.3", modality
    dataset.save_as(path, enforce_file_format=True)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def put(folder, rng):
    def put(name, **elements):
        pixels = rng.integers(0, 999, (8, 9), dtype=np.uint16)
        make_dicom_file(folder / name, pixels, **elements)

    return put


@pytest.mark.parametrize(
    ("kind", "elements"),
    [
        ("localizer", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        ("localizer", {"Modality": "MR", "ImageType": ["ORIGINAL", "PRIMARY", "localizer "]}),
        ("dose", {"Modality": "RTDOSE", "SOPClassUID": DOSE}),
        ("segmentation", {"Modality": "SEG", "SOPClassUID": SEGMENTATION}),
        ("screenshot", {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}),
        ("screenshot", {"SOPClassUID": CAPTURE, "ImageType": ["DERIVED", "SECONDARY"]}),
        ("map", {"Modality": "MR", "ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]}),
        ("map", {"Modality": "MR", "ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}),
        ("map", {"Modality": "MR", "ComplexImageComponent": "PHASE"}),
        ("map", {"RescaleType": "Z_EFF", "RescaleSlope": 1, "RescaleIntercept": 0}),
        ("map", {"Modality": "MR", "SOPClassUID": MAP}),
        ("mosaic", {"Modality": "MR", "ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}),
        ("slide_label", {"Modality": "SM", "SOPClassUID": SLIDE,
                         "ImageType": ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]}),
        ("slide_label", {"Modality": "SM", "SOPClassUID": SLIDE,
                         "ImageType": ["ORIGINAL", "PRIMARY", "OVERVIEW", "NONE"]}),
    ],
)  # fmt: skip
def test_what_is_no_view_of_anatomy_is_left_out_unless_it_is_taken(put, folder, kind, elements):
    put("plain.dcm", Modality="CT", SOPClassUID=CT)
    put("other.dcm", **{"Modality": "CT", "SOPClassUID": CT} | elements)
    index = build_index([folder])
    assert [row.path.name for row in index.rows] == ["plain.dcm"]
    assert index.left_out == {kind: 1}
    assert [(skip.path.name, skip.reason) for skip in index.skipped] == [
        ("other.dcm", f"left out: {kind}")
    ]
    assert len(build_index([folder], take=[kind])) == 2
    assert len(build_index([folder], take=["all"])) == 2
    assert [row.kind for row in build_index([folder], where=f'kind == "{kind}"').rows] == [kind]


@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]},
        {"ImageType": ["DERIVED", "PRIMARY", "MPR"]},
        {"Modality": "MR", "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"]},
        {"Modality": "MR", "ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "TRACEW"]},
        {"Modality": "CR", "SOPClassUID": CAPTURE, "ConversionType": "WSD"},
        {"Modality": "MG", "ImageType": ["DERIVED", "PRIMARY"]},
        {"Modality": "SM", "SOPClassUID": SLIDE, "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME"]},
        {"SOPClassUID": CAPTURE, "ImageType": ["DERIVED", "SECONDARY"],
         "ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
    ],
)  # fmt: skip
def test_views_of_anatomy_are_taken(put, folder, elements):
    put("a.dcm", **{"Modality": "CT", "SOPClassUID": CT} | elements)
    assert len(build_index([folder])) == 1


def test_reports_are_no_damage_and_stop_nothing(put, folder):
    put("image.dcm", Modality="DX")
    for modality, sop_class in REPORTS.items():
        write_report(folder / f"{modality}.dcm", modality, sop_class)
    write_report(folder / "private.dcm", "OT", "1.3.12.2.1107.5.9.1")
    write_report(folder / "unnamed.dcm", "SR", None)
    index = build_index([folder])
    assert len(index) == 1
    assert index.without_image == len(REPORTS) + 2
    records = update([folder], reading=DEFAULT).table.records
    assert unusable(records) == []
    assert summary(records)["no image"].startswith("10 files: ")
    assert "Key Object Selection Document Storage (1)" in summary(records)["no image"]


def test_an_image_without_pixels_is_damaged(put, folder):
    put("image.dcm", Modality="DX")
    write_report(folder / "damaged.dcm", "CT", CT)
    with pytest.raises(UserError, match="unreadable.*no pixel data"):
        build_index([folder])


def test_a_folder_without_one_view_says_what_is_left_out(put, folder):
    put("scout.dcm", Modality="CT", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    with pytest.raises(UserError, match=r"left out are 1 localizer images \(data.take=\[localizer"):
        build_index([folder])


def test_words_of_the_image_type_are_a_column(put, folder):
    put("a.dcm", Modality="CT", SOPClassUID=CT, ImageType=["DERIVED", "PRIMARY", "MPR", "ZEBEDEE"])
    put("b.dcm", Modality="CT", SOPClassUID=CT, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
    put("c.dcm", Modality="MR", SOPClassUID=MR)
    assert [row.image_type for row in build_index([folder]).rows] == [
        "DERIVED PRIMARY MPR", "ORIGINAL PRIMARY AXIAL", None,
    ]  # fmt: skip
    (row,) = build_index([folder], where='"MPR" in image_type').rows
    assert row.path.name == "a.dcm"
    (row,) = build_index([folder], where='sop_class == "MRImageStorage"').rows
    assert row.path.name == "c.dcm"
    with pytest.raises(UserError, match="does not understand"):
        build_index([folder], where='"MPR" in height')


def put_volume(path, intent=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    image = nibabel.Nifti1Image(values, np.eye(4))
    if intent:
        image.header.set_intent(intent)
    nibabel.save(image, path)


@pytest.mark.parametrize(
    ("intent", "kind"),
    [("label", "segmentation"), ("t test", "map"), ("vector", "map"), ("none", None)],
)
def test_an_intent_of_nifti_says_what_its_values_are(folder, intent, kind):
    put_volume(folder / "a.nii.gz", intent)
    assert {row.kind for row in build_index([folder], take=["all"]).rows} == {kind}


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["imagesTr/case_000_0000.nii.gz"], ["labelsTr/case_000.nii.gz"]),
        (["images/a.nii.gz", "images/b.nii.gz"], ["masks/a.nii.gz", "masks/b.nii.gz"]),
        (["ct/p1/a.nii.gz"], ["Segmentations/p1/a.nii.gz"]),
        (["images/train/a.nii"], ["labels/train/a.nii"]),
        (["images/a.nii"], ["masks/a_mask.nii"]),
        (["s_t1.nii.gz", "s_flair.nii.gz"], ["s_seg.nii.gz"]),
        (["a.nii"], ["a_mask.nii.gz"]),
        # KiTS, TotalSegmentator, LiTS, BTCV, BraTS from 2023 on
        (
            ["1/imaging.nii.gz", "2/imaging.nii.gz"],
            ["1/segmentation.nii.gz", "2/segmentation.nii.gz"],
        ),
        (["s1/ct.nii.gz"], ["s1/segmentations/liver.nii.gz", "s1/segmentations/aorta.nii.gz"]),
        (["volume-0.nii", "volume-10.nii"], ["segmentation-0.nii", "segmentation-10.nii"]),
        (["tr/img/img0001.nii.gz"], ["tr/label/label0001.nii.gz"]),
        (["B-GLI-00/B-GLI-00-t1c.nii", "B-GLI-00/B-GLI-00-t2f.nii"], ["B-GLI-00/B-GLI-00-seg.nii"]),
        # CVC-ClinicDB, ISIC, Montgomery, BUSI, the Data Science Bowl of 2018
        (["Original/1.nii", "Original/2.nii"], ["Ground Truth/1.nii", "Ground Truth/2.nii"]),
        (["Task1-2_Input/I_1.nii"], ["Task1_GroundTruth/I_1_segmentation.nii"]),
        (["CXR_png/M_1.nii"], ["ManualMask/leftMask/M_1.nii", "ManualMask/rightMask/M_1.nii"]),
        (["benign/b (1).nii"], ["benign/b (1)_mask.nii", "benign/b (1)_mask_1.nii"]),
        (["abc/images/abc.nii", "d/images/d.nii"], ["abc/masks/e1.nii", "abc/masks/e2.nii"]),
        # FSL, BIDS
        (["s/T1.nii.gz"], ["s/T1_brain_mask.nii.gz"]),
        (["s/T1.nii.gz", "t/T1.nii.gz"], ["s/brain_mask.nii.gz", "t/brain_mask.nii.gz"]),
        (
            ["sub-1/anat/sub-1_T1w.nii.gz", "derivatives/sub-1/sub-1_desc-preproc_T1w.nii.gz"],
            ["derivatives/sub-1/sub-1_dseg.nii.gz", "derivatives/sub-1/sub-1_desc-brain_mask.nii"],
        ),
        # below a folder that is called like masks, too
        (["segmentation/images/a.nii"], ["segmentation/labels/a.nii"]),
    ],
)
def test_masks_beside_images_of_the_same_names_are_left_out(folder, images, masks):
    for name in [*images, *masks]:
        put_volume(folder / name)
    index = build_index([folder])
    assert sorted({str(row.path.relative_to(folder)) for row in index.rows}) == sorted(images)
    assert list(index.left_out) == ["mask"]
    assert len(build_index([folder], take=["mask"])) == 5 * len(images + masks)


@pytest.mark.parametrize(
    "names",
    [
        ["masks/a.nii", "masks/b.nii"],  # alone
        ["images/a.nii", "masks/b.nii"],  # other names
        ["mask/1.nii", "no_mask/1.nii"],  # two classes
        ["a_seg.nii"],
        ["x.nii", "mask/1.nii", "without_mask/2.nii"],  # two classes, and another image
        ["mask.nii", "other.nii"],
        ["images/seg_1.nii", "images/seg_2.nii"],
        ["segment-3/a.nii", "segment-3/b.nii"],
        ["labels/cat/1.nii", "labels/dog/2.nii"],
        ["sub-1/sub-1_T1w.nii", "sub-2/sub-2_dseg.nii"],
    ],
)
def test_what_only_sounds_like_a_mask_is_taken(folder, names):
    for name in names:
        put_volume(folder / name)
    assert len(build_index([folder])) == 5 * len(names)


@pytest.mark.parametrize(
    ("names", "unsure"),
    [
        (["images/a.nii", "masks/b.nii"], ["masks/b.nii"]),
        (["1/i_1.nii", "1/Ground/liver_GT_000.nii"], ["1/Ground/liver_GT_000.nii"]),
        (["images/a.nii", "masks/a.nii", "masks/b.nii"], ["masks/b.nii"]),
        (["mask.nii", "other.nii"], ["mask.nii"]),
        (["masks/a.nii", "masks/b.nii"], []),  # all of them: the user names the folder
        (["images/a.nii", "images/b.nii"], []),
    ],
)
def test_what_is_called_a_mask_and_is_taken_is_remarked_on(folder, tmp_path, names, unsure):
    for name in names:
        put_volume(folder / name)
    out = tmp_path / "i.parquet"
    for _ in range(2):  # and again when the index is continued
        rows = build_index([folder], kept_in=out).rows
        found = {str(row.path.relative_to(folder)) for row in rows if row.remark == UNSURE}
        assert sorted(found) == unsure
    put_volume(folder / "images" / "b.nii")  # now there is an image of its name
    rows = build_index([folder], kept_in=out).rows
    assert not any("masks/b" in str(row.path) and row.remark for row in rows)


def test_masks_are_named_anew_when_an_index_is_continued(folder, tmp_path):
    put_volume(folder / "masks" / "a.nii")
    put_volume(folder / "images" / "a.nii")
    out = tmp_path / "i.parquet"
    assert len(build_index([folder], kept_in=out)) == 5
    (folder / "images" / "a.nii").unlink()
    assert len(build_index([folder], kept_in=out)) == 5
    assert len(build_index([out])) == 5
