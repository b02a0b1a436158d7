"""Are the values that are read those of pydicom, nibabel and SimpleITK?

    python benchmarks/cross_check.py [--data FOLDER ...] [--volumes 200] [--all]

Reads every file of the test files that pydicom and nibabel install, those below FOLDER, and volumes
that SimpleITK writes as NRRD, MetaImage and NIfTI in random orientations, and compares each image
with those of pydicom (rescaled, palettes and YBR as RGB), of nibabel (brought to canonical
orientation) and of SimpleITK (in left-posterior-superior orientation). SimpleITK need not be
installed; `pip install --target FOLDER SimpleITK`, with FOLDER at the end of PYTHONPATH, is enough.
Prints a table, each difference, and the reasons why files are refused. --all prints each file.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from pydicom.pixels import apply_color_lut, apply_modality_lut

from dino_x.data.image import Unreadable
from dino_x.data.readers.dicom import is_dicom
from dino_x.data.readers.registry import read, refs

try:
    import SimpleITK as sitk  # noqa: N813 - as everyone calls it
except ImportError:
    sitk = None

Images = list[np.ndarray]  # each [C, H, W]
VOLUMES = ("NIfTI", "NRRD", "MetaImage", "MGH")
TOLERANCE = 1e-6  # as a share of the largest value: rounding to float32


@dataclass(frozen=True)
class Compared:
    """What two readers make of a file.

    Attributes:
        outcome: "agree", "differ", "we refuse" or "it refuses".
        details: how much they differ, or why we refuse.
    """

    outcome: str
    details: str = ""


def ours(path: Path) -> tuple[Images, str, str]:
    """Our images of a file, its format, and the reason if it is refused."""
    try:
        found = refs(path)
        return [read(ref).pixels for ref in found], str(found[0].format), ""
    except Unreadable as reason:
        return [], "", str(reason)


def of_pydicom(path: Path) -> Images | None:
    """pydicom's images of a file; None if it has none, or pydicom cannot read it."""
    try:
        dataset = pydicom.dcmread(path, force=True)
        photometric = str(dataset.PhotometricInterpretation)
        values = dataset.pixel_array  # YBR is RGB already
        if photometric == "PALETTE COLOR":
            values = apply_color_lut(values, dataset)
        elif int(dataset.SamplesPerPixel) == 1:
            values = apply_modality_lut(values, dataset)
    except Exception:
        return None
    frames = int(dataset.get("NumberOfFrames") or 1)
    shape = (frames, dataset.Rows, dataset.Columns, -1)
    images = [image.transpose(2, 0, 1).astype(np.float64) for image in values.reshape(shape)]
    if photometric == "MONOCHROME1":
        images = [image.min() + image.max() - image for image in images]
    return images


def of_nibabel(path: Path) -> Images | None:
    """Axial slices of nibabel's canonical volume as they are looked at; None if there is none."""
    try:
        image = nibabel.load(path)
        values = np.asarray(nibabel.as_closest_canonical(image).dataobj, np.float64)
    except Exception:
        return None
    if values.ndim < 2 or values.ndim > 4:
        return None
    values = values.reshape(*values.shape, *(1,) * (4 - values.ndim))
    return [
        values[::-1, ::-1, number, time].T[None]
        for time in range(values.shape[3])
        for number in range(values.shape[2])
    ]


def of_sitk(path: Path) -> Images | None:
    """SimpleITK's images of a file, axial slices of volumes; None if it cannot read it."""
    try:
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        image = sitk.ReadImage(str(path))
        is_volume = not is_dicom(path.read_bytes()[:1024])
        times = [image]
        if image.GetDimension() == 4:
            size = [*image.GetSize()[:3], 0]
            times = [
                sitk.Extract(image, size, [0, 0, 0, time]) for time in range(image.GetSize()[3])
            ]
        if is_volume and times[0].GetDimension() == 3:
            times = [sitk.DICOMOrient(time, "LPS") for time in times]
        channels = image.GetNumberOfComponentsPerPixel()
        images = [
            plane.transpose(2, 0, 1).astype(np.float64)
            for time in times
            for plane in _planes(sitk.GetArrayFromImage(time), channels)
        ]
        mirror = _mirror_of_itk(image)
        if mirror is not None:  # within the range of its bits, and not of its values
            images = [plane + mirror - plane.max() - plane.min() for plane in images]
        return images
    except Exception:
        return None


def _mirror_of_itk(image: Any) -> float | None:
    """The sum of a value and of what ITK makes of it in MONOCHROME1; None for other images."""

    def stated(tag: str, default: str) -> str:
        return str(image.GetMetaData(tag)) if image.HasMetaDataKey(tag) else default

    if stated("0028|0004", "").strip() != "MONOCHROME1":
        return None
    most = 2 ** int(stated("0028|0101", "16")) - 1
    return most * float(stated("0028|1053", "1")) + 2 * float(stated("0028|1052", "0"))


def _planes(values: np.ndarray, channels: int) -> np.ndarray:
    """[..., H, W] or [..., H, W, C] as [N, H, W, C]."""
    values = values if channels > 1 else values[..., None]
    return values.reshape(-1, *values.shape[-3:])


def compared(got: Images, reason: str, wanted: Images | None) -> Compared:
    """How our images of a file compare with those of another reader."""
    if wanted is None:
        return Compared("it refuses")
    if reason:
        return Compared("we refuse", reason)
    shapes = [image.shape for image in got], [image.shape for image in wanted]
    if len(got) != len(wanted):
        return Compared("differ", f"{len(got)} images, not {len(wanted)}")
    if shapes[0] != shapes[1]:
        return Compared("differ", f"{shapes[0][0]}, not {shapes[1][0]}")
    most = max(float(np.nanmax(np.abs(image))) for image in wanted)
    away = max(
        float(np.nanmax(np.abs(one.astype(np.float64) - other)))
        for one, other in zip(got, wanted, strict=True)
    )
    if away <= TOLERANCE * most:
        return Compared("agree")
    pairs = list(zip(got, wanted, strict=True))
    changed = sum(int((one != other).sum()) for one, other in pairs)
    total = sum(one.size for one, _ in pairs)
    return Compared(
        "differ", f"by up to {away:.4g} of {most:.4g} in {changed:,} of {total:,} values"
    )


def written(folder: Path, count: int) -> Iterator[Path]:
    """Volumes that SimpleITK writes, of many orientations, types and numbers of channels."""
    rng = np.random.default_rng(0)
    orders = list(itertools.permutations(range(3)))
    suffixes = (".nrrd", ".nhdr", ".mha", ".mhd", ".nii.gz", ".nii")
    types = (np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64)
    for number in range(count):
        dtype = types[int(rng.integers(len(types)))]
        size = [int(side) for side in rng.integers(5, 12, 3)]
        channels = 4 if rng.uniform() < 0.2 else 1
        scale = 90 if np.dtype(dtype).kind != "u" else 200
        values = (rng.uniform(-1 if scale == 90 else 0, 1, (*size, channels)) * scale).astype(dtype)
        several = channels > 1
        image = sitk.GetImageFromArray(values if several else values[..., 0], isVector=several)
        turn = np.eye(3)[list(orders[int(rng.integers(6))])] * rng.choice([-1, 1], 3)
        tilt, _ = np.linalg.qr(np.eye(3) + rng.normal(0, 0.05, (3, 3)))
        turn = turn @ (tilt * np.sign(np.diag(tilt)))
        image.SetDirection(turn.ravel().tolist())
        image.SetSpacing(rng.uniform(0.3, 4, 3).tolist())
        image.SetOrigin(rng.uniform(-90, 90, 3).tolist())
        suffix = suffixes[number % len(suffixes)]
        if several and suffix.startswith(".nii"):
            continue  # NIfTI of vectors is refused
        path = folder / f"{number:04d}{suffix}"
        sitk.WriteImage(image, str(path), bool(rng.integers(2)))
        yield path


def files_of(folders: list[Path]) -> list[Path]:
    """All plain files below some folders."""
    return [
        path
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in (".py", ".pyc", ".txt", ".rst", ".m")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", default=[])
    parser.add_argument("--volumes", type=int, default=200)
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    here = Path(nibabel.__file__).parent
    groups = {
        "pydicom's": files_of([Path(pydicom.__file__).parent / "data"]),
        "nibabel's": files_of([here / "tests" / "data", here / "nicom" / "tests" / "data"]),
    }
    if arguments.data:
        groups["--data"] = files_of(arguments.data)
    with tempfile.TemporaryDirectory() as folder:
        if sitk is not None:
            groups["written by SimpleITK"] = list(written(Path(folder), arguments.volumes))
        report(groups, arguments.all)


def report(groups: dict[str, list[Path]], each: bool) -> None:
    """Compare all files, and print what came out."""
    counts: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    refused: Counter[tuple[str, str]] = Counter()
    differences = []
    for group, path in ((group, path) for group, paths in groups.items() for path in paths):
        got, format_of, reason = ours(path)
        refused[group, reason] += 1
        for name, found in beside(path, got, format_of, reason):
            counts[group, name][found.outcome] += 1
            line = f"{group:<22}{path.name:<30}{name:<10}{found.outcome}: {found.details}"
            if found.outcome in ("differ", "we refuse"):
                differences.append(line)
            if each:
                print(line)
    outcomes = ("agree", "differ", "we refuse", "it refuses")
    print("| files | beside | " + " | ".join(outcomes) + " |\n|---|---|" + "---:|" * len(outcomes))
    for (group, name), count in counts.items():
        numbers = " | ".join(str(count[outcome]) for outcome in outcomes)
        print(f"| {group} | {name} | {numbers} |")
    print("\nDifferences, and what is refused and another reads:")
    print("\n".join(differences) or "none")
    print("\nRefused:")
    for (group, reason), number in refused.most_common():
        if reason:
            print(f"{number:>4}  {group:<22}{reason}")


def beside(path: Path, got: Images, format_of: str, reason: str) -> Iterator[tuple[str, Compared]]:
    """The readers that know a file's format, and how our images compare with theirs."""
    peers: list[tuple[str, tuple[str, ...], Callable[[Path], Images | None]]] = [
        ("pydicom", ("DICOM",), of_pydicom),
        ("nibabel", ("NIfTI", "MGH"), of_nibabel),
    ]
    if sitk is not None:
        peers.append(("SimpleITK", ("DICOM", *VOLUMES), of_sitk))
    for name, formats, peer in peers:
        if reason or format_of in formats:
            wanted = peer(path)
            if not reason or wanted is not None:
                yield name, compared(got, reason, wanted)


if __name__ == "__main__":
    main()
