"""The backbones that can be named by their size."""

SIZES = {  # width, depth, heads, patch size
    "vit-tiny": (192, 12, 3, 16),
    "vits16": (384, 12, 6, 16),
    "vitb16": (768, 12, 12, 16),
    "vitl16": (1024, 24, 16, 16),
}


def is_size(name: str) -> bool:
    """Whether a model name is one of the built-in sizes."""
    return name in SIZES
