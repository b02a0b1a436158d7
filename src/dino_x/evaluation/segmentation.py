"""Segmentation by a linear probe on patches: what a patch's features tell about what lies there.

One linear classifier on the patch tokens of the last layer, nothing else: no decoder, so that what
is seen is what the features hold. Every model sees images of 28 x 28 patches, whatever the size of
its patches, so that all have the same resolution. Logits of patches are brought to the size of the
mask bilinearly.

B images, C channels, S x S pixels, P patches, D features, K classes with the background (class 0),
Q tested volumes, an image that is no slice of one counting as one, H x W pixels of a mask.

Source: Oquab et al. 2023 (DINOv2), section 7.4; Simeoni et al. 2025 (DINOv3), section 6.1.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn import functional

from dino_x.errors import UserError
from dino_x.evaluation.bootstrap import Draws, Metric, mean_of_draws
from dino_x.evaluation.embed import PLAINLY, Encoder, ImagePreparation, Progress, prepared
from dino_x.evaluation.masks import Masked, read_mask
from dino_x.evaluation.patches import GRID, class_shares
from dino_x.randomness import generator

MOST_PATCHES = 20_000  # that a classifier is fitted on
PENALTIES = (1e-4, 1e-2, 1.0)  # scikit-learn's C; with thousands of patches little depends on it
UNCHOSEN = 1e-2
MOST_ITERATIONS = 300
MEAN = "mean"  # over the foreground classes
IMPOSSIBLE = -1e9  # the logit of a class that no sampled patch has


@dataclass(frozen=True)
class PatchClassifier:
    """A linear map from patch tokens to logits of classes."""

    weights_DK: np.ndarray
    bias_K: np.ndarray

    def predict(self, tokens_PD: np.ndarray, height: int, width: int) -> np.ndarray:
        """The class of each pixel, int64 [H, W]: bilinear logits of patches, then the largest."""
        logits_PK = tokens_PD @ self.weights_DK + self.bias_K
        best_HW = torch.full((height, width), -torch.inf)
        chosen_HW = torch.zeros(height, width, dtype=torch.long)
        for k in range(logits_PK.shape[1]):  # one plane at a time: masks may be large, classes many
            plane = torch.from_numpy(logits_PK[:, k].astype(np.float32)).view(1, 1, GRID, GRID)
            logits_HW = functional.interpolate(
                plane, size=(height, width), mode="bilinear", align_corners=False
            )[0, 0]
            chosen_HW = torch.where(logits_HW > best_HW, k, chosen_HW)
            best_HW = torch.maximum(best_HW, logits_HW)
        return chosen_HW.numpy()


def fit_patches(features_ND: np.ndarray, shares_NK: np.ndarray, penalty: float) -> PatchClassifier:
    """Logistic regression on standardised features, with the shares of classes as soft targets.

    The loss of a patch is the cross-entropy to the shares of its classes, which is that of one row
    for each class it has, weighing as much as its share.

    Raises:
        UserError: if the patches have one class only.
    """
    scaler = StandardScaler().fit(features_ND)
    patches, classes = np.nonzero(shares_NK > 0)
    if len(set(classes.tolist())) < 2:
        raise UserError("the masks are too small, or all: all patches looked at have one class")
    classifier = LogisticRegression(C=penalty, max_iter=MOST_ITERATIONS)
    with warnings.catch_warnings():  # stopped early is good enough: it is scored all the same
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(
            scaler.transform(features_ND)[patches],
            classes,
            sample_weight=shares_NK[patches, classes].astype(np.float64),
        )
    coefficients, intercepts = classifier.coef_, classifier.intercept_
    if len(coefficients) == 1:  # scikit-learn has one row for two classes
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        intercepts = np.concatenate([[0.0], intercepts])
    weights_DK = np.zeros((features_ND.shape[1], shares_NK.shape[1]))
    bias_K = np.full(shares_NK.shape[1], IMPOSSIBLE)
    scaled = coefficients / scaler.scale_
    weights_DK[:, classifier.classes_] = scaled.T
    bias_K[classifier.classes_] = intercepts - scaled @ scaler.mean_
    return PatchClassifier(weights_DK.astype(np.float32), bias_K.astype(np.float32))


def pixels_in_common(
    true_HW: np.ndarray, predicted_HW: np.ndarray, class_count: int
) -> tuple[np.ndarray, np.ndarray]:
    """|A and B| and |A| + |B| of each foreground class, for true and predicted pixels A and B.

    Returns: float64 [K - 1] each. Those of the slices of a volume add up to those of the volume.
    """
    pairs = true_HW.ravel() * class_count + predicted_HW.ravel()
    counts_KK = np.bincount(pairs, minlength=class_count**2).reshape(class_count, class_count)
    both = np.diag(counts_KK)[1:].astype(np.float64)
    total = (counts_KK.sum(axis=0) + counts_KK.sum(axis=1))[1:].astype(np.float64)
    return both, total


def overlap(both: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dice and IoU from what ``pixels_in_common`` counts, in the same shape.

    Dice = 2 |A and B| / (|A| + |B|) and IoU = |A and B| / |A or B|. Both are 1 where neither has
    any pixel, and 0 where only one has.

    Source: Dice 1945; Maier-Hein et al. 2024 (Metrics Reloaded), for what is empty.
    """
    empty = total == 0
    dice = np.where(empty, 1.0, 2 * both / np.where(empty, 1, total))
    iou = np.where(empty, 1.0, both / np.where(empty, 1, total - both))
    return dice, iou


@dataclass(frozen=True)
class Segmented:
    """The results of the segmentation.

    Attributes:
        dice: of each model, float64 [Q, K - 1] by volume and foreground class; an image that is no
            slice of a volume counts as one.
        iou: IoU of each model, in the same form.
        chosen: the C of each model.
        rows: the position in ``Masked`` of the first image of each of the Q volumes, of the tested
            images that can be decoded.
        unreadable: how many images cannot be decoded.
        whole_volumes: whether any volume has several of the images.
    """

    dice: dict[str, np.ndarray]
    iou: dict[str, np.ndarray]
    chosen: dict[str, float]
    rows: np.ndarray
    unreadable: int
    whole_volumes: bool


@dataclass
class _Sample:
    """Patches to fit on, of each model and the same for all."""

    features: dict[str, list[np.ndarray]]
    shares: list[np.ndarray] = field(default_factory=list)

    def fit(self, name: str, penalty: float) -> PatchClassifier:
        if not self.shares:
            raise UserError("no image of train that has a mask can be decoded")
        features_ND = np.concatenate(self.features[name])
        if not np.isfinite(features_ND).all():
            raise UserError(f"the patch features of {name} are not finite: were the weights NaN?")
        return fit_patches(features_ND, np.concatenate(self.shares), penalty)


class _Pass:
    """Walks through the images of each purpose once, for all models together."""

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        masked: Masked,
        seed: int,
        batch_size: int,
        progress: Progress | None,
        preparation: ImagePreparation,
    ) -> None:
        self.preparation = preparation
        self.encoders, self.masked, self.seed = encoders, masked, seed
        self.batch_size, self.progress = batch_size, progress
        self.done = self.unreadable = 0
        self.values = np.array([0, *masked.values])
        self.class_count = len(self.values)
        self.sample = _Sample({name: [] for name in encoders})
        fitted = int((masked.side != "test").sum())
        self.patches_an_image = min(GRID * GRID, max(1, MOST_PATCHES // fitted))

    def images(self, purpose: str) -> Iterator[tuple[int, np.ndarray, dict[str, np.ndarray]]]:
        """Yields (position, mask [H, W], tokens [P, D] by model) of each image."""
        rows = np.flatnonzero(self.masked.side == purpose)
        refs = [self.masked.refs[row] for row in rows]
        forms = {encoder.form for encoder in self.encoders.values()}
        readable = 0
        for positions, batches in prepared(
            refs, forms, self.batch_size, self._told, self.preparation
        ):
            readable += len(positions)
            if not positions:
                continue
            with torch.no_grad():
                tokens = {
                    name: encoder.features(batches[encoder.form]).float().cpu().numpy()
                    for name, encoder in self.encoders.items()
                }
            for i, position in enumerate(positions):
                row = rows[position]
                mask_HW = np.searchsorted(self.values, read_mask(self.masked.masks[row]))
                yield row, mask_HW, {name: of_batch[i] for name, of_batch in tokens.items()}
        self.done += len(rows)
        self.unreadable += len(rows) - readable

    def keep(self, row: int, mask_HW: np.ndarray, tokens: dict[str, np.ndarray]) -> None:
        """Put some patches of an image into the sample."""
        rng = generator(self.seed, int(row), "patches")
        some = np.sort(rng.choice(GRID * GRID, self.patches_an_image, replace=False))
        self.sample.shares.append(class_shares(mask_HW, self.class_count)[some])
        for name, of_image in tokens.items():
            self.sample.features[name].append(of_image[some])

    def _told(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(self.done + done, len(self.masked.refs))


def segment(
    encoders: Mapping[str, Encoder],
    masked: Masked,
    *,
    seed: int,
    batch_size: int = 16,
    progress: Progress | None = None,
    preparation: ImagePreparation = PLAINLY,
) -> Segmented:
    """Fits on train, chooses the penalty on val, fits again on both, and scores each tested image.

    Each image is decoded once and goes through each model once. Memory does not grow with the
    images: what is kept is about 20,000 patches, drawn evenly from the images.

    Args:
        encoders: by name, to [B, P, D].
        masked: the images.
        seed: of the patches that are kept.
        batch_size: images that go through a model together.
        progress: told (images done, images in all).
        preparation: how the images are prepared.

    Raises:
        UserError: for features that are not finite, or masks of one class only.
    """
    walk = _Pass(encoders, masked, seed, batch_size, progress, preparation)
    for image in walk.images("fit"):
        walk.keep(*image)
    chosen = dict.fromkeys(encoders, UNCHOSEN)
    if masked.validation != "none":
        chosen = _choose(walk)
    final = {name: walk.sample.fit(name, chosen[name]) for name in encoders}
    counted = {name: Counts(masked.volumes) for name in encoders}
    images = 0
    for row, mask_HW, tokens in walk.images("test"):
        images += 1
        for name, of_image in tokens.items():
            predicted_HW = final[name].predict(of_image, *mask_HW.shape)
            counted[name].add(row, *pixels_in_common(mask_HW, predicted_HW, walk.class_count))
    first_rows = next(iter(counted.values())).first_rows
    if not first_rows:
        raise UserError(f"no image of {masked.tested} that has a mask can be decoded")
    scores = {name: counts.overlap() for name, counts in counted.items()}
    return Segmented(
        {name: dice for name, (dice, _) in scores.items()},
        {name: iou for name, (_, iou) in scores.items()},
        chosen,
        np.array(first_rows),
        walk.unreadable,
        whole_volumes=images > len(first_rows),
    )


def metrics_of_overlap(
    names: Sequence[str], scores: Mapping[str, np.ndarray], draws: Draws
) -> dict[str, dict[str, Metric]]:
    """The mean over volumes of each class, and of the mean over classes, with their draws.

    Args:
        names: of the K - 1 foreground classes.
        scores: by metric, [Q, K - 1].
        draws: of the patients of the Q volumes.

    Returns: metrics by class (``mean`` first) and metric.
    """
    columns = {MEAN: {metric: values.mean(axis=1) for metric, values in scores.items()}}
    for k, name in enumerate(names):
        columns[name] = {metric: values[:, k] for metric, values in scores.items()}
    found: dict[str, dict[str, Metric]] = {}
    for name, column in columns.items():
        found[name] = {}
        for metric, values_Q in column.items():
            mean = float(values_Q.mean())
            found[name][metric] = Metric(mean, mean_of_draws(draws, values_Q))
    return found


class Counts:
    """What images have in common with their masks, added up over the slices of each volume.

    Args:
        volumes_N: the volume of each image of ``Masked``.

    Attributes:
        first_rows: the first image of each volume that was added, in the order they came.
    """

    def __init__(self, volumes_N: np.ndarray) -> None:
        self.volumes_N = volumes_N
        self.first_rows: list[int] = []
        self._place: dict[str, int] = {}
        self._both: list[np.ndarray] = []
        self._total: list[np.ndarray] = []

    def add(self, row: int, both: np.ndarray, total: np.ndarray) -> None:
        """Add an image; see ``pixels_in_common``."""
        place = self._place.setdefault(str(self.volumes_N[row]), len(self.first_rows))
        if place == len(self.first_rows):
            self.first_rows.append(row)
            self._both.append(np.zeros_like(both))
            self._total.append(np.zeros_like(total))
        self._both[place] += both
        self._total[place] += total

    def overlap(self) -> tuple[np.ndarray, np.ndarray]:
        """Dice and IoU of each volume and foreground class, [Q, K - 1] each."""
        return overlap(np.stack(self._both), np.stack(self._total))


def _choose(walk: _Pass) -> dict[str, float]:
    """The penalty of the highest mean Dice on the images to choose on, which join the sample."""
    candidates, counted = {}, {}
    for name in walk.encoders:
        candidates[name] = [walk.sample.fit(name, penalty) for penalty in PENALTIES]
        counted[name] = [Counts(walk.masked.volumes) for _ in PENALTIES]
    decoded = False
    for row, mask_HW, tokens in walk.images("choose"):
        decoded = True
        for name, of_image in tokens.items():
            for candidate, counts in zip(candidates[name], counted[name], strict=True):
                predicted_HW = candidate.predict(of_image, *mask_HW.shape)
                counts.add(row, *pixels_in_common(mask_HW, predicted_HW, walk.class_count))
        walk.keep(row, mask_HW, tokens)
    if not decoded:
        return dict.fromkeys(walk.encoders, PENALTIES[0])
    means = {name: [one.overlap()[0].mean() for one in ones] for name, ones in counted.items()}
    return {name: PENALTIES[int(np.argmax(values))] for name, values in means.items()}
