"""An effective batch as the step goes through it: micro-batches of crops and masks, in one order.

Rows of crops are view-major: row ``view * b + image``.
b: images of a micro-batch, B: of the effective batch, V: global views, L: local crops an image,
N: patches of a global crop, m: masked patches of a micro-batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from dino_x.exact.processes import Processes
from dino_x.losses.transfer import there

GLOBAL_VIEWS = 2  # global crops an image, as in DINO, DINOv2 and DINOv3


@dataclass(frozen=True)
class MicroBatch:
    """Images that go through the networks together.

    Attributes:
        global_crops: two crops an image, [2 * b, C, H, W], view-major: all first crops, then all
            second ones.
        masks: which patches of the global crops are hidden from the student, bool [2 * b, N].
        local_crops: smaller crops, [L * b, C, h, w], view-major; None if there are none.
    """

    global_crops: Tensor
    masks: Tensor
    local_crops: Tensor | None = None

    def __post_init__(self) -> None:
        rows = len(self.global_crops)
        if rows == 0 or rows % GLOBAL_VIEWS:
            raise ValueError(
                f"global_crops has {rows} rows; expected two global crops of each image"
            )
        if self.masks.dtype != torch.bool or self.masks.ndim != 2 or len(self.masks) != rows:
            raise ValueError(
                f"masks is {self.masks.dtype} of shape {tuple(self.masks.shape)}; expected bool"
                f" [{rows}, patches], one row a global crop"
            )
        if self.local_crops is not None and len(self.local_crops) % self.images:
            raise ValueError(
                f"local_crops has {len(self.local_crops)} rows; expected a multiple of the"
                f" {self.images} images"
            )

    @property
    def images(self) -> int:
        """Images of the micro-batch, b."""
        return len(self.global_crops) // GLOBAL_VIEWS


class PlacedMicroBatch(Protocol):
    """What the step itself asks of a micro-batch; the networks take the rest from it."""

    @property
    def images(self) -> int:
        """Images of the micro-batch, b."""

    @property
    def start(self) -> int:
        """Place of its first image in the effective batch."""

    def masked_rows(self) -> Tensor:
        """Which of the [V * b * N] patch tokens are masked, rising, int64 [m]."""

    def masked_places(self) -> Tensor:
        """A number for each masked patch that orders those of the batch, int64 [m]."""

    def masked_weights(self) -> Tensor:
        """Weight of each masked patch: a mean over its crop, then over all masked crops, [m]."""


@runtime_checkable
class EffectiveBatch(Protocol):
    """What the step asks of an effective batch.

    Attributes:
        images: of all processes, B.
        sizes: images of each micro-batch of all processes, in the order of the batch.
        masked_crops: global crops of all processes in which any patch is masked.
    """

    @property
    def images(self) -> int:
        """Images of all processes, B."""

    @property
    def sizes(self) -> Sequence[int]:
        """Images of each micro-batch of all processes."""

    @property
    def masked_crops(self) -> int:
        """Global crops of all processes in which any patch is masked."""

    def micro_batches(self) -> Iterable[PlacedMicroBatch]:
        """Micro-batches of this process in order; each pass of the step asks for them."""


@dataclass(frozen=True)
class Placed:
    """A micro-batch of tensors at its place in the effective batch.

    Attributes:
        micro: the crops and masks.
        masks: the masks again, on the CPU, where what depends on their number is made.
        start: place of its first image.
        images_in_batch: B.
        masked_crops: of the effective batch.
    """

    micro: MicroBatch
    masks: Tensor
    start: int
    images_in_batch: int
    masked_crops: int

    @property
    def images(self) -> int:
        """Images of the micro-batch, b."""
        return self.micro.images

    def masked_rows(self) -> Tensor:
        """Which of the [V * b * N] patch tokens are masked, int64 [m]."""
        (rows,) = self.masks.flatten().numpy().nonzero()
        return there(rows, self.micro.masks.device)

    def masked_places(self) -> Tensor:
        """Places of the masked patches in the batch, by view, image and patch, int64 [m]."""
        masks_VbN = self.masks.unflatten(0, (GLOBAL_VIEWS, -1))
        view, image, patch = masks_VbN.numpy().nonzero()
        row = view * self.images_in_batch + image + self.start
        return there(row * masks_VbN.shape[2] + patch, self.micro.masks.device)

    def masked_weights(self) -> Tensor:
        """Weight of each masked patch: a mean over its crop, then over all masked crops, [m]."""
        crop, _ = self.masks.numpy().nonzero()
        masked_in_crop = self.masks.sum(dim=1)[torch.as_tensor(crop)]
        dtype = self.micro.global_crops.dtype
        weights = (masked_in_crop.to(dtype) * max(self.masked_crops, 1)).reciprocal()
        return there(weights, self.micro.masks.device)


class Batch:
    """An effective batch of micro-batches that are held as tensors.

    Args:
        micro_batches: those of this process; any iterable, which is gone through once and kept.
        processes: those that share the batch. Images are ordered by process, and every process
            must call this at the same time.

    Raises: ValueError if no process has an image.
    """

    def __init__(
        self, micro_batches: Iterable[MicroBatch], processes: Processes | None = None
    ) -> None:
        processes = processes or Processes()
        self._micro_batches = list(micro_batches)
        if not self._micro_batches:
            raise ValueError("the effective batch is empty; expected one micro-batch or more")
        device = self._micro_batches[0].masks.device
        self._masks = on_the_cpu([micro.masks for micro in self._micro_batches])
        own_sizes = [micro.images for micro in self._micro_batches]
        masked = sum(int(masks.numpy().any(axis=1).sum()) for masks in self._masks)
        each = processes.ranks.numbers([sum(own_sizes), masked], device)
        self.sizes = own_sizes
        if processes.ranks.world_size > 1:
            own = torch.tensor(own_sizes, device=device)
            self.sizes = processes.ranks.concatenate(own).tolist()
        self.images = sum(images for images, _ in each)
        self.masked_crops = sum(masked for _, masked in each)
        self._start = sum(images for images, _ in each[: processes.ranks.rank])
        self._check_shares([images for images, _ in each], processes)

    def _check_shares(self, shares: list[int], processes: Processes) -> None:
        for rank, share in enumerate(shares):
            expected = self.images * (rank + 1) // len(shares) - self.images * rank // len(shares)
            if share != expected:
                raise ValueError(
                    f"process {rank} has {share} of the {self.images} images; expected {expected}:"
                    " each process has an equal share, to one image"
                )

    def micro_batches(self) -> Iterator[Placed]:
        """Micro-batches of this process in order."""
        start = self._start
        for micro, masks in zip(self._micro_batches, self._masks, strict=True):
            yield Placed(micro, masks, start, self.images, self.masked_crops)
            start += micro.images


def on_the_cpu(masks: list[Tensor]) -> list[Tensor]:
    """Masks on the CPU; those on a GPU are read all at once."""
    if all(part.device.type == "cpu" for part in masks):
        return masks
    together = torch.cat([part.flatten() for part in masks]).cpu()
    parts = together.split([part.numel() for part in masks])
    return [part.view(own.shape) for part, own in zip(parts, masks, strict=True)]
