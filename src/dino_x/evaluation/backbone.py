"""A trained backbone with the preparation of images that it expects, from a folder or the hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from dino_x.config.options import ModelOptions
from dino_x.errors import UserError
from dino_x.machine.device import choose_device, dtype_of
from dino_x.model.pretrained import (
    Preparation,
    find_model,
    first_line,
    quiet_transformers,
    read_preparation,
    refuse_own_code,
)
from dino_x.model.weights import is_file_of_weights, load_start
from dino_x.runs.checkpoint_model import make_model_at


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, on its device, and its preparation of images."""

    model: nn.Module
    preparation: Preparation

    @property
    def config(self) -> Any:
        """The transformers config."""
        return self.model.config


def load_backbone(
    name: str | Path, *, device: str = "auto", precision: str = "fp32"
) -> LoadedModel:
    """Loads the backbone of one of our runs, or any ViT that transformers' AutoModel knows.

    Args:
        name: a run's folder (its ``model`` folder is taken), a folder as transformers saves
            models, a name on the hub, or a ``.pth`` file of plain tensors. No pickled code is run.
        device: auto, cpu, cuda or mps.
        precision: fp32, bf16 (float32 weights, to be used with autocast) or fp64.

    Raises:
        UserError: if it is no model, is incomplete, gives no ``pooler_output``, or is a name that
            is neither cached nor, within seconds, found on the hub.
    """
    where = choose_device(device)
    if is_file_of_weights(name):
        start = load_start(ModelOptions(name=str(name)))
        return LoadedModel(start.vit.to(where, dtype_of(precision)).eval(), start.preparation)
    make_model_at(name)
    folder = find_model(name)
    try:
        with quiet_transformers():
            refuse_own_code(folder, name)
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            preparation = read_preparation(folder, config)
            model, report = AutoModel.from_pretrained(
                folder,
                config=config,
                dtype=dtype_of(precision),
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except UserError:
        raise
    except Exception as error:  # transformers has no common class for files that were made up
        raise UserError(f"{name} cannot be loaded as a model: {first_line(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would fill them with random numbers and continue
        raise UserError(f"{name} lacks {len(missing)} of the model's weights, such as {missing[0]}")
    model = model.to(where).eval()
    _check_pooled(name, model, preparation)
    return LoadedModel(model, preparation)


def _check_pooled(name: str | Path, model: nn.Module, preparation: Preparation) -> None:
    size, channels = preparation.image_size, preparation.channels
    parameter = next(model.parameters())
    blank = torch.zeros(1, channels, size, size, dtype=parameter.dtype, device=parameter.device)
    try:
        with torch.no_grad():
            pooled = model(pixel_values=blank).pooler_output
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{name} does not turn an image of {size} x {size} px into a pooler_output:"
            f" {first_line(error)}"
        ) from error
    if pooled is None or pooled.ndim != 2:
        raise UserError(f"{name} gives no pooler_output, one vector an image")
