"""Files that are no images for us: counted by suffix, with a way out for those that hold some.

Tables and texts among images are usual, so none of them is an error. But a format that is not read,
or an archive that is compressed, may be most of the data: nothing is passed over without a number.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePath

from dino_x.data.storage.listing import PACKED_TAR

HIDDEN, HIDDEN_FOLDER, DIRECTORY = "hidden files", "hidden folders", "DICOMDIR"
BROKEN_LINK, SPECIAL = "broken links", "pipes and sockets"
NO_SUFFIX, NUMBERED, OTHER = "without suffix", "numbered", "with odd suffixes"

_PACKED = {".gz", ".bz2", ".xz", ".zst", ".z", ".lz4"}
_MOST_SHOWN = 8

_UNPACK = "unpack them first"
_TO_PNG = "save their pictures as PNG or TIFF"
_TO_NIFTI = "convert them to .nii.gz"
_TO_NUMPY = "save their arrays as .npy"
_TO_TIFF = "export them as OME-TIFF"

# What to do with files that may hold images.
WAYS_OUT: dict[str, str] = {
    **dict.fromkeys(PACKED_TAR, "unpack them to .tar (gunzip, zstd -d)"),
    **dict.fromkeys((".dcm.gz", ".dcm.bz2", ".dcm.xz", ".nii.bz2", ".nii.xz", ".nii.zst"), _UNPACK),
    **dict.fromkeys((".zip", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst", ".z", ".lz4"), _UNPACK),
    **dict.fromkeys((".mgh.gz", ".nrrd.gz", ".mha.gz"), _UNPACK),
    **dict.fromkeys((".mnc", ".mnc.gz"), f"{_TO_NIFTI} (mnc2nii)"),
    **dict.fromkeys((".hdr", ".img", ".hdr.gz", ".img.gz"), f"Analyze: {_TO_NIFTI} (nibabel)"),
    **dict.fromkeys((".par", ".rec", ".v", ".head", ".brik", ".brik.gz"), f"{_TO_NIFTI} (nibabel)"),
    **dict.fromkeys((".ima.gz", ".pet", ".i", ".hed"), _TO_NIFTI),
    **dict.fromkeys((".h5", ".hdf5", ".mat", ".pt", ".pkl", ".pickle", ".npz", ".zarr"), _TO_NUMPY),
    **dict.fromkeys((".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".psd", ".dng"), _TO_PNG),
    **dict.fromkeys((".webp", ".gif", ".ppm", ".pgm", ".pnm", ".pcx", ".tga", ".exr"), _TO_PNG),
    **dict.fromkeys((".mp4", ".avi", ".mov", ".mkv", ".wmv", ".mpg", ".mpeg", ".m4v"), _TO_PNG),
    **dict.fromkeys((".czi", ".nd2", ".lif", ".lsm", ".oib", ".oif", ".vsi", ".ims"), _TO_TIFF),
    **dict.fromkeys((".mrxs", ".dat", ".isyntax", ".bif", ".scn", ".vms", ".vmu"), _TO_TIFF),
    **dict.fromkeys((".raw", ".bin"), f"{_TO_NUMPY}: raw values have no size"),
    ".parquet": "no column of images in them",
}  # fmt: skip
# The same suffix is mostly something else.
_ONLY_IF_ALONE = {".dat", ".bin", ".raw", ".v", ".i", ".pt", ".pkl", ".pickle", ".head"}


def suffix_of(name: str) -> str:
    """The suffix that a file is counted under, with that of a compressed one's content.

    >>> suffix_of("CT.tar.gz"), suffix_of("a.MNC"), suffix_of("README"), suffix_of("IM.0012")
    ('.tar.gz', '.mnc', 'without suffix', 'numbered')
    """
    suffixes = [suffix.lower() for suffix in PurePath(name).suffixes]
    if not suffixes:
        return NO_SUFFIX
    last = suffixes[-1]
    if last in _PACKED and len(suffixes) > 1 and re.fullmatch(r"\.[a-z0-9]{1,5}", suffixes[-2]):
        return suffixes[-2] + last
    if re.fullmatch(r"\.\d+", last):
        return NUMBERED
    return last if re.fullmatch(r"\.[a-z0-9_-]{1,10}", last) else OTHER


def in_a_line(passed: Mapping[str, int]) -> str:
    """How many files were passed over, by suffix, those that may hold images first."""
    order = sorted(passed, key=lambda suffix: (suffix not in WAYS_OUT, -passed[suffix], suffix))
    shown = [f"{passed[suffix]:,} {suffix}" for suffix in order[:_MOST_SHOWN]]
    rest = sum(passed[suffix] for suffix in order[_MOST_SHOWN:])
    return ", ".join([*shown, f"{rest:,} others"] if rest else shown)


def ways_out(passed: Mapping[str, int]) -> list[str]:
    """Sentences that say what to do with the files that may hold images; the most files first."""
    files: Counter[str] = Counter()
    suffixes: dict[str, list[str]] = {}
    for suffix, count in passed.items():
        way = WAYS_OUT.get(suffix)
        if way is not None and suffix not in _ONLY_IF_ALONE:
            files[way] += count
            suffixes.setdefault(way, []).append(suffix)
    return [
        f"{count:,} {', '.join(sorted(suffixes[way]))}: {way}" for way, count in files.most_common()
    ]
