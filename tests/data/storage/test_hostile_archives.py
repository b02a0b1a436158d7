"""Archives that were made to hang a reader, or to fill the memory, end at once with a reason."""

import io
import struct
import tarfile
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dino_x.data.image import DEFAULT
from dino_x.data.index.catalog import update

ENDS = b"\0" * 1024


def header(kind: bytes, size: int, name: str = "a.png") -> bytes:
    """The header of a member; a size below 0 is written as GNU tar writes large numbers."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, max(size, 0)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if size < 0:
        block[124:136] = struct.pack(">B", 0xFF) + size.to_bytes(11, "big", signed=True)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(text: bytes) -> bytes:
    return header(b"x", len(text)) + text.ljust(512, b"\0")


TARS = {
    "goes back to itself": header(b"0", -512) + ENDS,
    "goes back by its facts": header(b"x", -512) + ENDS,
    "goes back by a pax size": pax(b"14 size=-1024\n") + header(b"0", 0) + ENDS,
    "sparse, below 0": header(b"S", -512) + ENDS,
    "facts of facts": pax(b"20 path=abcdefghijk\n") * 5000 + header(b"0", 0) + ENDS,
    "long names of long names": (header(b"L", 20) + b"x" * 512) * 5000 + header(b"0", 0) + ENDS,
    "facts of 8 GB": header(b"x", 8 * 10**9) + ENDS * 9,
    "a name of 8 GB": header(b"L", 8 * 10**9) + ENDS * 9,
    "sparse without an end": header(b"S", 512)[:482] + b"\1" + header(b"S", 512)[483:] + ENDS,
    "a number that is none": pax(b"99999999999999999999 path=a\n") + header(b"0", 0) + ENDS,
}


@pytest.mark.parametrize("name", TARS)
def test_a_tar_that_was_made_up_ends_with_a_reason(tmp_path, name):
    (tmp_path / "a.tar").write_bytes(TARS[name])
    (tmp_path / "good.npy").write_bytes(as_npy())
    tracemalloc.start()
    records = update([tmp_path], reading=DEFAULT, workers=1).table.records
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    by_name = {record.path.name: record for record in records}
    assert "damaged" in by_name["a.tar"].unusable or "truncated" in by_name["a.tar"].unusable
    assert by_name["good.npy"].unusable is None  # the rest is indexed


def as_npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(12, dtype=np.uint8).reshape(3, 4))
    return file.getvalue()


def test_a_parquet_file_of_values_that_it_holds_once_is_refused(tmp_path):
    """521 bytes that stand for 8 GB."""
    value = b"\x89PNG" + bytes(8 * 2**20)
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1000, np.int32)), pa.array([value]))
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": column}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 100_000
    before = pa.total_allocated_bytes()
    (record,) = update([path], reading=DEFAULT, workers=1).table.records
    assert "far more memory than the file" in record.unusable
    assert pa.total_allocated_bytes() - before < 2**20  # nothing of it is kept


def test_a_parquet_file_may_take_what_it_takes_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("dino_x.data.storage.row_groups._MEMORY", 0)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [as_npy()] * 40}), path, compression="zstd")
    records = update([path], reading=DEFAULT, workers=1).table.records
    assert len([record for record in records if record.refs]) == 40


@pytest.mark.parametrize("where", ["after the mark", "after the meta group"])
def test_a_dicom_file_of_zeros_is_refused_at_once(tmp_path, where):
    """pydicom takes each eight of them for an element: 2.6 million here."""
    meta = b"" if where == "after the mark" else b"\2\0\x10\0UI\x14\0" + b"1.2.840.10008.1.2.1\0"
    content = bytes(128) + b"DICM" + meta + bytes(20 * 2**20)
    (tmp_path / "a.dcm").write_bytes(content)
    tracemalloc.start()
    (record,) = update([tmp_path], reading=DEFAULT, workers=1).table.records
    assert tracemalloc.get_traced_memory()[1] < 25e6  # no object an element
    tracemalloc.stop()
    assert record.unusable == "damaged DICOM header: zeros where elements should be"
