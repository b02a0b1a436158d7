"""A small evaluation of the teacher's backbone while it trains, that disturbs nothing.

With labels: weighted kNN, where queries are patients taken out of the training side. The tested
split is never looked at, or it would choose the model it is to judge. Without labels: an image's
view is looked for among views of I images, by another view of it.

Images and views are the same ones every time, so that values of one run can be compared.
I images, V views, F features.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dino_x.config.options import Options
from dino_x.data.index.labels import Labelled
from dino_x.data.index.splits import Item, make_split
from dino_x.data.loading.loader import Canvases
from dino_x.data.preparation import whole_canvases
from dino_x.data.readers.registry import ImageRef
from dino_x.evaluation.knn import balanced_accuracy, knn_probabilities
from dino_x.model.backbone import Backbone
from dino_x.progress import Told
from dino_x.randomness import generator
from dino_x.training.step.batch_plan import Cutter, ImageSource
from dino_x.views.crops import draw_views
from dino_x.views.ct_windows import draw_windows
from dino_x.views.sizes import GLOBAL_VIEWS

LEAST_IMAGES = 2  # among which to look for one
SEARCH_ELEMENTS = 2**22  # similarities held at a time


@dataclass(frozen=True)
class LabelledRows:
    """Which images of the run are references and queries of the kNN, and their classes.

    Attributes:
        references, queries: row numbers of the run's index, rising.
        reference_classes, query_classes: integers in 0 .. class_count - 1.
    """

    references: np.ndarray
    queries: np.ndarray
    reference_classes: np.ndarray
    query_classes: np.ndarray
    class_count: int


def labelled_rows(
    labelled: Labelled, rows: Sequence[ImageRef], most: int, seed: int
) -> LabelledRows | None:
    """References and queries among the images that a run trains on.

    The training side of the labels is cut once more, as ``splits.make_split`` does: whole patients,
    70% of each class's to the references. The tested side is left alone.

    Args:
        labelled: the run's labels.
        rows: the images of the run's index.
        most: references at most, and queries at most; more are thinned out at random.
        seed: of the run.

    Returns: None if there are not two classes that are on both sides: then kNN means nothing. Nor
        is there one for several labels an image, or numbers.
    """
    if labelled.targets is not None:
        return None
    row_of = {ref: row for row, ref in enumerate(rows)}
    found = [
        (row_of[ref], str(label), str(patient))
        for ref, label, patient, tested in zip(
            labelled.refs, labelled.labels, labelled.patients, labelled.is_test, strict=True
        )
        if not tested and ref in row_of
    ]
    items = [Item(rows[row].path, "", label, patient) for row, label, patient in found]
    sides: dict[str, list[tuple[int, str]]] = {"train": [], "test": []}
    for (row, label, _), side in zip(found, make_split(items), strict=True):
        sides[side].append((row, label))
    common = sorted({label for _, label in sides["train"]} & {label for _, label in sides["test"]})
    if len(common) < 2:
        return None
    number = {label: position for position, label in enumerate(common)}
    rng = generator(seed, 0, "online images")

    def thinned(side: str) -> tuple[np.ndarray, np.ndarray]:
        pairs = sorted((row, number[label]) for row, label in sides[side] if label in number)
        chosen = rng.choice(len(pairs), min(most, len(pairs)), replace=False)
        both = np.array(pairs)[np.sort(chosen)]
        return both[:, 0], both[:, 1]

    references, reference_classes = thinned("train")
    queries, query_classes = thinned("test")
    if len(set(query_classes)) < 2 or len(set(reference_classes)) < 2:
        return None
    return LabelledRows(references, queries, reference_classes, query_classes, len(common))


def not_told(done: int, total: int) -> None:
    """Hear how far an evaluation is, and do nothing."""


@dataclass(frozen=True)
class Online:
    """Evaluates a backbone on a few of a run's images.

    Attributes:
        source, cutter: of the run.
        images: in the data set.
        micro_batch: images whose views go through the network together.
        precision: opens the autocast context of a forward.
        labelled: references and queries, or None for retrieval.
    """

    source: ImageSource
    cutter: Cutter
    images: int
    micro_batch: int
    precision: Callable[[], AbstractContextManager]
    labelled: LabelledRows | None = None

    @property
    def options(self) -> Options:
        """The options of the run."""
        return self.cutter.options

    def due(self, done: int) -> bool:
        """Whether to evaluate after ``done`` finished steps: the first, every so many, the last."""
        every = self.options.online.every
        if not every or (self.labelled is None and self.images < LEAST_IMAGES):
            return False
        return done == 1 or done == self.options.train.steps or done % every == 0

    @torch.no_grad()
    def evaluate(self, backbone: Backbone, told: Told = not_told) -> dict[str, float]:
        """The metrics of a backbone, ``online/...``; ``told`` hears how many images are done."""
        if self.labelled is not None:
            return self._knn(backbone, told)
        return self._retrieval(backbone, told)

    def _knn(self, backbone: Backbone, told: Told) -> dict[str, float]:
        data = self.labelled
        assert data is not None
        rows = np.concatenate([data.references, data.queries])
        features_IF = self._features(backbone, rows, self._whole_image, told)[0].numpy()
        probabilities = knn_probabilities(
            features_IF[: len(data.references)],
            data.reference_classes,
            features_IF[len(data.references) :],
            data.class_count,
        )
        return {
            "online/knn_balanced_accuracy": balanced_accuracy(data.query_classes, probabilities),
            "online/images": float(len(data.references)),
            "online/classes": float(data.class_count),
        }

    def _retrieval(self, backbone: Backbone, told: Told) -> dict[str, float]:
        count, seed = min(self.options.online.images, self.images), self.options.train.seed
        rng = generator(seed, 0, "online images")
        rows = np.sort(rng.choice(self.images, count, replace=False))
        draws_IVU = draw_views(generator(seed, 0, "online views"), count, GLOBAL_VIEWS)
        windows_IVU = draw_windows(generator(seed, 0, "online windows"), count, GLOBAL_VIEWS)
        views = self.options.views

        def two_views(canvases: Canvases, span: slice) -> Tensor:
            return self.cutter.crops(
                canvases, draws_IVU[span], views.global_size, views.global_scale,
                scale_mm=views.global_scale_mm, windows_bVU=windows_IVU[span],
                blur=views.blur_global,
            )  # fmt: skip

        found = retrieval_top1(*self._features(backbone, rows, two_views, told))
        return {"online/retrieval_top1": found, "online/images": float(count)}

    def _features(
        self,
        backbone: Backbone,
        rows: np.ndarray,
        cut: Callable[[Canvases, slice], Tensor],
        told: Told,
    ) -> Tensor:
        """CLS features, float32 [V, I, F] on the CPU."""
        size = self.micro_batch
        spans = [slice(start, start + size) for start in range(0, len(rows), size)]
        parts = []
        loaded = self.source.prefetch([rows[span] for span in spans])
        for span, canvases in zip(spans, loaded, strict=True):
            with self.precision():
                cls_BF, _ = backbone(cut(canvases, span), None, None)
            parts.append(cls_BF.float().cpu().unflatten(0, (-1, len(canvases.pixels))))
            told(min(span.stop, len(rows)), len(rows))
        return torch.cat(parts, dim=1)

    def _whole_image(self, canvases: Canvases, span: slice) -> Tensor:
        """Whole images at a global crop's size, prepared as ``evaluation.embed`` does."""
        pixels_BCSS = canvases.pixels.to(self.cutter.device, self.cutter.dtype)
        size = self.options.views.global_size
        squares_BCSS = whole_canvases(pixels_BCSS, canvases.hounsfield, size)
        return self.cutter.normalised(squares_BCSS)


def retrieval_top1(gallery_IF: Tensor, queries_IF: Tensor) -> float:
    """Share of queries whose nearest row of the gallery, by cosine, is that of the same image.

    A row as near as the right one counts against it, so that equal features score 0, not 1.

    Args:
        gallery_IF: one view of each image.
        queries_IF: another view of each, in the same order.

    >>> found = retrieval_top1(torch.eye(3), torch.tensor([[2.0, 1, 0], [0, 1, 0], [3, 0, 1]]))
    >>> round(found, 3)
    0.667
    """
    gallery_IF = functional.normalize(gallery_IF, dim=1)
    queries_IF = functional.normalize(queries_IF, dim=1)
    right = 0
    rows_at_once = max(1, SEARCH_ELEMENTS // len(gallery_IF))
    for start in range(0, len(queries_IF), rows_at_once):
        cosine_CI = queries_IF[start : start + rows_at_once] @ gallery_IF.T
        own_C = torch.arange(len(cosine_CI))
        own = cosine_CI[own_C, own_C + start].clone()
        cosine_CI[own_C, own_C + start] = -torch.inf
        right += int((own > cosine_CI.amax(dim=1)).sum())
    return right / len(queries_IF)
