"""A backbone as an ONNX graph: normalised images in, CLS and patch tokens out, any batch size.

B images, C channels, S side of an image, N patches, D features.
"""

import importlib
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dino_x.errors import UserError
from dino_x.model.families import registers_of

FILE = "model.onnx"
OPSET = 18
NEEDED = ("onnx", "onnxruntime", "onnxscript")


class Tokens(nn.Module):
    """Images to (cls [B, D], patches [B, N, D]), both after the final norm."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.vit = vit
        self.first_patch = 1 + registers_of(vit.config)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """pixel_values: normalised, [B, C, S, S]."""
        tokens = self.vit(pixel_values=pixel_values).last_hidden_state
        return tokens[:, 0], tokens[:, self.first_patch :]


def import_onnx() -> None:
    """Raises UserError, in one line, if what writes or checks ONNX is not installed."""
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"an export to ONNX needs {name}: pip install {' '.join(NEEDED)}"
            ) from error


def write_onnx(vit: Any, images_BCSS: Tensor, folder: Path) -> None:
    """``model.onnx``, for images of that size and batches of any."""
    import_onnx()
    batch = torch.export.Dim("batch", min=1)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Tokens(vit).eval(),
            (images_BCSS,),
            str(folder / FILE),
            input_names=["pixel_values"],
            output_names=["cls", "patches"],
            dynamic_shapes={"pixel_values": {0: batch}},
            opset_version=OPSET,
            external_data=False,
            dynamo=True,
            verbose=False,
        )


def read_onnx(folder: Path, images_BCSS: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What onnxruntime makes of the file: cls [B, D] and patches [B, N, D]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    cls, patches = session.run(None, {"pixel_values": images_BCSS.numpy()})
    return cls, patches
