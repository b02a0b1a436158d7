"""Parts of an array in a file are those of the array, whatever way they are read."""

import itertools

import nibabel
import numpy as np
import pytest

from dino_x.data.image import Reading, Unreadable
from dino_x.data.readers.registry import read, refs
from dino_x.data.storage import parts
from dino_x.data.storage.parts import read_part


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(("near", "block"), [(1, 1), (40, 64), (10**6, 100), (10**6, 10**6)])
def test_every_part_of_an_array(tmp_path, rng, monkeypatch, order, near, block):
    """Values singly, in runs, or in blocks that are smaller or larger than the array."""
    monkeypatch.setattr(parts, "_NEAR", near)
    monkeypatch.setattr(parts, "_BLOCK", block)
    path = tmp_path / "values"
    for shape in ((3, 4, 5, 6), (7, 1, 5), (2, 9)):
        values = rng.integers(0, 999, shape).astype(">i2")
        path.write_bytes(b"1234567" + values.tobytes(order))
        for kept in itertools.product((True, False), repeat=len(shape)):
            where = [
                None if keep else int(rng.integers(n)) for keep, n in zip(kept, shape, strict=True)
            ]
            got = read_part(path, values.dtype, 7, shape, where, order)
            wanted = values[tuple(slice(None) if at is None else at for at in where)]
            np.testing.assert_array_equal(got, wanted)


def test_only_what_is_near_is_read_too(tmp_path, monkeypatch):
    """An axial and a coronal slice cost their own bytes; a sagittal one a look at the volume."""
    values = np.zeros((40, 300, 200), np.int16)  # z, y, x: a row of 400 bytes
    path = tmp_path / "values"
    path.write_bytes(values.tobytes())
    got = []
    fill = parts._fill
    monkeypatch.setattr(
        parts, "_fill", lambda file, at, out: (got.append(out.nbytes), fill(file, at, out))
    )
    for where, cost in (
        ((3, None, None), 120_000),
        ((None, 3, None), 16_000),
        ((None, None, 3), values.nbytes),
    ):
        got.clear()
        read_part(path, values.dtype, 0, values.shape, where)
        assert sum(got) == cost
        assert max(got) <= parts._BLOCK


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_a_volume_that_is_cut_off_after_its_header_was_read_is_a_reason(tmp_path, axis):
    """Mapped, it would end the process."""
    path = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(np.ones((64, 64, 64), np.float32), np.eye(4)), path)
    last = refs(path, Reading(axis))[-1]
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(Unreadable, match="truncated"):
        read(last)


def test_a_file_that_is_cut_off_while_it_is_read_is_a_reason(tmp_path, monkeypatch):
    for name, save in (
        ("a.nii", lambda path, values: nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)),
        ("a.npy", lambda path, values: np.save(path, values)),
    ):
        path = tmp_path / name
        save(path, np.ones((20, 64, 65), np.float32))
        last = refs(path)[-1]
        whole = path.read_bytes()
        fill = parts._fill

        def cut(file, at, out, path=path, whole=whole, fill=fill):
            path.write_bytes(whole[:1000])
            fill(file, at, out)

        with monkeypatch.context() as patch:
            patch.setattr(parts, "_fill", cut)
            with pytest.raises(Unreadable, match="truncated"):
                read(last)
