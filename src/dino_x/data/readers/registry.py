"""One way to read any image: the format is told by a file's first bytes, not by its name.

A new format is one more module with `refs` and `read` (see `image.Reader`), a line in
`_format_of` that knows its first bytes, and a line in `READERS`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dino_x.data.image import DEFAULT, Image, ImageRef, Reader, Reading, Unreadable
from dino_x.data.readers import dicom, nifti, numpy_file, picture, tiff
from dino_x.data.storage.archives import none_lost, raise_lost
from dino_x.data.storage.member import at_hand

__all__ = ["READERS", "Image", "ImageRef", "Reader", "Unreadable", "looks_like_image"]
__all__ += ["read", "refs"]

READERS: dict[str, Reader] = {
    "picture": picture,
    "tiff": tiff,
    "dicom": dicom,
    "nifti": nifti,
    "numpy": numpy_file,
}

# Images by their first bytes that are not read, and what to do with them.
UNSUPPORTED = {
    "gif": "GIF is not supported: save its frames as PNG",
    "webp": "WebP is not supported: save it as PNG",
    "jp2": "JPEG 2000 outside DICOM is not supported: save it as PNG or TIFF",
    "npz": "an archive of arrays (.npz) is not supported: save each as .npy",
    "metaimage": "MetaImage (.mha, .mhd) is not supported: convert it to .nii.gz",
    "nrrd": "NRRD is not supported: convert it to .nii.gz",
}

_SNIFFED_BYTES = 1024  # enough to unpack a NIfTI header from, whatever it holds


def refs(path: Path, reading: Reading = DEFAULT) -> list[ImageRef]:
    """The images in a file, from its header only.

    Args:
        path: a file of any supported format, whatever its suffix.
        reading: what the file leaves open.

    Returns: one ImageRef a frame, page or slice, in the file's order; at least one.

    Raises:
        Unreadable: not an image, an unsupported one, or a damaged header.
    """
    with _not_lost():
        return _reader(path).refs(path, reading)


def read(image: ImageRef | Path) -> Image:
    """Decode one image to physical units.

    Args:
        image: what `refs` found, or a path, which means the first image of the file.

    Raises:
        Unreadable: not an image, unsupported, truncated or damaged.
    """
    if isinstance(image, Path):
        image = refs(image)[0]
    with _not_lost():
        image = at_hand(image)  # fetched once, though readers open it several times
        return _reader(image.path).read(image)


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
    if kind is None:
        raise Unreadable("not an image")
    if kind in UNSUPPORTED:
        raise Unreadable(UNSUPPORTED[kind])
    return READERS[kind]


def _format_of(path: Path) -> str | None:
    """The format's name by content, or None for something that is not an image."""
    try:
        with path.open("rb") as file:
            head = file.read(_SNIFFED_BYTES)
    except OSError as error:
        raise Unreadable(f"cannot be opened: {error.strerror}") from None
    if not head:
        raise Unreadable("empty file")
    if dicom.is_dicom(head):  # first, as its preamble may be the beginning of a TIFF
        return "dicom"
    if head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or _is_bmp(head):
        return "picture"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:12] == b"jP  \r\n\x87\n":
        return "jp2"
    if head.startswith(b"\x93NUMPY"):
        return "numpy"
    if head.startswith(b"NRRD0"):
        return "nrrd"
    if head.startswith((b"ObjectType = Image", b"ObjectType=Image", b"NDims =")):
        return "metaimage"
    if head.startswith(b"PK\x03\x04") and path.suffix.lower() == ".npz":
        return "npz"
    if path.name.lower().endswith(".nii.gz") or nifti.is_nifti(head):
        return "nifti"
    return None


def _is_bmp(head: bytes) -> bool:
    """A bitmap: 'BM', and a known size of its second header, as 'BM' alone begins many texts."""
    return head[:2] == b"BM" and head[14:18] in (b"\x0c\0\0\0", b"(\0\0\0", b"l\0\0\0", b"|\0\0\0")
