"""The curves against plain loops in float64."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from dino_x.audit.distance import (
    Queue,
    Solver,
    batch_sizes,
    choose_probes,
    default_repeats,
    draw_order,
    figures,
    measure,
)
from dino_x.audit.rows import Rows
from dino_x.randomness import generator

IMAGES, VIEWS, PROTOTYPES, TEMPERATURE, RELAXATION = 37, 2, 23, 0.1, 0.2


def clustered_rows(passes=2, images=IMAGES):
    """Unit rows around a few directions, the crops of an image near each other, in float64."""
    draw = torch.Generator().manual_seed(4)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    centers = normal(5, 9)
    kind = torch.randint(5, (images,), generator=draw)
    image = centers[kind] + 0.5 * normal(images, 9)
    rows = functional.normalize(
        image[None, :, None] + 0.3 * normal(passes, images, VIEWS, 9), dim=3
    )
    prototypes = functional.normalize(normal(PROTOTYPES, 9), dim=1)
    return Rows(rows, functional.normalize(image, dim=1), prototypes, TEMPERATURE, 3, RELAXATION)


def measured(rows, queues=(), repeats=3, seed=0, groups=None, progress=lambda done, total: None):
    groups = groups or {"all": np.ones(rows.bottlenecks_PNVD.shape[1], dtype=bool)}
    return measure(rows, groups, queues, repeats=repeats, seed=seed, progress=progress)


def plain_bias(rows, prototypes):
    """Relaxed SK as in the papers, scaling a matrix; f is the log of the columns' scale."""
    kernel = np.exp(rows @ prototypes.T / TEMPERATURE)
    row_scale = np.ones(len(rows))
    for _ in range(3):
        scale = (row_scale @ kernel) ** (RELAXATION - 1)
        row_scale = 1 / (kernel @ scale)
    return np.log(scale)


def plain_target(row, prototypes, bias):
    weights = np.exp(prototypes @ row / TEMPERATURE + bias)
    return weights / weights.sum()


def plain_draw(rows, order, size, queued):
    """Distance, entropy, agreement and use of one draw, image by image."""
    passes, prototypes = rows.bottlenecks_PNVD.numpy(), rows.prototypes_KD.numpy()
    reference = plain_bias(passes[0].reshape(-1, 9), prototypes)
    distances, entropies, same, mean = [], [], [], 0
    for place in range(IMAGES):
        start = min(place // size * size, IMAGES - size)
        batch = order[start : start + size]
        bag = [row for image in batch for row in passes[0, image]]
        after = [order[(start + size + i) % IMAGES] for i in range(IMAGES - size)]
        later = [row for image in after for row in passes[0, image]]
        later += [row for image in order for row in passes[1, image]]
        bias = plain_bias(np.array(bag + later[:queued]), prototypes)
        for row in passes[0, order[place]]:
            target = plain_target(row, prototypes, bias)
            wanted = plain_target(row, prototypes, reference)
            distances.append(abs(target - wanted).sum() / 2)
            entropies.append(-(target * np.log(target)).sum() / math.log(PROTOTYPES))
            same.append(target.argmax() == wanted.argmax())
            mean = mean + target / (IMAGES * VIEWS)
    in_use = np.exp(-(mean * np.log(mean)).sum()) / PROTOTYPES
    return np.array([np.mean(distances), np.mean(entropies), np.mean(same), in_use])


@pytest.mark.parametrize("queued", [0, 26, 90])  # 90 rows: more than the other images have
def test_every_figure_is_that_of_a_plain_loop(queued):
    rows, repeats = clustered_rows(), 3
    result = measured(rows, [Queue(90, queued)] if queued else [], repeats)
    curve = result["all"]["curves"]["90" if queued else "alone"]
    everyone = np.ones(IMAGES, dtype=bool)
    probes = np.arange(IMAGES)
    for point in curve[:3]:
        expected = []
        for repeat in range(repeats):
            order = draw_order(generator(0, repeat, "batches all"), everyone, probes)
            expected.append(plain_draw(rows, order, point["batch"], queued))
        for name, draws in zip(
            ("distance", "entropy", "same_top", "in_use"), np.transpose(expected), strict=True
        ):
            found = [point[name][key] for key in ("mean", "low", "high")]
            wanted = [draws.mean(), *np.percentile(draws, (10, 90))]
            np.testing.assert_allclose(found, wanted, rtol=1e-9, err_msg=name)


def test_softmax_centers_on_the_mean_logit_of_all_images():
    rows = clustered_rows()
    bottlenecks, prototypes = rows.bottlenecks_PNVD[0].flatten(0, 1).numpy(), rows.prototypes_KD
    reference = plain_bias(bottlenecks, prototypes.numpy())
    logits = bottlenecks @ prototypes.numpy().T
    bias = -logits.mean(axis=0) / TEMPERATURE
    distances = [
        abs(
            plain_target(row, prototypes.numpy(), bias)
            - plain_target(row, prototypes.numpy(), reference)
        ).sum()
        / 2
        for row in bottlenecks
    ]
    found = measured(rows)["all"]["softmax"]["distance"]
    assert found == pytest.approx(np.mean(distances), rel=1e-9)


def test_the_largest_batch_is_at_distance_0_from_itself():
    last = measured(clustered_rows())["all"]["curves"]["alone"][-1]
    assert last["batch"] == IMAGES
    assert last["distance"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert last["same_top"]["mean"] == 1


def test_distance_falls_with_the_batch_and_with_the_queue():
    curves = measured(clustered_rows(images=300), [Queue(200, 200)])["all"]["curves"]
    alone = [point["distance"]["mean"] for point in curves["alone"]]
    assert alone == sorted(alone, reverse=True)
    assert curves["200"][0]["distance"]["mean"] < alone[2]


def test_the_same_seed_gives_the_same_curves_and_another_gives_others():
    rows = clustered_rows()
    assert measured(rows) == measured(rows)
    assert measured(rows)["all"]["curves"] != measured(rows, seed=1)["all"]["curves"]


def test_a_queue_that_the_images_cannot_fill_beside_a_batch_has_no_point_there():
    curves = measured(clustered_rows(passes=1), [Queue(50, 50)])["all"]["curves"]
    assert [point["batch"] for point in curves["50"]] == [8]  # 16 + 25 images are more than 37
    assert curves["50"][0]["rows"] == 8 * VIEWS + 50


def test_the_queue_holds_no_row_of_the_batch_while_there_are_others():
    rows = clustered_rows()
    order = np.random.default_rng(0).permutation(IMAGES)
    queue = Solver(rows).queue(order, 16, 8, (IMAGES - 8) * VIEWS)
    kept = {tuple(row) for row in queue.tolist()}
    batch = rows.bottlenecks_PNVD[0, order[16:24]].flatten(0, 1)
    assert len(kept) == (IMAGES - 8) * VIEWS
    assert not kept & {tuple(row) for row in batch.tolist()}


def test_an_order_holds_each_image_once_and_probes_come_first_of_their_group():
    group = np.arange(200) % 10 == 0
    probes = np.flatnonzero(group)[5:9]
    first = np.zeros(200)
    for repeat in range(400):
        order = draw_order(generator(0, repeat, "test"), group, probes)
        assert sorted(order) == list(range(200))
        places = np.flatnonzero(group[order])
        assert set(order[places[:4]]) == set(probes)
        first[places] += 1
    # The group is anywhere: a tenth of every place, as in a batch at random.
    assert first.reshape(20, 10).sum(axis=1) == pytest.approx(400, rel=0.3)


def test_a_batch_as_large_as_the_probes_is_not_made_of_probes():
    everyone = np.ones(400, dtype=bool)
    probes = np.arange(64)
    orders = [draw_order(generator(0, repeat, "test"), everyone, probes) for repeat in range(50)]
    share = [np.isin(order[:64], probes).mean() for order in orders]
    assert np.mean(share) == pytest.approx(1 / 4, abs=0.04)
    others = {image for order in orders for image in order[:64].tolist()} - set(probes.tolist())
    assert len(others) > 330  # of 336


def test_fewer_probes_and_repeats_with_many_prototypes():
    everyone = np.ones(1000, dtype=bool)
    assert len(choose_probes(everyone, "all", 256, 0)) == 64
    assert len(choose_probes(everyone, "all", 2048, 0)) == 32
    assert len(choose_probes(everyone, "all", 262_144, 0)) == 16
    assert len(choose_probes(np.arange(1000) < 5, "rare", 256, 0)) == 5
    assert [default_repeats(count) for count in (61, 2048, 65_536)] == [10, 5, 3]


def test_figures_of_one_hot_and_of_uniform_targets():
    one_hot = torch.eye(4, dtype=torch.float64)[:, None]
    uniform = torch.full((4, 1, 4), 0.25, dtype=torch.float64)
    assert figures(one_hot, uniform) == pytest.approx(
        {"distance": 0.75, "entropy": 0, "same_top": 0.25, "in_use": 1}
    )
    assert figures(one_hot[:1], one_hot[:1])["in_use"] == pytest.approx(0.25)


def test_batch_sizes_double_and_end_with_all_images():
    assert batch_sizes(8) == [8]
    assert batch_sizes(64) == [8, 16, 32, 64]
    assert batch_sizes(65) == [8, 16, 32, 64, 65]


def test_progress_ends_at_its_total():
    told = []
    measured(
        clustered_rows(), [Queue(20, 20)], progress=lambda done, total: told.append((done, total))
    )
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert {total for _, total in told} == {len(told)}
