"""Images inside tar and Parquet files: found, indexed and read as those in folders."""

import gzip
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import fsspec
import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow

from dino_x.cli import main
from dino_x.data.image import DEFAULT, Reading
from dino_x.data.index.catalog import update
from dino_x.data.index.index import build_index
from dino_x.data.index.table import read_table
from dino_x.data.readers import registry
from dino_x.data.storage import listing
from dino_x.data.storage.member import Member
from dino_x.errors import UserError
from tests.data.conftest import make_dicom_file
from tests.data.packing import STRUCT, add_to_tar, files_below, pack_parquet, pack_tar


@pytest.fixture
def folder(tmp_path, rng):
    """Every format that is read, some with several images, and what is no image."""
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    for number in range(9):
        noise = rng.integers(0, 256, (12, 10 + number), dtype=np.uint8)
        Pillow.fromarray(noise).save(folder / "a" / f"{number}.png")
        Pillow.fromarray(noise).save(folder / "a" / f"{number}.jpg")
    Pillow.fromarray(noise).save(folder / "b.tif")
    Pillow.fromarray(noise).save(folder / "lzw.tif", compression="tiff_lzw")
    np.save(folder / "stack.npy", rng.random((7, 9, 8)).astype(np.float32))
    volume = nibabel.Nifti1Image(rng.integers(0, 9, (5, 6, 4), dtype=np.int16), np.eye(4))
    nibabel.save(volume, folder / "volume.nii")
    nibabel.save(volume, folder / "volume2.nii.gz")
    nibabel.save(nibabel.MGHImage(volume.get_fdata(dtype=np.float32), np.eye(4)), folder / "T1.mgz")
    scan = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 7 6 5\nspacings: 1 1 2\nencoding: raw\n\n"
    (folder / "scan.nrrd").write_bytes(scan.encode() + rng.bytes(210))
    meta = "NDims = 3\nDimSize = 7 6 5\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    (folder / "scan.mha").write_bytes(meta.encode() + rng.bytes(210))
    for number in range(3):
        pixels = rng.integers(0, 2000, (16, 20), dtype=np.uint16)
        place = {"ImagePositionPatient": [0, 0, number], "SeriesInstanceUID": "1.2.3"}
        make_dicom_file(folder / f"ct{number}.dcm", pixels, Modality="CT", **place)
    shutil.copy(folder / "ct0.dcm", folder / "without_suffix")
    (folder / "a" / "0.json").write_text("{}")
    (folder / "a" / "0.cls").write_text("3")
    (folder / ".hidden.png").write_bytes((folder / "a" / "0.png").read_bytes())
    return folder


def in_memory(*files: Path) -> str:
    """Files put in fsspec's file system in memory; the address of their folder."""
    store = fsspec.filesystem("memory")
    place = f"/{files[0].parent.name}-{os.urandom(4).hex()}"
    for file in files:
        store.pipe_file(f"{place}/{file.name}", file.read_bytes())
    return f"memory:/{place}"


def pack(kind: str, folder: Path) -> Path:
    out = folder.parent / "packed"
    out.mkdir(exist_ok=True)
    if kind.endswith("tar"):
        packed = pack_tar(folder, out / "x.tar")
    else:
        packed = pack_parquet(folder, out / "x.parquet")
    return Path(in_memory(packed)) / packed.name if kind.startswith("memory") else packed


KINDS = ["tar", "parquet", "memory tar", "memory parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_archive_holds_the_images_of_its_folder_in_their_order(folder, kind):
    plain, packed = build_index([folder]), build_index([pack(kind, folder)])
    assert len(plain) == 53
    assert not packed.skipped
    inside = [ref.path.name_inside for ref in packed.rows]
    assert inside == [str(ref.path.relative_to(folder)) for ref in plain.rows]
    for mine, its in zip(packed.rows, plain.rows, strict=True):
        assert replace(mine, path=its.path, series=its.series) == its
        mine, its = registry.read(mine), registry.read(its)
        np.testing.assert_array_equal(mine.pixels, its.pixels)
        assert (mine.window, mine.spacing_mm) == (its.window, its.spacing_mm)


@pytest.mark.parametrize("kind", KINDS)
def test_keys_of_patients_are_those_of_the_files(folder, kind):
    def keys(index):
        return [(r.patient, r.series) for r in index.rows if r.format == "DICOM"]

    packed = build_index([pack(kind, folder)])
    assert keys(packed) == keys(build_index([folder]))
    assert len({ref.series for ref in packed.rows if ref.format == "NIfTI"}) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_brings_back_what_the_archives_said_without_opening_them(
    folder, kind, tmp_path, monkeypatch
):
    packed, kept = pack(kind, folder), tmp_path / "index.parquet"
    first = build_index([packed], kept_in=kept, verify="headers")
    monkeypatch.setattr("dino_x.data.index.headers.members", lambda archive: pytest.fail("opened"))
    again = build_index([packed], kept_in=kept, verify="headers")
    alone = build_index([kept], verify="headers")
    for found in (again, alone):
        assert found.rows == first.rows
        assert places(found) == places(first)
        np.testing.assert_array_equal(
            registry.read(found.rows[-1]).pixels, registry.read(first.rows[-1]).pixels
        )


def places(index):
    return [
        (r.path.archive, r.path.offset, r.path.length, r.path.row_group, r.path.row)
        for r in index.rows
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_archive_that_has_changed_is_read_anew(folder, kind, tmp_path):
    packed, kept = pack(kind, folder), tmp_path / "index.parquet"
    build_index([packed], kept_in=kept)
    (folder / "a" / "0.png").unlink()
    new = pack(kind.removeprefix("memory "), folder)
    if kind.startswith("memory"):
        fsspec.filesystem("memory").pipe_file(str(packed).partition(":")[2], new.read_bytes())
    found = update([packed], reading=DEFAULT, kept_in=kept)
    assert (len(found.table.records), found.read, found.kept) == (29, 29, 0)


def test_the_table_says_where_an_image_lies(folder, tmp_path):
    packed = [pack("tar", folder), pack("parquet", folder)]
    build_index(packed, kept_in=tmp_path / "index.parquet")
    rows = pq.read_table(tmp_path / "index.parquet").to_pylist()
    tar = next(row for row in rows if row["path"] == "x.tar/b.tif")
    assert (tar["shard"], tar["row_group"], tar["row"]) == ("x.tar", None, None)
    data = packed[0].read_bytes()[tar["offset"] :][: tar["size"]]
    assert data == (folder / "b.tif").read_bytes()
    row = next(row for row in rows if row["path"] == "x.parquet/b.tif")
    images = [f.name for f in files_below(folder) if f.suffix not in (".json", ".cls")]
    number = images.index("b.tif")
    assert (row["offset"], row["row_group"], row["row"]) == (None, number // 7, number % 7)


def test_conditions_may_name_archives(folder, tmp_path):
    pack("tar", folder), pack("parquet", folder)
    both = folder.parent / "packed"
    found = build_index([both], where='shard == "x.tar" and format == "PNG"')
    assert len(found) == 9
    assert {ref.path.archive.path.name for ref in found.rows} == {"x.tar"}


def test_members_survive_pickling(folder):
    ref = build_index([pack("tar", folder)]).rows[3]
    copy = pickle.loads(pickle.dumps(ref))
    assert copy == ref
    assert isinstance(copy.path, Member)
    assert (copy.path.archive, copy.path.offset) == (ref.path.archive, ref.path.offset)


def test_a_large_member_is_not_read_as_a_whole(tmp_path, monkeypatch):
    (tmp_path / "f").mkdir()
    values = np.random.default_rng(0).integers(0, 99, (600, 200, 200), dtype=np.int16)
    np.save(tmp_path / "f" / "stack.npy", values)
    rows = build_index([pack_tar(tmp_path / "f", tmp_path / "x.tar")], verify="headers").rows
    monkeypatch.setattr(Member, "load", lambda member: pytest.fail("read as a whole"))
    np.testing.assert_array_equal(registry.read(rows[599]).pixels[0], values[599])


@pytest.mark.parametrize("pattern", ["ct-{000..001}.tar", "ct-*.tar", "{ct-000,ct-001}.tar", ""])
@pytest.mark.parametrize("remote", [True, False])
def test_several_archives_by_one_name(folder, tmp_path, pattern, remote):
    files = [f for f in files_below(folder) if f.suffix == ".png" and f.name[0] != "."]
    out = tmp_path / "archives"
    out.mkdir()
    archives = [
        pack_tar(folder, out / f"ct-00{number}.tar", files[number::2]) for number in range(2)
    ]
    place = Path(in_memory(*archives)) if remote else out
    index = build_index([place / pattern])
    assert [ref.path.name for ref in index.rows] == [f.name for f in (*files[::2], *files[1::2])]
    assert {ref.source for ref in index.rows} == {0}


def test_an_address_of_a_file_is_its_path(folder):
    packed = pack("tar", folder)
    assert build_index([Path(f"file://{packed}")]).rows == build_index([packed]).rows


def test_classes_are_the_folders_inside_archives(folder, tmp_path):
    packed, out = pack("tar", folder), tmp_path / "index.parquet"
    assert main(["index", str(packed), "--labels", "folder", "--out", str(out)]) == 0
    labels = {(r["path"].count("/"), r["label"]) for r in pq.read_table(out).to_pylist()}
    assert labels == {(1, None), (2, "a")}


# What cannot be used


def refused(*paths: object) -> str:
    with pytest.raises(UserError) as caught:
        build_index([Path(str(path)) for path in paths])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz"])
def test_a_compressed_tar_is_refused_with_the_way_out(folder, tmp_path, name):
    packed = tmp_path / name
    packed.write_bytes(gzip.compress(pack("tar", folder).read_bytes()))
    assert "unpack it (gunzip, or zstd -d) to a .tar" in refused(packed)


def test_a_folder_with_nothing_but_compressed_tars_says_so(folder, tmp_path):
    (tmp_path / "only").mkdir()
    tar = pack("tar", folder).read_bytes()
    (tmp_path / "only" / "x.tar.gz").write_bytes(gzip.compress(tar))
    assert "compressed tars have to be unpacked" in refused(tmp_path / "only")


@pytest.mark.parametrize("at", ["in a header", "in data", "at a boundary"])
def test_of_a_truncated_tar_the_whole_images_are_used_and_it_is_listed(folder, at):
    for file in files_below(folder):
        if file.suffix != ".png":
            file.unlink()
    packed = pack("tar", folder)
    last = build_index([packed]).rows[-1].path
    cut = {"in a header": -100, "in data": 100, "at a boundary": -512}[at]
    os.truncate(packed, last.offset + cut)
    for file in range(3):  # so that one damaged archive is not more than 1 in 10
        shutil.copytree(folder, folder.parent / "more" / str(file))
    index = build_index([packed, folder.parent / "more"])
    names = [ref.path.name for ref in index.rows if isinstance(ref.path, Member)]
    assert names == [f"{number}.png" for number in range(8)]
    (skip,) = index.skipped
    assert skip.path == packed
    assert "truncated" in skip.reason


def test_damage_in_the_middle_of_a_tar_is_not_taken_for_its_end(folder):
    packed = pack("tar", folder)
    middle = next(r.path for r in build_index([packed]).rows if r.path.name == "b.tif")
    data = bytearray(packed.read_bytes())
    data[middle.offset - 512 : middle.offset - 500] = b"x" * 12  # of its header
    packed.write_bytes(data)
    records = update([packed], reading=DEFAULT).table.records
    (unusable,) = [record for record in records if record.unusable]
    assert unusable.path == packed
    assert "damaged tar" in unusable.unusable


def test_a_damaged_member_costs_itself_only(folder, rng):
    packed = pack("tar", folder)
    victim = next(r.path for r in build_index([packed]).rows if r.path.name == "3.png")
    data = bytearray(packed.read_bytes())
    data[victim.offset + 45 : victim.offset + 90] = bytes(45)
    packed.write_bytes(data)
    index = build_index([packed], verify="all")
    assert [skip.path.name for skip in index.skipped] == ["3.png"]
    assert len(index) == 52


def test_of_two_members_of_one_name_the_last_counts(folder, tmp_path):
    packed = pack("tar", folder)
    later = (folder / "a" / "8.png").read_bytes()
    add_to_tar(packed, b__tif=later)
    rows = [ref for ref in build_index([packed]).rows if ref.path.name == "b.tif"]
    assert [ref.format for ref in rows] == ["PNG"]


def test_rows_of_one_name_are_called_by_their_number(tmp_path, write_png):
    content = write_png("1.png").read_bytes()
    image = pa.array([{"bytes": content, "path": "image.png"}] * 3, STRUCT)
    pq.write_table(pa.table({"image": image}), tmp_path / "x.parquet")
    names = [ref.path.name for ref in build_index([tmp_path / "x.parquet"]).rows]
    assert names == ["000000000", "000000001", "000000002"]


def test_names_never_lead_out_of_a_archive(tmp_path, write_png):
    content = write_png("1.png").read_bytes()
    packed = add_to_tar(tmp_path / "x.tar", **{"../../up__png": content, "/root__png": content})
    inside = [ref.path.name_inside for ref in build_index([packed]).rows]
    assert inside == ["root.png", "up.png"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_a_column_of_bytes_is_one_of_images(tmp_path, write_png, kind):
    contents = [write_png(f"{n}.png", n).read_bytes() for n in range(5)] + [None]
    table = pa.table(
        {"image": pa.array(contents, kind), "other": pa.array([b"no image"] * 6, kind)}
    )
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    index = build_index([tmp_path / "x.parquet"])
    assert [(r.path.row_group, r.path.row) for r in index.rows] == [
        (0, 0), (0, 1), (1, 0), (1, 1), (2, 0),
    ]  # fmt: skip


def test_a_parquet_file_without_images_is_refused_by_name_and_passed_over_in_folders(
    tmp_path, write_png
):
    write_png("1.png")
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "x.parquet")
    assert "neither an index made by `dino-x index` nor" in refused(tmp_path / "x.parquet")
    assert len(build_index([tmp_path])) == 1


def test_an_index_in_a_folder_is_no_archive(tmp_path, write_png):
    write_png("1.png")
    build_index([tmp_path], kept_in=tmp_path / "index.parquet")
    assert len(build_index([tmp_path], kept_in=tmp_path / "index.parquet")) == 1


def test_a_damaged_parquet_file_is_refused(folder):
    packed = pack("parquet", folder)
    os.truncate(packed, packed.stat().st_size - 100)
    assert "damaged" in refused(packed)


def test_bytes_that_are_no_images_are_refused_where_the_file_was_named(tmp_path, write_png):
    write_png("1.png")
    table = pa.table({"embedding": pa.array([b"\0" * 40] * 5, pa.binary())})
    pq.write_table(table, tmp_path / "x.parquet")
    assert "not an image" in refused(tmp_path / "x.parquet")
    assert len(build_index([tmp_path])) == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("memory://nowhere/x.tar", "memory://nowhere/x.tar does not exist"),
        ("memory://nowhere/*.tar", "no archives in memory://nowhere/*.tar"),
        ("nosuch://b/x.tar", "nosuch:// is not a known kind of storage"),
        ("memory://b/{0..9999999}.tar", "stands for more than 1,000,000 names"),
    ],
)
def test_addresses_of_nothing_are_refused(path, message):
    assert message in refused(path)


def test_storage_whose_package_is_missing_says_what_to_install(monkeypatch):
    def missing(protocol, **settings):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    from dino_x.data.storage.archives import _filesystem

    _filesystem.cache_clear()
    assert "pip install s3fs" in refused("s3://bucket/x.tar")
    _filesystem.cache_clear()


def test_the_command_makes_an_index_of_archives(folder, tmp_path, capsys):
    packed = [str(pack(kind, folder)) for kind in KINDS]
    assert main(["index", *packed, "--out", str(tmp_path / "index.parquet")]) == 0
    assert "212 in 120 files" in capsys.readouterr().out
    assert len(read_table(tmp_path / "index.parquet").records) == 120


def test_what_was_looked_through_before_a_store_was_lost_is_kept(folder, tmp_path, monkeypatch):
    out = tmp_path / "index.parquet"
    archives = []
    for name in ("0.tar", "1.tar"):
        archives.append(pack_tar(folder, tmp_path / name))
    place = in_memory(*archives)
    store = fsspec.filesystem("memory")
    read = store.cat_file

    def lost(path, **span):
        if path.endswith("1.tar"):
            raise FileNotFoundError
        return read(path, **span)

    monkeypatch.setattr(store, "cat_file", lost)
    with pytest.raises(UserError, match="1.tar is gone"):
        update([Path(place)], reading=DEFAULT, kept_in=out)
    assert not read_table(out).complete
    monkeypatch.setattr(store, "cat_file", read)
    found = update([Path(place)], reading=DEFAULT, kept_in=out)
    assert (found.read, found.kept) == (30, 30)


def test_volumes_in_archives_are_cut_as_they_are_asked_to_be(folder):
    reading = Reading("sagittal", "CT")
    plain = build_index([folder], reading=reading).rows
    packed = build_index([pack("tar", folder)], reading=reading).rows
    assert [r.frame for r in packed] == [r.frame for r in plain]
    plain, packed = ([r for r in rows if r.format == "NIfTI"][-1] for rows in (plain, packed))
    np.testing.assert_array_equal(registry.read(packed).pixels, registry.read(plain).pixels)


def test_processes_look_through_archives_as_threads_do(folder, tmp_path, monkeypatch):
    archives = tmp_path / "archives"
    archives.mkdir()
    for number in range(2):
        pack_tar(folder, archives / f"{number}.tar")
    threads = update([archives, folder], reading=DEFAULT, workers=2)
    monkeypatch.setattr("dino_x.data.index.headers.PROCESSES_FROM", 1)
    processes = update([archives, folder], reading=DEFAULT, workers=2)
    assert processes.table == threads.table
    assert len(processes.table.records) == 3 * 30
    assert places(build_index([archives])) == [
        (m.archive, m.offset, m.length, m.row_group, m.row)
        for m in (ref.path for record in processes.table.records for ref in record.refs)
        if isinstance(m, Member)
    ]


def test_suffixes_of_archives():
    assert listing.is_archive("A.TAR")
    assert not listing.is_archive("a.tar.png")
