"""Damaged files for the readers: how they are made. `watched` reads them."""

from __future__ import annotations

import io
import lzma
import re
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gdcm
import nibabel
import numpy as np
import pydicom
import tifffile
from PIL import Image as Pillow
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import generate_uid

BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files"
_JUST_ALLOWED = 6_300  # pixels a side


# ---- files that are whole


def whole_files() -> dict[str, bytes]:
    """Small files of every kind and encoding, by name."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[0:48, 0:64]
    grey = (400 * np.sin(x / 7) + 300 * np.cos(y / 5) + rng.normal(0, 20, x.shape) + 1000).astype(
        np.uint16
    )
    byte = (grey // 8).astype(np.uint8)
    colour = np.stack([byte, byte[::-1], byte[:, ::-1]], axis=2)
    files = _pictures(grey, byte, colour) | _tiffs(grey, byte, colour) | _volumes(grey)
    files |= _dicoms(grey, colour)
    for name in (
        "693_J2KI.dcm", "MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_dcmtk.dcm", "CT_small.dcm",
        "MR_small_RLE.dcm", "emri_small_jpeg_2k_lossless.dcm", "examples_palette.dcm",
        "SC_rgb_jls_lossy_line.dcm", "image_dfl.dcm", "MR_small_bigendian.dcm",
    ):  # fmt: skip
        if (BUNDLED / name).exists():
            files[name] = (BUNDLED / name).read_bytes()
    return files


def _saved(save: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def _pictures(grey: np.ndarray, byte: np.ndarray, colour: np.ndarray) -> dict[str, bytes]:
    kinds = {
        "grey16.png": (Pillow.fromarray(grey), "PNG", {}),
        "grey8.png": (Pillow.fromarray(byte), "PNG", {}),
        "rgb.png": (Pillow.fromarray(colour), "PNG", {}),
        "palette.png": (Pillow.fromarray(colour).quantize(60), "PNG", {}),
        "alpha.png": (Pillow.fromarray(colour).convert("RGBA"), "PNG", {}),
        "rgb.jpg": (Pillow.fromarray(colour), "JPEG", {}),
        "progressive.jpg": (Pillow.fromarray(byte), "JPEG", {"progressive": True}),
        "rgb.bmp": (Pillow.fromarray(colour), "BMP", {}),
    }
    return {
        name: _saved(lambda out, p=picture, k=kind, m=more: p.save(out, format=k, **m))
        for name, (picture, kind, more) in kinds.items()
    }


def _tiffs(grey: np.ndarray, byte: np.ndarray, colour: np.ndarray) -> dict[str, bytes]:
    files = {}
    for name, values, more in (
        ("plain.tif", grey, {}),
        ("zlib.tif", grey, {"compression": "zlib", "predictor": False}),
        ("lzma.tif", grey, {"compression": "lzma"}),
        ("packbits.tif", byte, {"compression": None}),
        ("rgb.tif", colour, {"photometric": "rgb", "compression": "zlib"}),
        ("tiles.tif", grey, {"tile": (16, 16), "compression": "zlib"}),
        ("pages.tif", np.stack([grey, grey]), {"metadata": None}),
        ("big.tif", grey, {"bigtiff": True}),
    ):
        files[name] = _saved(lambda out, v=values, m=more: tifffile.imwrite(out, v, **m))
    for name, mode in (("lzw.tif", "tiff_lzw"), ("jpeg.tif", "jpeg"), ("fax.tif", "group4")):
        picture = Pillow.fromarray(byte)
        picture = picture.convert("1") if mode == "group4" else picture
        files[name] = _saved(
            lambda out, p=picture, m=mode: p.save(out, format="TIFF", compression=m)
        )
    return files


def _volumes(grey: np.ndarray) -> dict[str, bytes]:
    volume = np.stack([grey[:32, :24].astype(np.int16)] * 10, axis=2)
    image = nibabel.Nifti1Image(volume, np.diag([2.0, 2.0, 3.0, 1.0]))
    second = nibabel.Nifti2Image(volume.astype(np.float32), np.diag([-2.0, 2.0, 3.0, 1.0]))
    plain = image.to_bytes()
    return {
        "volume.nii": plain,
        "volume.nii.gz": zlib_gzip(plain),
        "second.nii.gz": zlib_gzip(second.to_bytes()),
        "stack.npy": _saved(lambda out: np.save(out, volume)),
        "rgb.npy": _saved(lambda out: np.save(out, np.zeros((20, 30, 3), np.uint8))),
        "volume.mgh": nibabel.MGHImage(volume, np.diag([2.0, 2.0, 3.0, 1.0])).to_bytes(),
        **_text_headers(volume),
    }


def _text_headers(volume: np.ndarray) -> dict[str, bytes]:
    """Volumes whose headers are text, plain, packed and as text."""
    content = volume.astype("<i2").tobytes("F")
    text = " ".join(map(str, volume[..., :2].ravel("F"))).encode()
    sizes = " ".join(map(str, volume.shape))
    nrrd = (
        f"NRRD0005\n# words\ntype: short\ndimension: 3\nspace: left-posterior-superior\n"
        f"sizes: {sizes}\nspace directions: (2,0,0) (0,2,0) (0,0,3)\nkinds: domain domain domain\n"
        "endian: little\nencoding: raw\nspace origin: (1,2,3)\nname:=value\n\n"
    ).encode()
    meta = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        "CompressedData = False\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 1 2 3\n"
        f"CenterOfRotation = 0 0 0\nElementSpacing = 2 2 3\nDimSize = {sizes}\n"
        "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    ).encode()
    short = sizes.rpartition(" ")[0].encode() + b" 2"
    return {
        "volume.nrrd": nrrd + content,
        "packed.nrrd": nrrd.replace(b": raw", b": gzip") + zlib_gzip(content),
        "text.nrrd": nrrd.replace(b": raw", b": ascii").replace(sizes.encode(), short) + text,
        "volume.mha": meta + content,
        "packed.mha": meta.replace(b"Data = False", b"Data = True") + zlib.compress(content),
        "text.mha": meta.replace(b"BinaryData = True", b"BinaryData = False").replace(
            sizes.encode(), short
        )
        + text,
    }


def zlib_gzip(content: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return packer.compress(content) + packer.flush()


def _dicoms(grey: np.ndarray, colour: np.ndarray) -> dict[str, bytes]:
    """A colour image, and a grey one in the transfer syntaxes that GDCM writes."""
    files = {"colour.dcm": _written(_dataset(colour)), "grey.dcm": _written(_dataset(grey))}
    for syntax in (
        "ImplicitVRLittleEndian", "ExplicitVRBigEndian", "DeflatedExplicitVRLittleEndian",
        "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless",
    ):  # fmt: skip
        files[f"grey-{syntax}.dcm"] = _transcoded(files["grey.dcm"], syntax)
    return files


def _written(dataset: Dataset) -> bytes:
    return _saved(lambda out: dataset.save_as(out, enforce_file_format=True))


def _transcoded(content: bytes, syntax: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "source.dcm")
        path.write_bytes(content)
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        target = path.with_name("target.dcm")
        writer.SetFileName(str(target))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return target.read_bytes()


def _dataset(pixels: np.ndarray) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=["fuzz"])
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.PatientID, dataset.SeriesInstanceUID = "1", generate_uid(entropy_srcs=["series"])
    dataset.Modality = "CT"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1000
    dataset.PixelSpacing = [0.5, 0.5]
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 1], [1, 0, 0, 0, 1, 0]
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OB" if pixels.dtype == np.uint8 else "OW"
    return dataset


# ---- what is done to them


def _truncate(content: bytearray, rng: np.random.Generator) -> bytearray:
    return content[: int(rng.uniform(0, 1) * len(content))]


def _flip(content: bytearray, rng: np.random.Generator, within: int | None = None) -> bytearray:
    for _ in range(int(rng.integers(1, 16))):
        at = int(rng.integers(0, min(len(content), within or len(content))))
        content[at] ^= 1 << int(rng.integers(0, 8))
    return content


def _flip_header(content: bytearray, rng: np.random.Generator) -> bytearray:
    return _flip(content, rng, within=1200)


def _extremes(content: bytearray, rng: np.random.Generator) -> bytearray:
    """Numbers become the largest, the smallest or a large one: sizes, lengths, offsets, counts."""
    values = (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\0\0\0\x80", b"\x60\xea\0\0",
              b"\0\0\xea\x60", b"\xff\xff", b"\x60\xea", b"\xff")  # fmt: skip
    for _ in range(int(rng.integers(1, 4))):
        value = values[int(rng.integers(0, len(values)))]
        at = int(rng.integers(0, min(len(content), 2000)))
        content[at : at + len(value)] = value
    return content


def _splice(content: bytearray, rng: np.random.Generator) -> bytearray:
    """A piece is cut out, doubled, or put elsewhere."""
    first, second, to = sorted(int(at) for at in rng.integers(0, len(content), 3))
    piece = content[first : min(second, first + 5000)]
    choice = rng.integers(0, 3)
    if choice == 0:
        return content[:first] + content[first + len(piece) :]
    return content[:to] + piece + content[to if choice == 1 else to + len(piece) :]


def _garbage(content: bytearray, rng: np.random.Generator) -> bytearray:
    at = int(rng.integers(0, len(content)))
    length = int(rng.integers(1, 400))
    content[at : at + length] = rng.bytes(length)
    return content


def _lie(content: bytearray, rng: np.random.Generator) -> bytearray:
    """A size that the format itself finds plausible: checksums are made anew."""
    size = int(rng.choice([0, 1, 3, 47, 49, 500, 4096, 30_000, 65_535]))
    if content.startswith((b"NRRD", b"ObjectType")):
        return _lie_in_words(content, size, rng)
    if content[:4] == b"\0\0\0\1" or content[:2] == b"\x1f\x8b" or content[344:348] == b"n+1\0":
        return _lie_of_volume(content, size, rng)
    if content.startswith(b"\x89PNG"):
        which = int(rng.integers(0, 2))
        at = 16 + 4 * which
        content[at : at + 4] = struct.pack(">I", size * int(rng.choice([1, 1000])))
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    elif content[128:132] == b"DICM":
        tags = (
            b"\x28\0\x10\0",
            b"\x28\0\x11\0",
            b"\x28\0\0\x01",
            b"\x28\0\x02\0",
            b"\x28\0\x01\x01",
        )
        at = content.find(tags[int(rng.integers(0, len(tags)))], 132)
        if at >= 0:
            content[at + 8 : at + 10] = struct.pack("<H", size)
    elif content[:2] in (b"II", b"MM"):
        _lie_of_tiff(content, size, rng)
    elif content.startswith(b"\x93NUMPY"):
        at = content.find(b"(", 10)
        content[at + 1 : at + 3] = b"%d" % (size % 90 + 10)
    elif content[:2] == b"\xff\xd8":
        at = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
        content[at + 5 : at + 7] = struct.pack(">H", size)
    return content


def _lie_of_tiff(content: bytearray, size: int, rng: np.random.Generator) -> None:
    order = "<" if content[:2] == b"II" else ">"
    for tag in (256, 257, 258, 277, 278, 279):
        at = content.find(struct.pack(order + "H", tag), 8)
        if at >= 0 and rng.uniform() < 0.4:
            content[at + 8 : at + 12] = struct.pack(order + "I", size)


def _lie_of_volume(content: bytearray, size: int, rng: np.random.Generator) -> bytearray:
    which = int(rng.integers(0, 4))
    if content[:4] == b"\0\0\0\1":  # MGH
        content[4 + 4 * which : 8 + 4 * which] = struct.pack(">i", size)
        return content
    packed = content[:2] == b"\x1f\x8b"
    plain = bytearray(zlib.decompress(content, zlib.MAX_WBITS | 16)) if packed else content
    plain[42 + 2 * which : 44 + 2 * which] = struct.pack("<H", size)
    return bytearray(zlib_gzip(bytes(plain))) if packed else plain


def _lie_in_words(content: bytearray, size: int, rng: np.random.Generator) -> bytearray:
    """One number or word of a header that is text becomes another."""
    ends = (content.find(b"\n\n"), content.find(b"LOCAL"))
    words = list(re.finditer(rb"[^\s(),]+", content[: max(ends)]))
    others = (b"%d" % size, b"-1", b"nan", b"1e300", b"none", b"../a", b"5" * 400, b"(1,", b"%d")
    word = words[int(rng.integers(1, len(words)))]
    return content[: word.start()] + others[int(rng.integers(len(others)))] + content[word.end() :]


Mutation = Callable[[bytearray, np.random.Generator], bytearray]
MUTATIONS: tuple[Mutation, ...] = (
    _truncate,
    _flip,
    _flip_header,
    _extremes,
    _splice,
    _garbage,
    _lie,
)


def _mutated(content: bytes, mutate: Mutation, rng: np.random.Generator) -> bytes:
    """Half of the time below the checksums, which otherwise keep most damage from the decoders."""
    deep = rng.uniform() < 0.5
    if deep and content[:2] == b"\x1f\x8b":
        plain = zlib.decompress(content, zlib.MAX_WBITS | 16)
        return zlib_gzip(bytes(mutate(bytearray(plain), rng)))
    made = mutate(bytearray(content), rng)
    if deep and made.startswith(b"\x89PNG"):
        at = 8
        while at + 12 <= len(made):
            end = at + 8 + int.from_bytes(made[at : at + 4], "big")
            if end + 4 > len(made):
                break
            made[end : end + 4] = struct.pack(">I", zlib.crc32(made[at + 4 : end]))
            at = end + 4
    return bytes(made)


def mutants(count: int, seed: int = 0, suffixes: Sequence[str] = ()) -> Iterator[tuple[str, bytes]]:
    """`count` mutations of the whole files, or of those with some suffixes, with their names."""
    files = sorted(
        (name, content)
        for name, content in whole_files().items()
        if not suffixes or Path(name).suffix[1:] in suffixes
    )
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        name, content = files[number % len(files)]
        mutate = MUTATIONS[int(rng.integers(0, len(MUTATIONS)))]
        made = _mutated(content, mutate, rng)
        yield f"{number:05d}-{mutate.__name__.strip('_')}-{name}", made


def _png(side: int, bits: int, kind: int) -> bytes:
    """A black picture; of one that is too large all but a hundred rows are missing."""
    samples = {0: 1, 2: 3, 6: 4}[kind]
    row = b"\0" * (1 + side * samples * bits // 8)
    packer = zlib.compressobj(1)
    rows = side if side == _JUST_ALLOWED else 100
    data = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, bits, kind, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def _zeros(mebibytes: int, bits: int = zlib.MAX_WBITS) -> bytes:
    """A stream that unpacks to so many zeros: one piece of it, again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, bits)
    begin = packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(b"\0" * 2**20) + packer.flush(zlib.Z_FULL_FLUSH)
    return begin + piece * mebibytes + packer.flush()


def _volume() -> bytes:
    """600 MB that are there, of 1,400 that the header claims."""
    header = nibabel.Nifti1Header()
    header.set_data_shape((1000, 1000, 700))
    header.set_data_dtype(np.int16)
    header["magic"], header["vox_offset"] = b"n+1", 352
    return zlib_gzip(header.binaryblock + b"\0" * 4) + zlib_gzip(b"\0" * 2**20) * 600


def _nrrd() -> bytes:
    """600 MB that are there, of 700 that the header claims."""
    header = b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 1000 1000 700\nencoding: gzip\n\n"
    return header + zlib_gzip(b"\0" * 2**20) * 600


def _metaimage() -> bytes:
    header = b"NDims = 3\nDimSize = 1000 1000 700\nElementType = MET_UCHAR\nCompressedData = True\n"
    return header + b"ElementDataFile = LOCAL\n" + _zeros(600)


def _words(of_each: bytes) -> bytes:
    """Text instead of 8 million numbers."""
    header = b"NRRD0004\ntype: double\ndimension: 2\nsizes: 4000 2000\nencoding: ascii\n\n"
    return header + of_each * (60_000_000 // len(of_each))


def _tiff(data: bytes, compression: int) -> bytes:
    """20 x 20 pixels in one strip, whose data unpack to more."""
    tags = {256: 20, 257: 20, 258: 8, 259: compression, 262: 1, 273: 200, 277: 1, 278: 20,
            279: len(data)}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0" * 4
    return head.ljust(200, b"\0") + data


def _many_frames() -> bytes:
    """Frames of one pixel, as many as there are bytes."""
    dataset = _dataset(np.zeros((1, 1), np.uint8))
    dataset.NumberOfFrames, dataset.PixelData = 3_000_000, b"\0" * 3_000_000
    return _written(dataset)


def _codestream_lie(syntax: str) -> bytes:
    """The header says 48 x 64, and the image inside 60,000 x 60,000."""
    content = bytearray(_transcoded(_written(_dataset(np.ones((48, 64), np.uint16))), syntax))
    if "2000" in syntax:
        at = content.find(b"\xff\x4f\xff\x51") + 8
        content[at : at + 8] = content[at + 16 : at + 24] = struct.pack(">II", 60_000, 60_000)
    else:
        marker = b"\xff\xf7" if "LS" in syntax else b"\xff\xc3"
        at = content.find(marker) + 5
        content[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    return bytes(content)


BOMBS: dict[str, Callable[[], bytes]] = {
    "60000-8-grey.png": lambda: _png(60_000, 8, 0),
    "20000-16-grey.png": lambda: _png(20_000, 16, 0),
    "9900-8-alpha.png": lambda: _png(9_900, 8, 6),
    "allowed-8-rgb.png": lambda: _png(_JUST_ALLOWED, 8, 2),
    "volume.nii.gz": _volume,
    "packed.nrrd": _nrrd,
    "packed.mha": _metaimage,
    "one-number.nrrd": lambda: _words(b"9"),
    "few-numbers.nrrd": lambda: _words(b" " * 64),
    "commas.nrrd": lambda: _words(b","),
    "header.nrrd": lambda: b"NRRD0004\n" + b"kinds: domain\n" * 2_000_000,
    "header.mha": lambda: b"NDims = 3\n" + b"a = 1\n" * 2_000_000,
    "deflate.tif": lambda: _tiff(_zeros(1_200), 8),
    "lzma.tif": lambda: _tiff(lzma.compress(b"\0" * 2**26, preset=0) * 20, 34925),
    "frames.dcm": lambda: _many_frames(),
    "JPEG2000Lossless.dcm": lambda: _codestream_lie("JPEG2000Lossless"),
    "JPEGLSLossless.dcm": lambda: _codestream_lie("JPEGLSLossless"),
    "JPEGLosslessProcess14_1.dcm": lambda: _codestream_lie("JPEGLosslessProcess14_1"),
}  # small files that unpack to much, or claim to
