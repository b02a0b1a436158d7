"""How far Sinkhorn-Knopp's (SK) targets are from those of the largest batch, by batch size.

The reference is SK over all N images. A draw is a random order of the images, cut into batches; the
targets of fixed probe images are then those of the batch each has fallen into. Batch sizes, queues
and repeats share probes, and sizes of one draw share its order, so that curves differ by what is
measured and not by luck.

N images, P passes, V rows of an image, D bottleneck, K prototypes, B images of a batch, J probes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dino_x.audit.rows import Rows
from dino_x.losses import sinkhorn_bias
from dino_x.losses.centering import center_bias
from dino_x.randomness import generator

SMALLEST = 8
MOST_PROBES = {"all": 64, "rare": 32}
FEWEST_PROBES = 16
SPREAD = 4  # one image in so many of the first ones of a draw is a probe, at most
REPEATS, FEWEST_REPEATS = 10, 3
FULL_WORK = 1024  # prototypes up to which there are that many probes and repeats; above, fewer
BAND = (10, 90)  # percentiles over the draws

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Queue:
    """Rows of earlier steps that take part in SK: as asked for, and as the data allow."""

    asked: int
    rows: int


def batch_sizes(images: int) -> list[int]:
    """8, 16, ... and, last, all images.

    >>> batch_sizes(40)
    [8, 16, 32, 40]
    """
    doubled = [2**power for power in range(3, 64) if 2**power < images]
    return [*doubled, images]


def measure(
    rows: Rows,
    groups: dict[str, np.ndarray],
    queues: Sequence[Queue],
    *,
    repeats: int,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """The curves of each group of images.

    Args:
        rows: of N images.
        groups: bool [N] for ``all`` and ``rare``; at least one image in each.
        queues: beside the batch alone.
        repeats: draws of the rest of the batch.
        seed: of the draws.
        progress: told (solved, all) after each point of a curve.

    Returns: what JSON can hold, by group: ``images``, ``probes``, ``reference`` and ``softmax``
        (figures), and ``curves``: for ``alone`` and each queue's ``asked`` a list of points with
        ``batch``, ``rows`` (of batch and queue) and of each figure ``mean``, ``low``, ``high``.
        The figures: ``distance`` (total variation), ``entropy`` (over log K), ``same_top`` (share
        of targets with the reference's top prototype), ``in_use`` (exp of the entropy of the mean
        target, over K: 1 if all prototypes are used alike).
    """
    sizes = batch_sizes(rows.bottlenecks_PNVD.shape[1])
    arms = {"alone": 0, **{str(queue.asked): queue.rows for queue in queues}}
    solver = Solver(rows)
    points = [
        (arm, queued, size)
        for arm, queued in arms.items()
        for size in sizes
        if queued <= solver.rows_beside(size)
    ]
    total, done = len(groups) * repeats * len(points), 0
    results: dict[str, Any] = {}
    for name, group_N in groups.items():
        probes_J = choose_probes(group_N, name, len(rows.prototypes_KD), seed)
        reference_JVK = solver.targets(solver.reference_K, probes_J)
        draws: dict[tuple[str, int], list[dict[str, float]]] = {}
        for repeat in range(repeats):
            order_N = draw_order(generator(seed, repeat, f"batches {name}"), group_N, probes_J)
            for arm, queued, size in points:
                targets_JVK = solver.in_batches(order_N, size, queued, probes_J)
                draws.setdefault((arm, size), []).append(figures(targets_JVK, reference_JVK))
                done += 1
                progress(done, total)
        curves: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
        for arm, queued, size in points:
            point = {"batch": size, "rows": size * solver.views + queued}
            curves[arm].append(point | summary(draws[arm, size]))
        results[name] = {
            "images": int(group_N.sum()),
            "probes": len(probes_J),
            "reference": figures(reference_JVK, reference_JVK),
            "softmax": figures(solver.targets(solver.softmax_K, probes_J), reference_JVK),
            "curves": curves,
        }
    return results


class Solver:
    """SK and targets on given rows."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.passes, self.images, self.views, _ = rows.bottlenecks_PNVD.shape
        every_image = np.arange(self.images)
        self.reference_K = self.bias(every_image)
        mean_D = rows.bottlenecks_PNVD[0].flatten(0, 1).mean(dim=0)
        self.softmax_K = center_bias(rows.prototypes_KD @ mean_D, rows.temperature)

    def rows_beside(self, size: int) -> int:
        """Rows there are for a queue beside a batch of ``size`` images."""
        return (self.passes * self.images - size) * self.views

    def bias(self, batch_B: np.ndarray, queue_QD: Tensor | None = None) -> Tensor:
        """SK's f over a batch of images, in their sorted order, and a queue."""
        rows = self.rows
        return sinkhorn_bias(
            rows.bottlenecks_PNVD[0, np.sort(batch_B)].flatten(0, 1),
            rows.prototypes_KD,
            rows.temperature,
            rows.iterations,
            relaxation=rows.relaxation,
            extra_bottlenecks_QD=queue_QD,
        )

    def targets(self, bias_K: Tensor, images_J: np.ndarray) -> Tensor:
        """Targets of both crops of some images, [J, V, K]."""
        rows = self.rows
        bottlenecks_JVD = rows.bottlenecks_PNVD[0, images_J]
        logits_JVK = (bottlenecks_JVD / rows.temperature) @ rows.prototypes_KD.T
        return torch.softmax(logits_JVK + bias_K, dim=-1)

    def queue(self, order_N: np.ndarray, start: int, size: int, count: int) -> Tensor | None:
        """Rows of images that are not in the batch at ``start``; if they do not last, new crops.

        Args:
            order_N: the draw.
            start, size: the batch is ``order_N[start : start + size]``.
            count: rows, a multiple of V.
        """
        if count == 0:
            return None
        wanted = count // self.views
        others = np.roll(order_N, -(start + size))[: self.images - size]
        parts = [self.rows.bottlenecks_PNVD[0, others[:wanted]]]
        wanted -= len(parts[0])
        for number in range(1, self.passes):
            parts.append(self.rows.bottlenecks_PNVD[number, order_N[: max(wanted, 0)]])
            wanted -= len(parts[-1])
        return torch.cat(parts).flatten(0, 1)

    def in_batches(
        self, order_N: np.ndarray, size: int, queued: int, probes_J: np.ndarray
    ) -> Tensor:
        """Targets of the probes, each from the batch that it is in, [J, V, K].

        Where ``size`` does not divide N, the last batch overlaps the one before.
        """
        place_N = np.empty_like(order_N)
        place_N[order_N] = np.arange(self.images)
        starts_J = np.minimum(place_N[probes_J] // size * size, self.images - size)
        found: dict[int, Tensor] = {}
        for start in np.unique(starts_J).tolist():
            here = np.flatnonzero(starts_J == start)
            queue_QD = self.queue(order_N, start, size, queued)
            bias_K = self.bias(order_N[start : start + size], queue_QD)
            targets = self.targets(bias_K, probes_J[here])
            found |= dict(zip(here.tolist(), targets, strict=True))
        return torch.stack([found[place] for place in range(len(probes_J))])


def default_repeats(prototypes: int) -> int:
    """Draws that take minutes on a CPU up to 4,096 prototypes.

    >>> default_repeats(256), default_repeats(4096)
    (10, 3)
    """
    return max(REPEATS * FULL_WORK // max(prototypes, FULL_WORK), FEWEST_REPEATS)


def choose_probes(group_N: np.ndarray, name: str, prototypes: int, seed: int) -> np.ndarray:
    """Images of a group whose targets are looked at, at random."""
    most = MOST_PROBES[name] * FULL_WORK // max(prototypes, FULL_WORK)
    members = np.flatnonzero(group_N)
    count = min(len(members), max(most, FEWEST_PROBES))
    chosen = generator(seed, 0, f"probes {name}").choice(members, count, replace=False)
    return np.sort(chosen)


def draw_order(rng: np.random.Generator, group_N: np.ndarray, probes_J: np.ndarray) -> np.ndarray:
    """A random order of all images in which the probes are near the start: few batches hold all.

    They are the first of their group, or of a quarter of all images where the group is larger, so
    that the group has its share of every batch, and most of a batch is new in every draw.
    """
    order_N = rng.permutation(len(group_N))
    others = rng.permutation(np.setdiff1d(np.flatnonzero(group_N), probes_J))
    others = others[: max(len(group_N) // SPREAD - len(probes_J), 0)]
    members = np.concatenate([rng.permutation(probes_J), others])
    order_N[np.isin(order_N, members)] = members
    return order_N


def figures(targets_JVK: Tensor, reference_JVK: Tensor) -> dict[str, float]:
    """What is told of the targets of one draw, see ``measure``."""
    log_k = math.log(targets_JVK.shape[-1]) or 1.0
    distance = (targets_JVK - reference_JVK).abs().sum(dim=-1).mean() / 2
    entropy = torch.special.entr(targets_JVK).sum(dim=-1).mean()
    same_top = (targets_JVK.argmax(dim=-1) == reference_JVK.argmax(dim=-1)).double().mean()
    mean_K = targets_JVK.flatten(0, 1).mean(dim=0)
    in_use = torch.special.entr(mean_K).sum().exp() / len(mean_K)
    return {
        "distance": float(distance),
        "entropy": float(entropy) / log_k,
        "same_top": float(same_top),
        "in_use": float(in_use),
    }


def summary(draws: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and band over the draws, for each figure."""
    found = {}
    for name in draws[0]:
        values = np.array([draw[name] for draw in draws])
        low, high = np.percentile(values, BAND)
        found[name] = {"mean": float(values.mean()), "low": float(low), "high": float(high)}
    return found
