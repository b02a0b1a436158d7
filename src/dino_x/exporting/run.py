"""``dino-x export``: a run's model in a format, read back and compared before success is said."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from dino_x.errors import UserError
from dino_x.evaluation.backbone import LoadedModel, load_backbone
from dino_x.exporting.card import write_card
from dino_x.exporting.onnx_format import Tokens, import_onnx, read_onnx, write_onnx
from dino_x.exporting.positions import at_size
from dino_x.exporting.timm_format import import_timm, read_timm, timm_config, write_timm
from dino_x.files import open_to_group
from dino_x.model.backbone import write_vit
from dino_x.model.families import registers_of
from dino_x.model.pretrained import quiet_transformers
from dino_x.runs.folder import reading_of

TOLERANCE = 1e-4  # of each number, and of it relative to the largest
CHECKED = (3, 1)  # images of the batches that are compared


@dataclass(frozen=True)
class Features:
    """CLS [B, D] and patch tokens [B, N, D]."""

    cls: Tensor
    patches: Tensor

    def difference(self, other: "Features") -> float:
        """The largest, against the larger of 1 and the largest feature."""
        scale = max(1.0, float(self.patches.abs().max()), float(self.cls.abs().max()))
        pairs = ((self.cls, other.cls), (self.patches, other.patches))
        return max(float((a - b).abs().max()) for a, b in pairs) / scale


def export(run: str | Path, to: Path, format_: str, console: Console) -> None:
    """Write a model for other tools into a new folder, check it, and describe it in README.md.

    Args:
        run: a RUN, or any model that a run can start from.
        to: a folder that is not there, or empty; nothing is left in it if the check fails.
        format_: transformers, timm or onnx.
        console: where to say what was compared.

    Raises: UserError if there is no such model, the folder is taken, a library is missing, or what
        was written does not give the same features to 1e-4.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"{to} is there already; name a new folder with --to")
    write, read = FORMATS[format_]
    {"onnx": import_onnx, "timm": import_timm}.get(format_, lambda: None)()
    with quiet_transformers():
        backbone = load_backbone(run, device="cpu")
        prepared = replace(backbone.preparation, reading=reading_of(run))
        backbone = replace(backbone, preparation=prepared)
        if format_ == "timm":
            timm_config(backbone.config, backbone.preparation)  # refuses what timm has no class for
        staging = to.with_name(to.name + ".partial")
        shutil.rmtree(staging, ignore_errors=True)
        try:
            staging.mkdir(parents=True)
            write(backbone, staging)
            worst = max(check(backbone, read, staging, count) for count in CHECKED)
            if not worst <= TOLERANCE:
                raise UserError(
                    f"the exported model's features differ by {worst:.1g}, more than {TOLERANCE:g};"
                    f" nothing was written to {to}"
                )
            write_card(Path(run), staging, format_, to.name, backbone, worst)
            open_to_group(staging)
            to.mkdir(parents=True, exist_ok=True)
            for file in staging.iterdir():
                file.replace(to / file.name)
        except OSError as error:
            raise UserError(f"cannot write to {to}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    files = ", ".join(sorted(path.name for path in to.iterdir()))
    console.print(f"{'exported':<10}{to}: {files}", highlight=False, soft_wrap=True)
    console.print(
        f"{'checked':<10}read back, its features differ by {worst:.1g} at most"
        f" (allowed: {TOLERANCE:g})", highlight=False, soft_wrap=True,
    )  # fmt: skip


def check(backbone: LoadedModel, read: Callable[..., Features], folder: Path, count: int) -> float:
    """The largest difference between the run's features and the written model's."""
    images = example(backbone, count)
    with torch.no_grad():
        own = Features(*Tokens(backbone.model)(images))
    return own.difference(read(folder, images, backbone.config))


def example(backbone: LoadedModel, count: int) -> Tensor:
    """Random images as the model sees them, [count, C, S, S]."""
    size = backbone.preparation.image_size
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, backbone.preparation.channels, size, size, generator=generator)


def as_prepared(backbone: LoadedModel) -> Any:
    """The network for the size that its images are prepared to."""
    return at_size(backbone.model, backbone.preparation.image_size)


def _write_transformers(backbone: LoadedModel, folder: Path) -> None:
    preparation = backbone.preparation
    mean, std = list(preparation.mean), list(preparation.std)
    write_vit(backbone.model, folder, preparation.image_size, mean, std, preparation.ours)


def _read_transformers(folder: Path, images: Tensor, config: Any) -> Features:
    with torch.no_grad():
        return Features(*Tokens(load_backbone(folder, device="cpu").model)(images))


def _read_timm(folder: Path, images: Tensor, config: Any) -> Features:
    tokens = read_timm(folder, images)
    return Features(tokens[:, 0], tokens[:, 1 + registers_of(config) :])


def _read_onnx(folder: Path, images: Tensor, config: Any) -> Features:
    return Features(*(torch.from_numpy(part) for part in read_onnx(folder, images)))


FORMATS: dict[str, tuple[Callable[[LoadedModel, Path], None], Callable[..., Features]]] = {
    "transformers": (_write_transformers, _read_transformers),
    "timm": (lambda b, f: write_timm(as_prepared(b), b.preparation, f), _read_timm),
    "onnx": (lambda b, f: write_onnx(as_prepared(b), example(b, 2), f), _read_onnx),
}
