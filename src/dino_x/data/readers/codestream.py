"""Checks of a compressed image's own header, before a decoder believes it.

The decoders are C code that allocates what a codestream asks for. A damaged codestream asks for the
memory of 60,000 x 60,000 pixels, or makes GDCM end the process. So its size must be the size in the
file's header, and its few other numbers must be possible.
"""

from __future__ import annotations

from typing import BinaryIO

from dino_x.data.image import Unreadable

_J2K = b"\xff\x4f\xff\x51"  # SOC and SIZ
_LOOKED_AT = 1 << 16
_MOST_TILES = 65_535

# Start-of-frame markers: all of C0..CF but DHT, JPG and DAC; and that of JPEG-LS.
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


def check_codestream(
    file: BinaryIO, offset: int, length: int, size: tuple[int, int], samples: int
) -> bool:
    """Raise Unreadable for a codestream of another size or number of channels than the header says.

    Returns: whether a compressed image begins here, as far as its first bytes tell.

    Args:
        file: the file that holds the codestream; its position changes.
        offset: where the codestream begins.
        length: the number of its bytes that are there.
        size: rows and columns of the frame, by the file's header.
        samples: samples a pixel, by the file's header.

    Source: ISO/IEC 15444-1 A.5.1 (SIZ); ISO/IEC 10918-1 B.2.2 and 14495-1 C.2.2 (SOF).
    """
    file.seek(offset)
    head = file.read(min(length, 1024))
    at = head.find(_J2K)
    if at >= 0:
        found = _j2k_size(head[at + len(_J2K) :])
    elif head.startswith(b"\xff\xd8"):
        found = _jpeg_size(head + file.read(min(length, _LOOKED_AT) - len(head)))
    else:
        return False  # a later fragment of a frame, or RLE, which its decoder measures itself
    if found is None:
        raise Unreadable("truncated or damaged: the compressed image has no valid header")
    if found[:2] != size:
        raise Unreadable("damaged: the compressed image is not of the size that the header says")
    if found[2] != samples:
        raise Unreadable(
            f"damaged: the compressed image has {found[2]} channels and the header says {samples}"
        )
    return True


def _j2k_size(segment: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and components in a SIZ segment without its marker; None if not valid."""
    if len(segment) < 38:
        return None
    right, bottom, left, top, wide, high, across, down = (
        int.from_bytes(segment[4 + 4 * i : 8 + 4 * i], "big") for i in range(8)
    )
    components = int.from_bytes(segment[36:38], "big")
    of_known_length = int.from_bytes(segment[:2], "big") == 38 + 3 * components
    if not of_known_length or not 1 <= components <= 4 or not (wide and high):
        return None
    if not (left < right and top < bottom and across <= left and down <= top):
        return None
    tiles_across, tiles_down = -(-(right - across) // wide), -(-(bottom - down) // high)
    if tiles_across * tiles_down > _MOST_TILES:
        return None
    return bottom - top, right - left, components


def has_rgb_transform(codestream: bytes) -> bool:
    """Whether a JPEG 2000 codestream turns its first three components into RGB as it is decoded.

    Source: ISO/IEC 15444-1 A.6.1 (COD, multiple component transformation).
    """
    start = codestream.find(_J2K, 0, 1024)
    at = start + 2
    while start >= 0 and codestream[at : at + 1] == b"\xff" and at + 9 <= len(codestream):
        marker, length = codestream[at + 1], int.from_bytes(codestream[at + 2 : at + 4], "big")
        if marker == 0x52:
            return codestream[at + 8] == 1
        if marker == 0x90 or length < 2:  # a tile: the main header has ended
            return False
        at += 2 + length
    return False


def _jpeg_size(data: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and components of the first frame of a JPEG or JPEG-LS stream, or None."""
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill bytes
            at += 1
            continue
        if marker in (_START_OF_SCAN, _END_OF_IMAGE):
            return None
        if marker in _FRAMES:
            components = data[at + 9] if at + 9 < len(data) else 0
            if not 1 <= components <= 4:
                return None
            rows = int.from_bytes(data[at + 5 : at + 7], "big")
            columns = int.from_bytes(data[at + 7 : at + 9], "big")
            return rows, columns, components
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if length < 2:
            return None
        at += 2 + length
    return None
