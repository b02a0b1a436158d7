"""A map of the images by their features, coloured by what may explain it.

N images, D features.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from dino_x.report.hover import point_data
from dino_x.report.maps import principal_scores
from dino_x.report.plots import STYLES

SIDE = 320  # of the picture, pixels
ROOM = 14
OTHERS = "others"
FEWEST = 8  # images that a map is drawn of
LEAST_SHARE = 0.9  # of the images whose group must be known


@dataclass(frozen=True)
class FeatureMap:
    """One colouring of the map.

    Attributes:
        key: the page's name for it.
        title: by what it is coloured.
        svg: the picture.
        legend: (style, group, how many images).
        words: what the map says, in figures.
    """

    key: str
    title: str
    svg: str
    legend: list[tuple[int, str, int]]
    words: str


def feature_maps(
    features_ND: np.ndarray, groups: Mapping[str, Sequence[str | None]]
) -> list[FeatureMap]:
    """A map for each kind of group that the images differ in.

    Args:
        features_ND: of the images.
        groups: the group of each image by the name of the kind, such as ``label``; None where it
            is not known.

    Returns: none for fewer than ``FEWEST`` images. A kind that is known for fewer than nine tenths
        of the images, or is the same for all, is left out.
    """
    if len(features_ND) < FEWEST:
        return []
    places_N2, told = places_of(features_ND)
    found = []
    for kind, names in groups.items():
        known = [name for name in names if name is not None]
        if len(set(known)) < 2 or len(known) < LEAST_SHARE * len(names):
            continue
        found.append(feature_map(kind, places_N2, told, features_ND, names))
    return found


def places_of(features_ND: np.ndarray) -> tuple[np.ndarray, float]:
    """The two strongest principal components, [N, 2], and the share of the variance they hold."""
    centred = features_ND.astype(np.float64) - features_ND.mean(axis=0, dtype=np.float64)
    places_N2 = principal_scores(features_ND, count=2)
    whole = float(np.square(centred).sum())
    return places_N2, float(np.square(places_N2).sum()) / whole if whole > 0 else 0.0


def feature_map(
    kind: str,
    places_N2: np.ndarray,
    told: float,
    features_ND: np.ndarray,
    names: Sequence[str | None],
) -> FeatureMap:
    """The map coloured by one kind of group."""
    count = Counter(name for name in names if name is not None)
    largest = [name for name, _ in count.most_common(STYLES - 1)]
    if len(count) == STYLES:
        largest = [name for name, _ in count.most_common(STYLES)]
    shown = [name if name in largest else OTHERS for name in names]
    style_of = {name: style for style, name in enumerate([*sorted(largest), OTHERS])}
    legend = [(style, name, shown.count(name)) for name, style in style_of.items() if name in shown]
    same, chance = same_group(features_ND, names)
    words = (
        f"The nearest other image has the same {kind} in {same:.0%}; by chance it would in"
        f" {chance:.0%}. The two axes hold {told:.0%} of the variance."
    )
    key = f"map-{kind}"
    return FeatureMap(
        key, f"By {kind}", drawn(places_N2, shown, style_of, f"by {kind}", key), legend, words
    )


def same_group(features_ND: np.ndarray, names: Sequence[str | None]) -> tuple[float, float]:
    """How often the nearest other image is of the same group, and how often it is by chance.

    Args:
        features_ND: of the images; cosine similarity counts.
        names: of their groups; images without one do not count.
    """
    known = np.array([name is not None for name in names])
    rows = features_ND[known].astype(np.float64)
    group_N = np.array([name for name in names if name is not None])
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    cosine_NN = rows @ rows.T
    np.fill_diagonal(cosine_NN, -np.inf)
    same = float((group_N[cosine_NN.argmax(axis=1)] == group_N).mean())
    total = len(group_N)
    pairs = sum(count * (count - 1) for count in Counter(group_N.tolist()).values())
    return same, pairs / (total * (total - 1))


def drawn(
    places_N2: np.ndarray, names: Sequence[str], style_of: dict[str, int], title: str, key: str
) -> str:
    """The map as an ``<svg>`` element; each group has its colour and its shape."""
    low, high = places_N2.min(axis=0), places_N2.max(axis=0)
    span = float((high - low).max()) or 1.0
    middle = (low + high) / 2
    pixels_N2 = SIDE / 2 + (places_N2 - middle) / span * (SIDE - 2 * ROOM) * (1, -1)
    parts, points = [], []
    for number, ((x, y), name) in enumerate(zip(pixels_N2.tolist(), names, strict=True), start=1):
        parts.append(symbol(x, y, style_of[name]))
        points.append((x, y, f"image {number}: {name}"))
    return (
        f'<svg class="map" viewBox="0 0 {SIDE} {SIDE}" role="img"'
        f' aria-label="{escape(f"Map of features, {title}")}" aria-describedby="{key}-words"'
        f"{point_data(points)}>"
        f'<rect class="paper" width="{SIDE}" height="{SIDE}"/>{"".join(parts)}</svg>'
    )


def symbol(x: float, y: float, style: int) -> str:
    """A point whose shape tells groups apart without colour."""
    shape = (
        "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0", "m-2.8-2.8h5.6v5.6h-5.6Z", "m0-3.6l3.4 6h-6.8Z",
        "m0-3.8l3.8 3.8l-3.8 3.8l-3.8-3.8Z", "m0 3.6l3.4-6h-6.8Z",
        "m-3-1h2v-2h2v2h2v2h-2v2h-2v-2h-2Z",
    )[style % STYLES]  # fmt: skip
    return f'<path class="point dot s{style % STYLES}" d="M{x:.1f} {y:.1f}{shape}"/>'


def legend_symbol(style: int) -> str:
    """The shape of a group, for the legend."""
    return (
        '<svg class="sample" viewBox="0 0 12 10" aria-hidden="true" focusable="false">'
        f"{symbol(6, 5, style)}</svg>"
    )
