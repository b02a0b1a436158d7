"""Features of whole images: each file is decoded once, however many networks look at it.

B images, C channels, H x W pixels, S the side of the square a network sees, N images in all,
D features.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from os import cpu_count
from typing import Any

import numpy as np
import torch
from torch import nn

from dino_x.config.options import WindowOptions
from dino_x.data.loading.neighbours import neighbours, read_slices
from dino_x.data.preparation import normalised, to_square, windowed
from dino_x.data.readers.registry import ImageRef, Unreadable, read
from dino_x.data.storage.member import any_remote
from dino_x.machine.device import autocast
from dino_x.machine.products import fast_products
from dino_x.model.families import registers_of

WAITING_THREADS = 32
FEATURES = ("cls", "cls+mean")  # what a network may be asked for: CLS, or CLS and the mean patch
Progress = Callable[[int, int], None]  # (images done, images in all)
Form = tuple[int, int, int]  # channels, side of a square, and slices in it (3 in 2.5D)


@dataclass(frozen=True)
class ImagePreparation:
    """What decides how images are prepared, apart from the images and the encoder.

    Attributes:
        windows: how values become [0, 1], by modality.
        rows: the images among which slices in 2.5D find their neighbours; None: among the images
            that are prepared.
    """

    windows: WindowOptions = field(default_factory=WindowOptions)
    rows: Sequence[ImageRef] | None = None


PLAINLY = ImagePreparation()


@dataclass(frozen=True)
class Encoder:
    """A function from prepared images to features, and the images that it takes.

    Attributes:
        image_size: S, the side in pixels of the squares it takes.
        channels: C; 1 for a network that takes three alike, too.
        features: from float32 [B, C, S, S] in [0, 1] to [B, D], or to [B, P, D] for P patches.
        slices: 3 if the channels are a slice and its neighbours (2.5D), else 1.
    """

    image_size: int
    channels: int
    features: Callable[[torch.Tensor], torch.Tensor]
    slices: int = 1

    @property
    def form(self) -> Form:
        """The channels, side and slices of the images that it takes."""
        return self.channels, self.image_size, self.slices


def pooled(output: Any) -> torch.Tensor:
    """The CLS token after the final norm, [B, D]."""
    return output.pooler_output


def cls_and_mean(registers: int) -> Callable[[Any], torch.Tensor]:
    """What takes CLS and the mean patch, side by side, from the output of a network, [B, 2 * D].

    Args:
        registers: tokens between CLS and the patches, which are no part of the mean.

    Source: DINOv2 (Oquab et al. 2024), the features of its linear evaluation.
    """

    def read_out(output: Any) -> torch.Tensor:
        patches_BND = output.last_hidden_state[:, 1 + registers :]
        return torch.cat([output.pooler_output, patches_BND.mean(dim=1)], dim=1)

    return read_out


def read_out_of(network: nn.Module, features: str) -> Callable[[Any], torch.Tensor]:
    """What takes the features, one of ``FEATURES``, from the output of a network."""
    return pooled if features == "cls" else cls_and_mean(registers_of(network.config))


def embed(
    backbone: nn.Module,
    refs: Sequence[ImageRef],
    *,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
) -> np.ndarray:
    """The CLS token after the final norm (``pooler_output``) of each whole image.

    Args:
        backbone: a transformers vision model; its mode and weights are left as they are.
        refs: N images.
        image_size: S; images are resized to S x S px, antialiased, whatever their aspect ratio.
        mean: of each channel on the scale where the window is [0, 1]; its length, 1 or 3, is the
            number of channels.
        std: of each channel, on the same scale.
        batch_size: images that go through the network together.
        device: where the backbone is.
        precision: ``bf16`` for autocast; otherwise the type of the backbone's weights.

    Returns: float32 [N, D], not normalised.

    Raises:
        Unreadable: if an image cannot be decoded.
    """
    encoder = backbone_encoder(
        backbone, image_size=image_size, mean=mean, std=std, device=device, precision=precision
    )
    features, unreadable = encode({"": encoder}, refs, batch_size=batch_size)
    if unreadable:
        raise Unreadable(f"{len(unreadable)} of {len(refs)} images cannot be decoded")
    return features[""]


def backbone_encoder(
    backbone: nn.Module,
    *,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
    precision: str,
    slices: int = 1,
    grey: bool = False,
    read_out: Callable[[Any], torch.Tensor] = pooled,
    **options: Any,
) -> Encoder:
    """A backbone as an encoder; see ``embed`` for the arguments that are not explained here.

    Args:
        backbone: a transformers vision model.
        image_size: S.
        mean: of each channel.
        std: of each channel.
        device: where the backbone is.
        precision: of its forward.
        slices: see ``Encoder``.
        grey: whether an image with colours is its luma, see ``model.pretrained.Preparation``.
        read_out: a function that takes the features from the output of the network.
        options: further arguments of the network's forward.
    """
    device = torch.device(device)
    dtype = next(backbone.parameters()).dtype

    def features(images_BCSS: torch.Tensor) -> torch.Tensor:
        images_BCSS = normalised(images_BCSS.to(device, dtype), mean, std)
        training = backbone.training
        backbone.eval()
        try:
            with autocast(precision, device)(), fast_products(device):
                return read_out(backbone(pixel_values=images_BCSS, **options))
        finally:
            backbone.train(training)

    return Encoder(image_size, 1 if grey else len(mean), features, slices)


def encode(
    encoders: Mapping[str, Encoder],
    refs: Sequence[ImageRef],
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
    seeing: ImagePreparation = PLAINLY,
) -> tuple[dict[str, np.ndarray], list[int]]:
    """The features of the same images by several encoders.

    Args:
        encoders: by name.
        refs: N images.
        batch_size: images that go through an encoder together.
        progress: told after each batch.
        seeing: how the images are prepared.

    Returns:
        For each encoder float32 [M, D], the M <= N images that can be decoded, in their order; and
        the positions in ``refs`` of the N - M that cannot.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in encoders}
    readable = np.zeros(len(refs), dtype=bool)
    forms = {encoder.form for encoder in encoders.values()}
    with torch.no_grad():
        for positions, batches in prepared(refs, forms, batch_size, progress, seeing):
            if not positions:
                continue
            readable[positions] = True
            for name, encoder in encoders.items():
                parts[name].append(encoder.features(batches[encoder.form]).float().cpu().numpy())
    empty = np.zeros((0, 0), dtype=np.float32)
    features = {name: np.concatenate(part) if part else empty for name, part in parts.items()}
    return features, np.flatnonzero(~readable).tolist()


def prepared(
    refs: Sequence[ImageRef],
    forms: set[Form],
    batch_size: int,
    progress: Progress | None = None,
    seeing: ImagePreparation = PLAINLY,
) -> Iterator[tuple[list[int], dict[Form, torch.Tensor]]]:
    """Images in batches, each decoded once for all forms, one batch ahead of who uses them.

    Yields: the positions in ``refs`` of the B <= ``batch_size`` images that can be decoded, and
    these as float32 [B, C, S, S] in [0, 1] by form.
    """
    beside: dict[ImageRef, list[ImageRef]] = {}
    if any(slices == 3 for _, _, slices in forms):
        rows = refs if seeing.rows is None else seeing.rows
        triples = neighbours(rows).triples
        beside = {rows[i]: [rows[j] for j in triple] for i, triple in enumerate(triples)}

    def prepare(ref: ImageRef) -> dict[Form, np.ndarray] | None:
        try:
            image = read_slices(beside[ref]) if ref in beside else read(ref)
        except Unreadable:
            return None
        pixels_CHW = windowed(image, seeing.windows)
        # An encoder that takes no neighbours sees only the slice in the middle.
        own_CHW = pixels_CHW[1:2] if ref in beside else pixels_CHW
        found = {}
        for channels, size, slices in forms:
            seen_CHW = pixels_CHW if slices == 3 else own_CHW
            found[channels, size, slices] = to_square(seen_CHW, channels, size)
        return found

    # Decoding and resizing release the interpreter lock, so threads are enough; more of them where
    # they wait for an object store.
    threads = WAITING_THREADS if any_remote(refs) else min(8, cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        ahead = pool.map(prepare, refs[:batch_size])
        for start in range(0, len(refs), batch_size):
            found = list(ahead)
            ahead = pool.map(prepare, refs[start + batch_size : start + 2 * batch_size])
            positions = [start + i for i, image in enumerate(found) if image is not None]
            images = [image for image in found if image is not None]
            yield positions, _stacked(images)
            if progress is not None:
                progress(min(start + batch_size, len(refs)), len(refs))


def _stacked(images: Sequence[dict[Form, np.ndarray]]) -> dict[Form, torch.Tensor]:
    """The images of a batch by form; empty if there are none."""
    if not images:
        return {}
    return {form: torch.from_numpy(np.stack([i[form] for i in images])) for form in images[0]}
