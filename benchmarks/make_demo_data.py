"""Makes the images in src/dino_x/demo again: about 2,400 chest films and two MR slices.

    python benchmarks/make_demo_data.py SOURCE [--out src/dino_x/demo]

SOURCE holds the two public data sets as their publishers give them:

    cxr_pneumonia_224/   manifest.csv (path, label, subtype, patient, split) and its films
    dicom_nifti/mr_t1_studyforrest/dicoms/   one T1-weighted volume, a DICOM file a slice

The same SOURCE gives the same choice, names and manifest every time; the JPEG bytes depend on
the version of Pillow. ATTRIBUTION.md and LICENSE.md are written by hand and left alone.
"""

import argparse
import csv
import hashlib
import io
import shutil
from pathlib import Path

import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian, generate_uid

FILM_SIZE = 112  # px, square as in the source (224); the models of the demo look at 64
JPEG_QUALITY = 80  # 2.3 kB a film: 5.5 MB in all, under the 8 MB a package should add
# Films wanted for each split and label. 35% NORMAL instead of the source's 28% (train) and 25%
# (test), so that the smaller class has enough films. The source's val split is not used.
WANTED = {
    ("train", "NORMAL"): 600,
    ("train", "PNEUMONIA"): 1100,
    ("test", "NORMAL"): 250,
    ("test", "PNEUMONIA"): 450,
}
MR_SLICES = ("N2D_0212.dcm", "N2D_0224.dcm")  # above the face
# An allow-list: whatever is not named here (names, dates, ages, study numbers) stays behind.
DICOM_KEPT = (
    *("SOPClassUID", "Modality", "SeriesDescription", "SliceThickness", "SpacingBetweenSlices"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SamplesPerPixel"),
    *("PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "RescaleIntercept", "RescaleSlope", "RescaleType", "PixelData"),
)


def digest(text: str) -> str:
    """An order that depends on nothing but the text: neither on labels nor on the file system."""
    return hashlib.sha256(text.encode()).hexdigest()


def choose(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Whole patients, in the order of their digest, until each count in WANTED is met."""
    patients: dict[tuple[str, str], dict[str, list[dict[str, str]]]] = {}
    for row in rows:
        stratum = patients.setdefault((row["split"], row["label"]), {})
        stratum.setdefault(row["patient"], []).append(row)
    chosen = []
    for key, wanted in WANTED.items():
        missing = wanted
        for patient in sorted(patients[key], key=digest):
            films = patients[key][patient]
            if len(films) <= missing:
                chosen += films
                missing -= len(films)
    return sorted(chosen, key=lambda row: digest(row["path"]))


def small_film(path: Path) -> bytes:
    """The film as 8-bit grey JPEG of FILM_SIZE px."""
    film = Image.open(path).convert("L")
    film = film.resize((FILM_SIZE, FILM_SIZE), Image.Resampling.BICUBIC)  # antialiased
    file = io.BytesIO()
    film.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return file.getvalue()


def write_films(source: Path, out: Path) -> list[dict[str, str]]:
    """films/0001.jpg and so on, and manifest.csv; returns the rows of the manifest."""
    with open(source / "manifest.csv", newline="", encoding="utf-8") as file:
        films = choose(list(csv.DictReader(file)))
    patients = sorted({film["patient"] for film in films}, key=digest)
    number = {patient: str(i) for i, patient in enumerate(patients, start=1)}
    shutil.rmtree(out / "films", ignore_errors=True)
    (out / "films").mkdir(parents=True)
    manifest = []
    for i, film in enumerate(films, start=1):
        path = f"films/{i:04d}.jpg"
        (out / path).write_bytes(small_film(source / film["path"]))
        subtype = film["subtype"] or "normal"
        manifest.append(
            {
                "path": path,
                "label": film["label"].lower(),
                "subtype": subtype,
                "patient": number[film["patient"]],
                "split": film["split"],
            }
        )
    with open(out / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(manifest[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(manifest)
    return manifest


def anonymous_slice(path: Path) -> Dataset:
    """The slice with its pixels and geometry, and with UIDs that lead nowhere."""
    original = pydicom.dcmread(path)
    slice_ = Dataset()
    for name in DICOM_KEPT:
        if name in original:
            slice_[name] = original[name]
    slice_.SOPInstanceUID = generate_uid(entropy_srcs=["dino-x demo", path.name])
    slice_.StudyInstanceUID = generate_uid(entropy_srcs=["dino-x demo study"])
    slice_.SeriesInstanceUID = generate_uid(entropy_srcs=["dino-x demo series"])
    slice_.PatientName = ""
    slice_.PatientID = ""
    slice_.PatientIdentityRemoved = "YES"
    slice_.DeidentificationMethod = "Only pixels and geometry kept"
    slice_.file_meta = FileMetaDataset()
    slice_.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return slice_


def write_slices(source: Path, out: Path) -> None:
    """mri/t1_1.dcm and so on."""
    shutil.rmtree(out / "mri", ignore_errors=True)
    (out / "mri").mkdir(parents=True)
    for i, name in enumerate(MR_SLICES, start=1):
        slice_ = anonymous_slice(source / name)
        slice_.save_as(out / "mri" / f"t1_{i}.dcm", enforce_file_format=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder with the two public data sets")
    default = Path(__file__).parents[1] / "src" / "dino_x" / "demo"
    parser.add_argument("--out", type=Path, default=default)
    arguments = parser.parse_args()

    manifest = write_films(arguments.source / "cxr_pneumonia_224", arguments.out)
    write_slices(arguments.source / "dicom_nifti" / "mr_t1_studyforrest" / "dicoms", arguments.out)

    groups: dict[tuple[str, str], list[str]] = {}
    for row in manifest:
        groups.setdefault((row["split"], row["subtype"]), []).append(row["patient"])
    for (split, subtype), films in sorted(groups.items()):
        print(f"{split:<6} {subtype:<9} {len(films):>5} films {len(set(films)):>5} patients")
    files = [*arguments.out.glob("films/*"), *arguments.out.glob("mri/*")]
    print(f"{len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
