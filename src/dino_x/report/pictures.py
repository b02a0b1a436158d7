"""Arrays as pictures inside the page: small PNG and JPEG as data URIs."""

import base64
import io

import numpy as np
from PIL import Image

SIDE = 144  # longer side of a picture in pixels: sharp at 72 px on a phone, enough at 144


def data_uri(picture: Image.Image, kind: str) -> str:
    """A picture as ``data:image/...``; nothing but pixels is written, no EXIF, no names."""
    buffer = io.BytesIO()
    options = {"quality": 82} if kind == "jpeg" else {"optimize": True}
    picture.save(buffer, kind.upper(), **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def sides(aspect: float, side: int = SIDE) -> tuple[int, int]:
    """Width and height of a picture of this height / width whose longer side is ``side``."""
    if aspect > 1:
        return max(1, round(side / aspect)), side
    return side, max(1, round(side * aspect))


def thumbnail(image_CSS: np.ndarray, aspect: float, side: int = SIDE) -> str:
    """An image that was squeezed to a square, in its own proportions.

    Args:
        image_CSS: uint8, C = 1 or 3.
        aspect: height / width of the image itself.
        side: longer side of the picture in pixels.
    """
    size = sides(aspect, side)
    return data_uri(as_picture(image_CSS).resize(size, Image.Resampling.LANCZOS), "jpeg")


def as_picture(image_CSS: np.ndarray) -> Image.Image:
    """uint8 [C, S, S] as a picture, grey or RGB; the mean of any other number of channels."""
    if len(image_CSS) not in (1, 3):
        image_CSS = image_CSS.mean(axis=0, keepdims=True).astype(np.uint8)
    grey = len(image_CSS) == 1 or all(np.array_equal(image_CSS[0], plane) for plane in image_CSS)
    return Image.fromarray(image_CSS[0] if grey else image_CSS.transpose(1, 2, 0))


def colour_map(colours_YX3: np.ndarray) -> str:
    """Colours in [0, 1], one a place, as a PNG of one pixel a place; the page enlarges it."""
    pixels = np.rint(255 * np.clip(colours_YX3, 0, 1)).astype(np.uint8)
    return data_uri(Image.fromarray(pixels), "png")


def over_image(
    colours_YX3: np.ndarray, image_CSS: np.ndarray | None, aspect: float, side: int
) -> str:
    """Colours in [0, 1] over half of the image's brightness; alone if there is no image."""
    size = sides(aspect, side)
    pixels = np.rint(255 * np.clip(colours_YX3, 0, 1)).astype(np.uint8)
    colours = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    if image_CSS is None:
        return data_uri(colours, "jpeg")
    image = as_picture(image_CSS).convert("RGB").resize(size, Image.Resampling.LANCZOS)
    return data_uri(Image.blend(image, colours, 0.5), "jpeg")


def heat_map(heat_YX: np.ndarray, image_CSS: np.ndarray | None, aspect: float) -> str:
    """Heat in [0, 1], over the image if there is one: more heat covers more of it."""
    from matplotlib import colormaps  # every start of a training would wait for it

    grey = Image.fromarray(np.rint(255 * np.clip(heat_YX, 0, 1)).astype(np.uint8))
    size = sides(aspect)
    heat = np.asarray(grey.resize(size, Image.Resampling.BICUBIC)).astype(np.float32) / 255
    colours = colormaps["inferno"](heat)[..., :3]  # light is much, dark is little, in grey too
    if image_CSS is not None:
        image = as_picture(image_CSS).convert("RGB").resize(size, Image.Resampling.LANCZOS)
        cover = 0.25 + 0.5 * heat[..., None]
        colours = (1 - cover) * np.asarray(image) / 255 + cover * colours
    return data_uri(Image.fromarray(np.rint(255 * colours).astype(np.uint8)), "jpeg")
