"""Does every image below a folder have the values that pydicom and nibabel themselves give?

    python benchmarks/same_values.py FOLDER ...

Reads every image of every file with our readers, and each DICOM and NIfTI file once more with its
own library: `pixel_array` with `apply_modality_lut` or `apply_color_lut`, and `get_fdata` of
`as_closest_canonical`, with spacing. Prints how many were read, refused (and why) and compared, and
names each that is not equal to 1e-6. Exit status 1 if one is not.
"""

import sys
from collections import Counter, defaultdict
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from pydicom.pixels import apply_color_lut, apply_modality_lut

from dino_x.data.image import Image, ImageRef
from dino_x.data.index.finding import find_files
from dino_x.data.readers.registry import Unreadable, looks_like_image, read, refs


def main() -> int:
    count: defaultdict[str, Counter[str]] = defaultdict(Counter)
    reasons: Counter[str] = Counter()
    bad = 0
    for file in find_files([Path(folder) for folder in sys.argv[1:]]):
        if not looks_like_image(file.path):
            continue
        try:
            found = refs(file.path)
            images = [read(ref) for ref in found]
        except Unreadable as reason:
            reasons[str(reason)] += 1
            count["refused"]["files"] += 1
            continue
        kind = found[0].format or "?"
        count[kind].update({"files": 1, "images": len(images)})
        compare = {"DICOM": dicom_difference, "NIfTI": nifti_difference}.get(kind)
        if compare is not None:
            difference = compare(file.path, found, images)
            count[kind]["compared"] += len(images)
            if not difference <= 1e-6:
                bad += 1
                print(f"NOT EQUAL  {file.path}: {difference:.3g}")
    print(f"\n{'format':<9}{'files':>8}{'images':>9}{'compared':>10}")
    for kind, counts in count.items():
        print(f"{kind:<9}{counts['files']:>8,}{counts['images']:>9,}{counts['compared']:>10,}")
    for words, files in reasons.most_common():
        print(f"{files:>6,} refused: {words}")
    print(f"\n{bad} files differ")
    return 1 if bad else 0


def dicom_difference(path: Path, found: list[ImageRef], images: list[Image]) -> float:
    """The largest difference of values, relative above 1; of spacing, in millimetres."""
    dataset = pydicom.dcmread(path, force=True)
    stored = dataset.pixel_array
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        wanted = apply_color_lut(stored, dataset).astype(np.float64)
    else:
        wanted = apply_modality_lut(stored, dataset).astype(np.float64)
    got = np.stack([image.pixels for image in images])
    if got.shape[1] == 3:
        wanted = wanted.reshape(len(images), *wanted.shape[-3:]).transpose(0, 3, 1, 2)
    wanted = wanted.reshape(got.shape)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        wanted = (
            wanted.min((1, 2, 3), keepdims=True) + wanted.max((1, 2, 3), keepdims=True) - wanted
        )
    spacing = dataset.get("PixelSpacing")
    apart = 0.0
    if spacing and found[0].spacing_mm:
        apart = max(abs(float(a) - b) for a, b in zip(spacing, found[0].spacing_mm, strict=True))
    return max(largest(got, wanted), apart)


def nifti_difference(path: Path, found: list[ImageRef], images: list[Image]) -> float:
    """The same; slices are axial."""
    canonical = nibabel.as_closest_canonical(nibabel.load(path))
    volume = canonical.get_fdata()
    volume = volume.reshape(*volume.shape[:3], -1)
    wanted = volume[::-1, ::-1].transpose(3, 2, 1, 0).reshape(len(images), *images[0].pixels.shape)
    zooms = canonical.header.get_zooms()
    row, column = found[0].spacing_mm or (np.nan, np.nan)
    apart = max(abs(row - zooms[1]), abs(column - zooms[0]))
    return max(largest(np.stack([image.pixels for image in images]), wanted), float(apart))


def largest(got: np.ndarray, wanted: np.ndarray) -> float:
    same = (got == wanted) | (np.isnan(got) & np.isnan(wanted))
    with np.errstate(invalid="ignore"):
        difference = np.abs(got - wanted) / np.maximum(1, np.abs(wanted))
    return float(np.where(same, 0, difference).max())


if __name__ == "__main__":
    sys.exit(main())
