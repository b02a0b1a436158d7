"""The rows that Sinkhorn-Knopp (SK) centers in training, for a model and a user's images.

In training SK sees the teacher's bottlenecks of two global crops of each image. The same are made
here, with the crops drawn as a run draws them. (With whole images the rows of one image would be
equal, and all rows more alike than in any step.)

N images, P passes over them, V global crops of an image, D bottleneck, F features, K prototypes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor
from torch.nn import functional

from dino_x.config.options import Options, ViewOptions
from dino_x.data.index.index import Index
from dino_x.data.loading.loader import Loader
from dino_x.errors import UserError
from dino_x.evaluation.backbone import load_backbone
from dino_x.machine.device import choose_device, dtype_of
from dino_x.randomness import generator
from dino_x.runs.folder import RunFolder
from dino_x.runs.start import has_heads, load_run
from dino_x.training.prepare import canvas_form
from dino_x.training.schedules import values_at
from dino_x.training.step.batch_plan import Cutter
from dino_x.views.crops import draw_views
from dino_x.views.ct_windows import draw_windows
from dino_x.views.sizes import GLOBAL_VIEWS

MICRO_BATCH = 64  # images that go through the network together
MOST_FITTED = 1024  # prototypes fitted for a backbone without a head
ROWS_A_PROTOTYPE = 8  # at least, when they are fitted
CACHE_BYTES = 2**31  # of decoded images, for further passes

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Rows:
    """The rows and settings that SK is measured with.

    Attributes:
        bottlenecks_PNVD: L2-normalised; each pass has other crops of the same images.
        features_NF: features of the backbone, L2-normalised, averaged over the crops of the first
            pass.
        prototypes_KD: the prototypes of the teacher's DINO head, or fitted ones.
        temperature: the teacher's temperature.
        iterations: the number of SK's iterations.
        relaxation: how far SK relaxes the equal use of prototypes.
    """

    bottlenecks_PNVD: Tensor
    features_NF: Tensor
    prototypes_KD: Tensor
    temperature: float
    iterations: int
    relaxation: float


@dataclass(frozen=True)
class Model:
    """A network, how its crops are made, and the prototypes of its head, if it has one.

    Attributes:
        network: from crops [R, 3 or 1, O, O] to backbone features [R, F] and bottlenecks [R, D].
        prototypes_KD: None for a bare backbone.
        step: optimizer steps of a run; None for a bare backbone.
    """

    network: Callable[[Tensor], tuple[Tensor, Tensor]]
    prototypes_KD: Tensor | None
    cutter: Cutter
    temperature: float
    iterations: int
    relaxation: float
    step: int | None


def load_model(name: str | Path, device: str) -> Model:
    """The teacher of a run's newest checkpoint, or a backbone.

    Raises:
        UserError: for a run without a checkpoint, and for a folder that does not hold a model.
    """
    run = RunFolder(Path(name))
    return _of_run(run, device) if run.exists else _of_backbone(name, device)


def _of_run(run: RunFolder, device: str) -> Model:
    where = choose_device(device)
    if not has_heads(run.path):
        raise UserError(
            f"{run.path} has no checkpoint, so there is no head to measure with; let the run make"
            f" one, or give a backbone (--model {run.model}) to have prototypes fitted to it"
        )
    loaded = load_run(run.path, where)
    options, teacher = loaded.options, loaded.network
    mean, std = teacher.backbone.mean, teacher.backbone.std

    def network(crops: Tensor) -> tuple[Tensor, Tensor]:
        cls_RF, _ = teacher(crops, None, None)
        return cls_RF, teacher.dino_head(cls_RF)

    assert options.train.steps is not None
    return Model(
        network=network,
        prototypes_KD=teacher.dino_head.prototypes().float(),
        cutter=Cutter(options, mean, std, where, torch.float32),
        temperature=values_at(options.train.steps - 1, options).teacher_temperature,
        iterations=options.loss.sinkhorn_iterations,
        relaxation=options.loss.sinkhorn_relaxation,
        step=int(loaded.state["step"]),
    )


def _of_backbone(name: str | Path, device: str) -> Model:
    backbone = load_backbone(name, device=device)
    prepared = backbone.preparation
    options = Options(views=ViewOptions(global_size=prepared.image_size))

    def network(crops: Tensor) -> tuple[Tensor, Tensor]:
        cls_RF = backbone.model(pixel_values=crops).pooler_output
        return cls_RF, functional.normalize(cls_RF.float(), dim=1)

    where = next(backbone.model.parameters()).device
    return Model(
        network=network,
        prototypes_KD=None,
        cutter=Cutter(options, list(prepared.mean), list(prepared.std), where, dtype_of("fp32")),
        temperature=options.teacher.temperature,
        iterations=options.loss.sinkhorn_iterations,
        relaxation=options.loss.sinkhorn_relaxation,
        step=None,
    )


def make_rows(model: Model, index: Index, passes: int, seed: int, progress: Progress) -> Rows:
    """Make the rows of all images of an index, ``passes`` times, each time with other crops.

    Raises:
        UserError: if the features are not finite.
    """
    views = model.cutter.options.views
    form = canvas_form(model.cutter.options, index, len(model.cutter.mean))
    spans = [
        np.arange(start, min(start + MICRO_BATCH, len(index)))
        for start in range(0, len(index), MICRO_BATCH)
    ]
    features, bottlenecks = [], []
    loader = Loader(index, form, cache_bytes=CACHE_BYTES, workers=2)
    with loader, torch.no_grad():
        for number in range(passes):
            draws = draw_views(generator(seed, number, "global crops"), len(index), GLOBAL_VIEWS)
            windows = draw_windows(generator(seed, number, "global windows"), *draws.shape[:2])
            for span, canvases in zip(spans, loader.prefetch(spans), strict=True):
                crops = model.cutter.crops(
                    canvases, draws[span], views.global_size, views.global_scale,
                    scale_mm=views.global_scale_mm, windows_bVU=windows[span],
                    blur=views.blur_global,
                )  # fmt: skip
                features_RF, bottlenecks_RD = model.network(crops)
                bottlenecks.append(_by_image(bottlenecks_RD))
                if number == 0:
                    features.append(_by_image(functional.normalize(features_RF, dim=1)).mean(1))
                progress(number * len(index) + int(span[-1]) + 1, passes * len(index))
    rows_PNVD = torch.cat(bottlenecks).unflatten(0, (passes, len(index)))
    if not rows_PNVD.isfinite().all():
        raise UserError("the model's features are not finite: were its weights NaN?")
    prototypes_KD = model.prototypes_KD
    if prototypes_KD is None:
        prototypes_KD = fit_prototypes(rows_PNVD[0].flatten(0, 1), seed)
    return Rows(
        bottlenecks_PNVD=rows_PNVD,
        features_NF=functional.normalize(torch.cat(features), dim=1),
        prototypes_KD=prototypes_KD,
        temperature=model.temperature,
        iterations=model.iterations,
        relaxation=model.relaxation,
    )


def _by_image(rows_RD: Tensor) -> Tensor:
    """View-major rows as float32 [images, V, D]."""
    return rows_RD.float().unflatten(0, (GLOBAL_VIEWS, -1)).transpose(0, 1)


def fit_prototypes(rows_RD: Tensor, seed: int) -> Tensor:
    """Directions [K, D] that unit rows gather around, by spherical k-means."""
    count = max(2, min(MOST_FITTED, len(rows_RD) // ROWS_A_PROTOTYPE))
    fitted = MiniBatchKMeans(count, random_state=seed, batch_size=1024, n_init=1)
    fitted.fit(rows_RD.cpu().numpy())
    centers_KD = torch.as_tensor(
        fitted.cluster_centers_, dtype=rows_RD.dtype, device=rows_RD.device
    )
    return functional.normalize(centers_KD, dim=1)


def sample(rows: Sequence, most: int, seed: int) -> np.ndarray:
    """Positions of at most ``most`` of some rows, drawn at random, in order."""
    if len(rows) <= most:
        return np.arange(len(rows))
    chosen = generator(seed, 0, "which images").choice(len(rows), most, replace=False)
    return np.sort(chosen)
