"""One way to read any image: the format is recognised by a file's first bytes, not by its name.

To add a format, write a module with `refs` and `read` (see `image.Reader`), enter it in `READERS`,
and enter how its first bytes are recognised in `_FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from dino_x.data.image import DEFAULT, Image, ImageRef, Reader, Reading, Unreadable
from dino_x.data.readers import (
    dicom,
    metaimage,
    mgh,
    nifti,
    nrrd,
    numpy_file,
    picture,
    tiff,
)
from dino_x.data.readers.not_images import instead, not_fetched
from dino_x.data.readers.quiet import quiet
from dino_x.data.readers.several_files import state_of
from dino_x.data.storage.archives import none_lost, raise_lost
from dino_x.data.storage.member import at_hand

__all__ = ["READERS", "Image", "ImageRef", "Reader", "Unreadable", "looks_like_image"]
__all__ += ["read", "refs"]

READERS: dict[str, Reader] = {
    "picture": picture,
    "tiff": tiff,
    "dicom": dicom,
    "nifti": nifti,
    "nrrd": nrrd,
    "metaimage": metaimage,
    "mgh": mgh,
    "numpy": numpy_file,
}

# Formats that are recognised and not read, and what to do with such files.
UNSUPPORTED = {
    "gif": "GIF is not supported: save its frames as PNG",
    "webp": "WebP is not supported: save it as PNG",
    "jp2": "JPEG 2000 outside DICOM is not supported: save it as PNG or TIFF",
    "npz": "an archive of arrays (.npz) is not supported: save each as .npy",
}

_SNIFFED_BYTES = 1024  # enough to unpack a NIfTI header from, whatever it holds


def refs(path: Path, reading: Reading = DEFAULT) -> list[ImageRef]:
    """Find the images in a file, from its header only.

    Args:
        path: a file of any supported format, whatever its suffix.
        reading: what the user says of files that do not say it themselves.

    Returns: an ImageRef for each frame, page or slice, in the file's order; at least one.

    Raises:
        Unreadable: not an image, an unsupported one, or a damaged header.
    """
    with quiet(), _not_lost():
        return _reader(path).refs(path, reading)


def read(image: ImageRef | Path) -> Image:
    """Decode one image to physical units.

    Args:
        image: an image that `refs` found, or a path, which stands for the file's first image.

    Raises:
        Unreadable: not an image, unsupported, truncated or damaged.
    """
    if isinstance(image, Path):
        image = refs(image)[0]
    _refuse_changed(image)
    with quiet(), _not_lost():
        image = at_hand(image)  # fetched once, though readers open it several times
        return _reader(image.path).read(image)


def _refuse_changed(image: ImageRef) -> None:
    """Raise Unreadable for a file that is not as it was when its header was read."""
    if image.state is None:
        return
    try:
        now = state_of(image.path, image.format)
    except OSError as error:
        raise Unreadable(f"cannot be opened: {error.strerror}") from None
    if now != image.state:
        raise Unreadable(
            "has changed since it was indexed (another size or time): run `dino-x index` again"
        )


@contextmanager
def _not_lost() -> Iterator[None]:
    """Raise UserError for an image that seems damaged because its archive or store is lost."""
    none_lost()
    try:
        yield
    except Unreadable:
        raise_lost()
        raise


def looks_like_image(path: Path) -> bool:
    """Whether a file's first bytes are those of a known image format, supported or not."""
    try:
        with _not_lost():
            return _format_of(path) is not None
    except Unreadable:
        return False


def _reader(path: Path) -> Reader:
    kind = _format_of(path)
    by_name = kind == "nifti" and path.name.lower().endswith(".nii.gz")
    other = instead(_head_of(path)) if kind is None or by_name else None
    if kind is None or other is not None:
        raise Unreadable(other or "not an image")
    if kind in UNSUPPORTED:
        raise Unreadable(UNSUPPORTED[kind])
    return READERS[kind]


def _head_of(path: Path) -> bytes:
    """A file's first bytes. Raises Unreadable."""
    try:
        with path.open("rb") as file:
            head: bytes = file.read(_SNIFFED_BYTES)
    except OSError as error:
        raise Unreadable(not_fetched(path) or f"cannot be opened: {error.strerror}") from None
    if not head:
        raise Unreadable("empty file")
    return head


def _format_of(path: Path) -> str | None:
    """The format's name by content, or None for a file that is not an image."""
    head, name = _head_of(path), path.name.lower()
    for kind, is_of_kind in _FORMATS:
        if is_of_kind(head, name):
            return kind
    return None


def _starts_with(*magic: bytes) -> Callable[[bytes, str], bool]:
    """What recognises a format by the first bytes of its files."""
    return lambda head, name: head.startswith(magic)


def _is_bmp(head: bytes, name: str) -> bool:
    """Whether it is "BM" and a known size of the second header: "BM" alone begins many texts."""
    return head[:2] == b"BM" and head[14:18] in (b"\x0c\0\0\0", b"(\0\0\0", b"l\0\0\0", b"|\0\0\0")


# How formats are recognised, by a file's first bytes and its name in small letters; the first that
# fits counts. DICOM comes first, as its preamble may be the beginning of a TIFF.
_FORMATS: tuple[tuple[str, Callable[[bytes, str], bool]], ...] = (
    ("dicom", lambda head, name: dicom.is_dicom(head)),
    ("picture", _starts_with(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")),
    ("picture", _is_bmp),
    ("tiff", _starts_with(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    ("gif", _starts_with(b"GIF87a", b"GIF89a")),
    ("webp", lambda head, name: head[:4] == b"RIFF" and head[8:12] == b"WEBP"),
    ("jp2", lambda head, name: head[4:12] == b"jP  \r\n\x87\n"),
    ("jp2", _starts_with(b"\xff\x4f\xff\x51")),
    ("numpy", _starts_with(b"\x93NUMPY")),
    ("nrrd", lambda head, name: nrrd.is_nrrd(head)),
    ("metaimage", metaimage.is_metaimage),
    ("npz", lambda head, name: head.startswith(b"PK\x03\x04") and PurePath(name).suffix == ".npz"),
    ("mgh", lambda head, name: mgh.is_mgh(nifti.unpacked_head(head))),
    ("nifti", lambda head, name: name.endswith(".nii.gz") or nifti.is_nifti(head)),
)
