"""A header whose values lie in a file of their own: a change of either is a change of the image."""

import os

import numpy as np
import pytest

from dino_x.commands.feature_identity import hash_of_images
from dino_x.data.canvas.canvas import CanvasForm
from dino_x.data.canvas.store import keys_of
from dino_x.data.image import DEFAULT, Unreadable
from dino_x.data.index.catalog import update
from dino_x.data.readers import metaimage, nrrd, registry
from dino_x.data.readers.several_files import state_of, values_in

HEADERS = {
    "a.mhd": "NDims = 3\nDimSize = 5 4 2\nElementType = MET_UCHAR\nElementDataFile = a.raw\n",
    "a.nhdr": "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 5 4 2\nspacings: 1 1 1\n"
    "encoding: raw\ndata file: a.raw\n",
    "a nrrd without a suffix": "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 5 4 2\n"
    "spacings: 1 1 1\nencoding: raw\ndata file: a.raw\n",
}


@pytest.fixture(params=HEADERS, ids=["mhd", "nhdr", "no_suffix"])
def header(request, tmp_path):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / request.param
    path.write_text(HEADERS[request.param])
    path.with_name("a.raw").write_bytes(bytes(range(40)))
    return path


@pytest.fixture
def headers_read(monkeypatch):
    """The headers that are read from now on."""
    seen = []
    for module in (nrrd, metaimage):
        own = module.refs
        monkeypatch.setattr(
            module, "refs", lambda path, reading, own=own: seen.append(path) or own(path, reading)
        )
    return seen


def change_values(header, by="time"):
    """Other values of the same number; by "older", as an earlier version that is put back."""
    values = header.with_name("a.raw")
    before = values.stat()
    values.write_bytes(bytes(range(100, 140)) + bytes(by == "size"))
    ns = {"time": 1, "older": -(10**15), "size": 0}[by]
    os.utime(values, ns=(before.st_atime_ns, before.st_mtime_ns + ns))


CHANGES = pytest.mark.parametrize("by", ["time", "older", "size"])


def refs_in(header):
    return update([header.parent], reading=DEFAULT).table.records[0].refs


@CHANGES
def test_an_index_notices_values_that_changed_behind_their_header(
    header, tmp_path, headers_read, by
):
    out = tmp_path / "i.parquet"
    first = update([header.parent], reading=DEFAULT, kept_in=out)
    assert first.table.records[0].refs[0].format in ("NRRD", "MetaImage")
    headers_read.clear()
    assert update([header.parent], reading=DEFAULT, kept_in=out).kept == 1
    assert headers_read == []
    change_values(header, by)
    second = update([header.parent], reading=DEFAULT, kept_in=out)
    assert headers_read == [header]
    assert second.table.records[0].content != first.table.records[0].content
    assert second.table.records[0].refs[0].state != first.table.records[0].refs[0].state


def test_values_that_come_after_their_header_are_found_when_an_index_is_continued(header, tmp_path):
    out = tmp_path / "i.parquet"
    header.with_name("a.raw").rename(tmp_path / "elsewhere")
    first = update([header.parent], reading=DEFAULT, kept_in=out)
    assert "is missing" in str(first.table.records[0].unusable)
    (tmp_path / "elsewhere").rename(header.with_name("a.raw"))
    assert len(update([header.parent], reading=DEFAULT, kept_in=out).table.records[0].refs) == 2


def test_values_that_are_copied_late_are_found_when_an_index_is_continued(header, tmp_path):
    out, values = tmp_path / "i.parquet", header.with_name("a.raw")
    values.write_bytes(bytes(10))
    first = update([header.parent], reading=DEFAULT, kept_in=out)
    assert "truncated" in str(first.table.records[0].unusable)
    values.write_bytes(bytes(range(40)))
    assert len(update([header.parent], reading=DEFAULT, kept_in=out).table.records[0].refs) == 2


@CHANGES
def test_an_image_is_refused_whose_values_changed_since_it_was_indexed(header, by):
    (ref, _) = refs_in(header)
    assert registry.read(ref).pixels.max() == 19
    change_values(header, by)
    with pytest.raises(Unreadable, match="has changed since it was indexed"):
        registry.read(ref)


def test_an_image_is_refused_whose_header_names_other_values_of_the_same_size(header):
    (ref, _) = refs_in(header)
    header.with_name("b.raw").write_bytes(bytes(range(100, 140)))
    before = header.stat()
    header.write_text(HEADERS[header.name].replace("a.raw", "b.raw"))
    os.utime(header, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(Unreadable, match="has changed since it was indexed"):
        registry.read(ref)


@CHANGES
def test_a_canvas_on_disk_is_that_of_its_values(header, by):
    form = CanvasForm(16, 1)
    rows = refs_in(header)
    before = keys_of(rows, form)
    assert keys_of(rows, form) == before
    change_values(header, by)
    assert not set(keys_of(rows, form)) & set(before)
    header.with_name("a.raw").unlink()
    assert not set(keys_of(rows, form)) & set(before)


@CHANGES
def test_features_of_other_values_are_not_mixed(header, by):
    rows = refs_in(header)
    before = hash_of_images(rows)
    change_values(header, by)
    assert hash_of_images(rows) != before


def test_the_state_of_an_image_of_one_file_is_that_of_the_file(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((4, 5), np.uint8))
    status = path.stat()
    assert state_of(path) == state_of(path, "NumPy") == (status.st_size, status.st_mtime_ns)
    assert values_in(path) is None
