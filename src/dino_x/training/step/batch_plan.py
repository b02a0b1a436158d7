"""What one optimizer step looks at, drawn from (seed, step), and its micro-batches.

B: images of the effective batch, b: of a micro-batch, V: views, N: patches, L: layers.
A ``BatchPlan`` is drawn for the whole effective batch from (seed, step). A ``MicroBatch`` is a
slice of it by position; what it holds does not depend on where the slice ends. Rows of crops are
view-major: row ``view * b + image``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dino_x.config.options import CropSizes, Options
from dino_x.data.loading.dealing import Layout
from dino_x.data.loading.loader import Canvases
from dino_x.data.loading.sampler import Strata, sample_indices
from dino_x.data.preparation import normalised
from dino_x.losses.transfer import there
from dino_x.model.backbone import Backbone, ForwardRandomness
from dino_x.randomness import generator
from dino_x.views.crops import apply_views, draw_views, view_parameters
from dino_x.views.ct_windows import draw_windows, named_windows, window_parameters
from dino_x.views.extra import Extra, apply_extra, draw_extra
from dino_x.views.masks import block_masks, mask_counts
from dino_x.views.sizes import GLOBAL_VIEWS, draw_sizes
from dino_x.views.stains import draw_stains, stain_parameters


@dataclass(frozen=True)
class BatchPlan:
    """The draws of one step, for all B images."""

    step: int
    indices_B: np.ndarray
    global_draws_BVU: np.ndarray
    local_draws_BVU: np.ndarray
    masks_BVN: np.ndarray
    global_keep_LBV: np.ndarray  # [L, 2, B, 2]
    local_keep_LBV: np.ndarray  # [L, 2, B, local crops]
    global_rescale_L: np.ndarray  # of RoPE's coordinates
    local_rescale_L: np.ndarray
    sizes: CropSizes
    global_windows_BVU: np.ndarray  # of CT; other images have no use for them
    local_windows_BVU: np.ndarray
    global_stains_BVU: np.ndarray | None  # None where stains are not varied
    local_stains_BVU: np.ndarray | None
    global_extra_BVU: np.ndarray | None  # None without a function in views.extra
    local_extra_BVU: np.ndarray | None

    @property
    def images(self) -> int:
        """B, the effective batch."""
        return len(self.indices_B)

    @property
    def local_views(self) -> int:
        """Local crops an image."""
        return self.local_draws_BVU.shape[1]

    @property
    def masked_crops(self) -> int:
        """Global crops of the effective batch in which any patch is masked."""
        return int(self.masks_BVN.any(axis=2).sum())


def draw_batch_plan(
    options: Options,
    step: int,
    images: int,
    depth: int,
    patch_size: int,
    sizes: CropSizes | None = None,
    strata: Strata | Layout | None = None,
) -> BatchPlan:
    """Everything random in one step, from (seed, step) alone.

    Args:
        options: resolved.
        step: optimizer step, from 0.
        images: images in the data set.
        depth: layers of the backbone.
        patch_size: side of a patch in pixels.
        sizes: of the crops, if not those that are drawn.
        strata: what is known of the images that decides which come together.
    """
    sizes = sizes or draw_sizes(options, step)
    seed, batch, locals_ = (
        options.train.seed,
        options.train.effective_batch,
        options.views.local_crops,
    )
    rng = generator(seed, step, "masks")
    grid = (sizes.global_size // patch_size,) * 2
    counts = mask_counts(
        rng, batch * GLOBAL_VIEWS, grid[0] * grid[1], options.masks.probability, options.masks.ratio
    )
    masks = block_masks(rng, counts, grid).reshape(batch, GLOBAL_VIEWS, -1)

    def keep(views: int, purpose: str) -> np.ndarray:
        draws = generator(seed, step, purpose).random((depth, 2, batch, views))
        return draws >= options.model.drop_path

    def views_of(kind: str, views: int) -> np.ndarray:
        colours = None
        if options.data.slices == 1:  # three slices are no colours
            colours = generator(seed, step, f"{kind} colours")
        turns = generator(seed, step, f"{kind} turns") if options.views.turns else None
        return draw_views(generator(seed, step, f"{kind} crops"), batch, views, colours, turns)

    def stains(kind: str, views: int) -> np.ndarray | None:
        if not options.views.varies_stains:
            return None
        return draw_stains(generator(seed, step, f"{kind} stains"), batch, views)

    def extra(kind: str, views: int) -> np.ndarray | None:
        if options.views.extra is None:
            return None
        return draw_extra(generator(seed, step, f"{kind} extra"), batch, views)

    def rescale(purpose: str) -> np.ndarray:
        limit = np.log(options.model.rope_rescale or 1.0)
        drawn_L = np.exp(generator(seed, step, purpose).uniform(-limit, limit, depth))
        if options.model.rope_scope == "forward":
            drawn_L[:] = drawn_L[0]
        return drawn_L

    return BatchPlan(
        step=step,
        indices_B=sample_indices(seed, step, batch, images, strata),
        global_draws_BVU=views_of("global", GLOBAL_VIEWS),
        local_draws_BVU=views_of("local", locals_),
        masks_BVN=masks,
        global_keep_LBV=keep(GLOBAL_VIEWS, "global depth"),
        local_keep_LBV=keep(locals_, "local depth"),
        global_rescale_L=rescale("global rope"),
        local_rescale_L=rescale("local rope"),
        sizes=sizes,
        global_windows_BVU=draw_windows(
            generator(seed, step, "global windows"), batch, GLOBAL_VIEWS
        ),
        local_windows_BVU=draw_windows(generator(seed, step, "local windows"), batch, locals_),
        global_stains_BVU=stains("global", GLOBAL_VIEWS),
        local_stains_BVU=stains("local", locals_),
        global_extra_BVU=extra("global", GLOBAL_VIEWS),
        local_extra_BVU=extra("local", locals_),
    )


class ImageSource(Protocol):
    """Where canvases come from: data/loading/loader.py, or a test."""

    def prefetch(self, batches: list[np.ndarray]) -> Iterator[Canvases]:
        """Canvases for each array of image indices, in order."""


@dataclass(frozen=True)
class Cutter:
    """How canvases become the network's input; the same for all micro-batches of a run."""

    options: Options
    mean: list[float]
    std: list[float]
    device: torch.device
    dtype: torch.dtype
    extra: Extra | None = None  # the function of views.extra

    def crops(
        self,
        canvases: Canvases,
        draws_bVU: np.ndarray,
        size: int,
        scale: tuple[float, float],
        *,
        scale_mm: tuple[float, float] | None = None,
        windows_bVU: np.ndarray | None = None,
        stains_bVU: np.ndarray | None = None,
        extra_bVU: np.ndarray | None = None,
        distorted: bool = True,
        blur: tuple[float, float] | None = None,
    ) -> Tensor:
        """Normalised crops, view-major [V * b, 3, O, O].

        What is done to each image is decided on the CPU, whatever the device: a device that had to
        say how many crops are blurred would be waited for.

        Args:
            canvases: b images.
            draws_bVU: see ``draw_views``.
            size: O.
            scale: share of the image's area.
            scale_mm: instead, side in mm, for images whose size in mm is known.
            windows_bVU: see ``draw_windows``; needed if any image is in Hounsfield units.
            stains_bVU: see ``draw_stains``; without it stains are as they are.
            extra_bVU: see ``draw_extra``; without it the function of ``views.extra`` is not called.
            distorted: whether crops are blurred and their intensities changed, and pass that
                function.
            blur: probability of a blur of each view; ``views.blur`` without it.
        """
        pixels = there(canvases.pixels, self.device, self.dtype)
        aspect = canvases.aspect.to(self.dtype)
        size_mm = None if canvases.size_mm is None else canvases.size_mm.to(self.dtype)
        parameters = view_parameters(
            self._drawn(draws_bVU), aspect, scale, size, self.options.views,
            scale_mm=scale_mm, size_mm_B2=size_mm, blur=blur,
        )  # fmt: skip
        if not distorted:
            parameters = parameters.undistorted()
        windows = None
        if canvases.hounsfield is not None:
            assert windows_bVU is not None
            draws = windows_bVU if distorted else named_windows(windows_bVU)
            windows = window_parameters(self._drawn(draws), canvases.hounsfield)
        stains = None
        if stains_bVU is not None and distorted:
            stains = stain_parameters(self._drawn(stains_bVU), self.options.views)
        interpolation = self.options.views.interpolation
        crops = apply_views(pixels, parameters, size, windows, interpolation, stains)
        if self.extra is not None and extra_bVU is not None and distorted:
            drawn_NU = self._drawn(extra_bVU).transpose(0, 1).flatten(0, 1)
            crops = apply_extra(self.extra, crops, there(drawn_NU, self.device))
        return self.normalised(crops)

    def normalised(self, crops: Tensor) -> Tensor:
        """Crops in [0, 1] as the network takes them; a grey one becomes three channels here."""
        return normalised(crops, self.mean, self.std)

    def _drawn(self, draws: np.ndarray) -> Tensor:
        return torch.from_numpy(draws).to(self.dtype)


@dataclass(frozen=True)
class MicroBatch:
    """b consecutive positions of a plan, with their images."""

    plan: BatchPlan
    span: slice
    canvases: Canvases
    cutter: Cutter

    def seen_by(self, backbone: Backbone) -> "MicroBatch":
        """The same, with crops normalised as another network wants them."""
        cutter = replace(self.cutter, mean=backbone.mean, std=backbone.std)
        return replace(self, cutter=cutter)

    @property
    def images(self) -> int:
        """Images of the micro-batch, b."""
        return self.span.stop - self.span.start

    @property
    def start(self) -> int:
        """Place of its first image in the effective batch."""
        return self.span.start

    def global_crops(self) -> Tensor:
        """[2 * b, 3, O, O]."""
        return self._global_crops(self.plan.sizes.global_size)

    def gram_crops(self) -> Tensor:
        """The same cuts for the Gram teacher, at its size: [2 * b, 3, G, G].

        They are not blurred, and their intensities are not changed, as in DINOv3: the anchor is
        what the Gram teacher makes of the image itself. A CT has the named window of the student's
        view, which decides what is to be seen at all, without the random change around it.
        """
        size = self.plan.sizes.gram_size
        assert size is not None
        return self._global_crops(size, distorted=False)

    def _global_crops(self, size: int, *, distorted: bool = True) -> Tensor:
        draws = self.plan.global_draws_BVU[self.span]
        views = self.cutter.options.views
        return self.cutter.crops(
            self.canvases, draws, size, views.global_scale,
            scale_mm=views.global_scale_mm,
            windows_bVU=self.plan.global_windows_BVU[self.span],
            stains_bVU=self._own(self.plan.global_stains_BVU),
            extra_bVU=self._own(self.plan.global_extra_BVU),
            distorted=distorted,
            blur=views.blur_global,
        )  # fmt: skip

    def local_crops(self) -> Tensor:
        """[local crops * b, 3, O, O]."""
        views = self.cutter.options.views
        draws = self.plan.local_draws_BVU[self.span]
        return self.cutter.crops(
            self.canvases, draws, self.plan.sizes.local_size, views.local_scale,
            scale_mm=views.local_scale_mm,
            windows_bVU=self.plan.local_windows_BVU[self.span],
            stains_bVU=self._own(self.plan.local_stains_BVU),
            extra_bVU=self._own(self.plan.local_extra_BVU),
        )  # fmt: skip

    def _own(self, draws_BVU: np.ndarray | None) -> np.ndarray | None:
        """The numbers of this micro-batch, if there are any."""
        return None if draws_BVU is None else draws_BVU[self.span]

    def masks(self) -> Tensor:
        """Masked patches of the global crops, bool [2 * b, N]."""
        masks = self.plan.masks_BVN[self.span].swapaxes(0, 1)
        return there(masks.reshape(-1, masks.shape[-1]).copy(), self.cutter.device)

    def masked_rows(self) -> Tensor:
        """Which of the [2 * b * N] patch tokens are masked, on the device, int64 [m]."""
        return there(self.masked_index(), self.cutter.device)

    def masked_index(self) -> np.ndarray:
        """The same on the CPU, where what is computed depends on them."""
        return np.flatnonzero(self.plan.masks_BVN[self.span].swapaxes(0, 1))

    def masked_places(self) -> Tensor:
        """Places of masked patches in the effective batch, by view, image and patch: int64 [m]."""
        masks = self.plan.masks_BVN[self.span].swapaxes(0, 1)
        view, image, patch = np.nonzero(masks)
        places = (view * self.plan.images + image + self.span.start) * masks.shape[2] + patch
        return there(places, self.cutter.device)

    def masked_weights(self) -> Tensor:
        """Weight of each masked patch, [m]: a mean over its crop, then over all masked crops."""
        masks = self.plan.masks_BVN[self.span].swapaxes(0, 1)
        counts = masks.sum(axis=2, keepdims=True) * max(self.plan.masked_crops, 1)
        weights = np.broadcast_to(1 / np.maximum(counts, 1), masks.shape)[masks]
        return there(weights, self.cutter.device, self.cutter.dtype)

    def global_randomness(self) -> ForwardRandomness:
        """Of the student's forward of the global crops."""
        return self._randomness(self.plan.global_keep_LBV, self.plan.global_rescale_L)

    def local_randomness(self) -> ForwardRandomness:
        """Of the student's forward of the local crops."""
        return self._randomness(self.plan.local_keep_LBV, self.plan.local_rescale_L)

    def _randomness(self, keep_LBV: np.ndarray, rescale_L: np.ndarray) -> ForwardRandomness:
        view_major = keep_LBV[:, :, self.span].swapaxes(2, 3)
        return ForwardRandomness(view_major.reshape(*view_major.shape[:2], -1), rescale_L)
