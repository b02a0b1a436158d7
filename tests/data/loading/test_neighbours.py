from pathlib import Path

import numpy as np
import pytest
import torch

from dino_x.data.canvas.canvas import CanvasForm
from dino_x.data.canvas.store import CanvasStore, keys_of
from dino_x.data.image import Image, ImageRef, Unreadable
from dino_x.data.index.index import Index
from dino_x.data.loading import neighbours as module
from dino_x.data.loading.loader import Loader
from dino_x.data.loading.neighbours import neighbours, read_slices, refuse_uneven
from dino_x.data.loading.stacks import UNEVEN, UNLIKE, UNPLACED
from dino_x.data.readers import registry
from dino_x.errors import UserError
from dino_x.evaluation.baselines import pixel_encoder
from dino_x.evaluation.embed import Encoder, ImagePreparation, encode


def ref(name: str, series=None, position=None, height=4, width=5) -> ImageRef:
    return ImageRef(
        path=Path(name), height=height, width=width, series=series, position_mm=position
    )


def volume(positions, series="s", **more) -> list[ImageRef]:
    return [ref(f"{series}{i}", series, position, **more) for i, position in enumerate(positions)]


def test_neighbours_are_next_by_position_and_not_by_order_or_name():
    rows = volume([10.0, -2.5, 5.0, 0.0, 2.5, 7.5, 12.5])
    found = neighbours(rows)
    assert not found.refused
    positions = np.array([row.position_mm for row in rows])[found.triples]
    np.testing.assert_array_equal(positions[:, 1], [row.position_mm for row in rows])
    np.testing.assert_allclose(positions[:, 0], np.maximum(positions[:, 1] - 2.5, -2.5))
    np.testing.assert_allclose(positions[:, 2], np.minimum(positions[:, 1] + 2.5, 12.5))


def test_series_do_not_mix():
    rows = volume([0.0, 1.0, 2.0], "a") + volume([0.5, 1.5, 2.5], "b")
    order = np.random.default_rng(0).permutation(6)
    rows = [rows[i] for i in order]
    for i, triple in enumerate(neighbours(rows).triples):
        assert {rows[j].series for j in triple} == {rows[i].series}


@pytest.mark.parametrize(
    "rows",
    [
        [ref("film"), ref("film too")],
        [ref("a", None, 1.0), ref("b", None, 2.0)],
        volume([None, None]),  # two films of one series
        volume([3.0]),
    ],
)
def test_films_repeat_themselves(rows):
    found = neighbours(rows)
    assert found.triples.tolist() == [[i, i, i] for i in range(len(rows))]
    assert not found.refused


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (volume([0.0, 1.0, 3.0, 4.0]), UNEVEN),  # a slice is missing
        (volume([0.0, 1.0, 2.0, 3.06]), UNEVEN),
        (volume([0.0, 1.0, 1.0, 2.0]), UNEVEN),  # two at one place
        (volume([0.0, 0.0]), UNEVEN),
        (volume([0.0, float("nan"), 2.0]), UNEVEN),
        (volume([0.0, 1.0, None]), UNPLACED),
        ([*volume([0.0, 1.0]), ref("tall", "s", 2.0, height=9)], UNLIKE),
    ],
)
def test_a_volume_that_cannot_be_used_is_refused_as_a_whole(rows, reason):
    others = volume([0.0, 2.0, 4.0], "other")
    found = neighbours([*others, *rows])
    assert found.refused == dict.fromkeys(range(3, 3 + len(rows)), reason)
    assert found.triples[:3].tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 2]]
    assert found.triples[3:].tolist() == [[i, i, i] for i in range(3, 3 + len(rows))]


def test_positions_are_rounded_by_headers():
    assert not neighbours(volume([0.0, 1.04, 2.0, 3.0, 4.02])).refused


def test_refused_volumes_are_taken_out_and_listed_with_the_reason():
    index = Index(volume([0.0, 1.0, 5.0], "x") + volume([0.0, 1.0], "y"))
    assert refuse_uneven(index) == 3
    assert [row.series for row in index.rows] == ["y", "y"]
    assert {(str(s.path), s.reason) for s in index.skipped} == {(f"x{i}", UNEVEN) for i in range(3)}


def test_frames_of_one_file_are_listed_once():
    rows = [
        ImageRef(path=Path("v"), frame=i, height=4, width=4, series="s", position_mm=i * i / 2)
        for i in range(4)
    ]
    index = Index([*rows, ref("film")])
    refuse_uneven(index)
    assert len(index.skipped) == 1


def test_nothing_left_is_an_error():
    with pytest.raises(UserError, match=r"no image is left .*evenly spaced; data.slices=1"):
        refuse_uneven(Index(volume([0.0, 1.0, 5.0])))


@pytest.fixture
def ramp(monkeypatch):
    """A volume of 5 slices out of order, whose values are 1000 times their position."""
    rows = volume([6.0, 2.0, 4.0, 0.0, 8.0])
    unreadable = set()

    def read(row):
        if row in unreadable:
            raise Unreadable("truncated")
        value = 1000 * row.position_mm
        pixels = np.full((1, row.height, row.width), value, np.float32)
        return Image(pixels, (value - 5000, value + 5000), (0.5, 0.5), "MR")

    monkeypatch.setattr(registry, "read", read)
    monkeypatch.setattr(module.registry, "read", read)
    return rows, unreadable


def test_slices_are_read_as_channels_in_the_window_of_the_middle_one(ramp):
    rows, _ = ramp
    triples = neighbours(rows).triples
    image = read_slices([rows[i] for i in triples[2]])
    assert image.pixels[:, 0, 0].tolist() == [2000, 4000, 6000]
    assert image.window == (-1000, 9000)
    assert image.spacing_mm == (0.5, 0.5)
    last = read_slices([rows[i] for i in triples[4]])
    assert last.pixels[:, 0, 0].tolist() == [6000, 8000, 8000]


def test_a_slice_of_another_size_than_its_header_said_is_unreadable(ramp, monkeypatch):
    rows, _ = ramp
    real = registry.read

    def read(row):
        image = real(row)
        return Image(image.pixels[:, :3], image.window) if row == rows[1] else image

    monkeypatch.setattr(module.registry, "read", read)
    with pytest.raises(Unreadable, match="neighbouring slice"):
        read_slices([rows[1], rows[2], rows[0]])


@pytest.mark.parametrize("cached", [False, True])
def test_canvases_hold_the_neighbours(ramp, tmp_path, cached):
    rows, _ = ramp
    form = CanvasForm(16, 3, slices=3)
    for _ in range(2):
        store = None
        if cached:
            keys = [bytes([i]) * 16 for i in range(5)]
            store = CanvasStore(tmp_path / "cache", keys, form, limit_bytes=10**9)
        with Loader(Index(rows), form, cache_bytes=0, workers=2, store=store) as loader:
            batch = loader.batch(np.array([2, 3]))
        values = batch.pixels[:, :, 8, 8].numpy()
        np.testing.assert_allclose(values, [[0.3, 0.5, 0.7], [0.5, 0.5, 0.7]], atol=1e-4)
        np.testing.assert_allclose(batch.size_mm, [[2.0, 2.5]] * 2)


def test_an_unreadable_neighbour_replaces_the_image(ramp):
    rows, unreadable = ramp
    unreadable.add(rows[3])
    with Loader(Index(rows), CanvasForm(16, 3, slices=3), cache_bytes=0, workers=2) as loader:
        batch = loader.batch(np.array([1]))  # between rows 3 and 2; row 2 is next in the index
        np.testing.assert_allclose(batch.pixels[0, :, 0, 0], [0.3, 0.5, 0.7], atol=1e-4)
        assert [skip.reason for skip in loader.skipped] == ["truncated"]


def test_evaluation_sees_the_same_neighbours(ramp, monkeypatch):
    """Also those that have no label; and what takes one channel sees the slice itself."""
    rows, _ = ramp
    monkeypatch.setattr("dino_x.evaluation.embed.read", registry.read)

    def middle(images):
        return images[:, :, 2, 2]

    encoders = {
        "2.5D": Encoder(8, 3, middle, slices=3),
        "2D": Encoder(8, 3, middle),
        "pixels": pixel_encoder(),
    }
    features, unreadable = encode(encoders, rows[2:3], seeing=ImagePreparation(rows=rows))
    assert unreadable == []
    np.testing.assert_allclose(features["2.5D"], [[0.3, 0.5, 0.7]], atol=1e-6)
    np.testing.assert_allclose(features["2D"], [[0.5, 0.5, 0.5]], atol=1e-6)
    np.testing.assert_allclose(features["pixels"], np.full((1, 1024), 0.5), atol=1e-6)


def test_training_and_evaluation_prepare_alike(ramp, monkeypatch):
    rows, _ = ramp
    monkeypatch.setattr("dino_x.evaluation.embed.read", registry.read)
    encoder = Encoder(16, 3, lambda images: images.flatten(1), slices=3)
    features, _ = encode({"": encoder}, rows)
    with Loader(Index(rows), CanvasForm(16, 3, slices=3), cache_bytes=0, workers=1) as loader:
        canvases = loader.batch(np.arange(5)).pixels.flatten(1)
    torch.testing.assert_close(torch.from_numpy(features[""]), canvases, rtol=0, atol=1e-4)


def test_keys_of_triples_need_all_three_files(tmp_path):
    rows = [ref(str(tmp_path / f"{i}")) for i in range(3)]
    for row in rows[:2]:
        row.path.write_text("")
    triples = np.array([[0, 0, 1], [0, 1, 1], [1, 2, 2]])
    keys = keys_of(rows, CanvasForm(8, 3, slices=3), triples)
    assert [key is None for key in keys] == [False, False, True]
